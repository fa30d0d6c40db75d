"""The foreground's live view: the status document and what the children print, drawn twice a second on the terminal."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import IO, Any, cast, final

from orun.runtime.foreground import Stream
from orun.runtime.runtime import Runtime

REFRESH_S = 0.5
LINES_KEPT = 50
FOOTER = "Ctrl-C stops in an orderly way, a second one at once"
_CLOSE_WAIT_S = 1.0


async def show(runtime: Runtime, ready: Callable[[dict[str, Any]], None]) -> int:
    """Run the runtime under a live view. Returns its exit code."""
    # rich is loaded only here: a runtime without a terminal never pays for it.
    from rich.console import Console

    from orun.observe.live import LiveView

    screen = Screen()
    view = LiveView(Console(file=cast(IO[str], screen), force_terminal=True), footer=FOOTER)
    children = Children()
    drawing: asyncio.Task[None] | None = None
    began = time.monotonic()

    async def draw() -> None:
        while True:
            if not screen.stream.full:
                view.update(runtime.operations.status_document(), children.lines)
            await asyncio.sleep(REFRESH_S)

    def begin(document: dict[str, Any]) -> None:
        nonlocal drawing
        ready(document)
        drawing = asyncio.create_task(draw(), name="live view")

    view.say(f"starting {', '.join(runtime.options.agents) or 'the children'}")
    try:
        code = await runtime.run(begin, children)
        view.say(f"stopped after {time.monotonic() - began:.0f} s, state in {runtime.state.path}")
    finally:
        if drawing is not None:
            drawing.cancel()
        view.close()
        await asyncio.to_thread(screen.stream.close, _CLOSE_WAIT_S)
    return code


@final
class Children:
    """What the children printed last. Events come with the status document, so they are not kept here."""

    def __init__(self) -> None:
        self.lines: deque[tuple[str, str]] = deque(maxlen=LINES_KEPT)

    def event(self, level: int, text: str) -> None:
        """Part of the status document."""

    def show(self, name: str, data: bytes, is_error: bool) -> None:
        """Keep the last of these lines."""
        for line in data.splitlines()[-LINES_KEPT:]:
            self.lines.append((name, line.decode("utf-8", "replace")))

    def full(self) -> bool:
        """Never: what is old is forgotten."""
        return False

    def close(self) -> None:
        """Nothing is left to show."""


@final
class Screen:
    """Standard output for rich, by a thread: a terminal that is stopped must not stop the runtime."""

    def __init__(self) -> None:
        self.stream = Stream(sys.stdout.fileno())
        self.encoding = sys.stdout.encoding
        """Rich decides by it which characters it can draw with."""

    def write(self, text: str, /) -> int:
        """Queue it."""
        self.stream.write(text.encode(self.encoding, "replace"))
        return len(text)

    def flush(self) -> None:
        """The thread writes as soon as it can."""

    def isatty(self) -> bool:
        """It is one, or there would be no live view."""
        return True

    def fileno(self) -> int:
        """Where it ends up."""
        return sys.stdout.fileno()
