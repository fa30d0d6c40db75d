"""The loop behind ``orun status --watch``."""

from __future__ import annotations

import sys
import time
from typing import Any

from orun import project
from orun.cli import output, quick

PERIOD_S = 1.0
SHORT_PERIOD_S = 0.25
"""On a terminal a person waits for changes; elsewhere lines are kept few."""


def watch_status(state_dir: str | None, *, json: bool) -> int:
    """Show the status until interrupted or until nothing runs any more."""
    folder = project.find_state_dir(state_dir)
    if json:
        while True:
            output.document(_ask(folder))
            time.sleep(PERIOD_S)
    if not output.is_terminal(sys.stdout):
        from orun.observe.live import PlainLines

        lines = PlainLines(output.result)
        while True:
            lines.update(_ask(folder))
            time.sleep(PERIOD_S)
    from rich.console import Console

    from orun.observe.live import LiveView

    with LiveView(Console(), footer="Ctrl-C ends the view, not the runtime") as view:
        while True:
            view.update(_ask(folder))
            time.sleep(SHORT_PERIOD_S)


def _ask(folder: str) -> dict[str, Any]:
    from orun.worker import plain

    document = plain.control(folder, "status", timeout_s=quick.STATUS_TIMEOUT_S)
    assert isinstance(document, dict)
    return document
