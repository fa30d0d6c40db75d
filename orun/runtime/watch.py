"""``orun run --watch``: an edit of an agent's files becomes a version and is handed over to."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from orun.errors import OrunError

log = logging.getLogger("orun.watch")

DEBOUNCE_MS = 200


async def watch(paths: list[str], reload: Callable[[str], Awaitable[str]]) -> None:
    """Call ``reload`` with the path of each agent whose folder saw a change of a Python file; never returns."""
    # watchfiles costs 30 ms and 6 MB, and only this mode needs it.
    from watchfiles import PythonFilter, awatch

    folders = {os.path.dirname(path) for path in paths}
    async for changes in awatch(*folders, watch_filter=PythonFilter(), step=50, debounce=DEBOUNCE_MS):
        changed = [Path(path) for _, path in changes]
        for path in paths:
            if any(file.is_relative_to(os.path.dirname(path)) for file in changed):
                await _reload(path, reload)


async def _reload(path: str, reload: Callable[[str], Awaitable[str]]) -> None:
    try:
        log.info("%s", await reload(path))
    except OrunError as error:
        # An edit that does not load is normal while somebody types: the old version goes on.
        log.warning("not reloaded, the version before goes on: %s", error.message)
