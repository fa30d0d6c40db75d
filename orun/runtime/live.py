"""The foreground's live view: the status document, drawn twice a second on the terminal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from orun.runtime.runtime import Runtime

REFRESH_S = 0.5


async def show(runtime: Runtime, ready: Callable[[dict[str, Any]], None]) -> int:
    """Run the runtime under a live view. Returns its exit code."""
    # rich is loaded only here: a runtime without a terminal never pays for it.
    from rich.console import Console

    from orun.observe.live import LiveView

    console = Console()
    view = LiveView(console, footer="Ctrl-C stops in an orderly way")
    drawing: asyncio.Task[None] | None = None

    async def draw() -> None:
        while True:
            view.update(runtime.operations.status_document())
            await asyncio.sleep(REFRESH_S)

    def begin(document: dict[str, Any]) -> None:
        nonlocal drawing
        ready(document)
        drawing = asyncio.create_task(draw(), name="live view")

    with view:
        code = await runtime.run(begin, None)
        if drawing is not None:
            drawing.cancel()
    return code
