"""The live view of a terminal: agents, the tree and the latest events, redrawn in place.

Rich does the drawing and is loaded when the first view is made, never before. Elsewhere than on a terminal
``PlainLines`` says the same as one line for every event, with its time, and nothing else.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from orun.observe import status
from orun.observe.logs import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from rich.console import Console, RenderableType

EVENTS_SHOWN = 8
KEYS_COLUMNS = 4
"""Left free at the end of the last line: the terminal writes ``^C`` there, which must not begin another line."""


class LiveView:
    """Shows status documents on a terminal. A context manager: leaving it gives the terminal back."""

    def __init__(self, console: Console, *, footer: str = "", clock: Callable[[], float] = time.time) -> None:
        from rich.live import Live

        self._console = console
        self._footer = footer
        self._clock = clock
        # Drawn when a document comes and at no other time, so that nothing of rich runs in a thread of its own.
        # Taken away at the end: a picture of what no longer runs would be a false one.
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")

    def __enter__(self) -> LiveView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, document: Mapping[str, Any], output: Iterable[tuple[str, str]] = ()) -> None:
        """Draw this document in place of the one before; ``output``: names and lines that children printed."""
        if not self._live.is_started:
            self._live.start()
        width, height = self._console.size
        picture = draw(document, self._clock(), width, height - 1, self._footer, list(output))
        self._live.update(picture, refresh=True)

    def say(self, text: str) -> None:
        """A line that stays, in place of the picture."""
        self.close()
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Take the picture away and give the terminal back."""
        if self._live.is_started:
            self._live.stop()


class PlainLines:
    """The same news for a pipe or a file: each event once, as a line."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._last: tuple[float, str] | None = None

    def update(self, document: Mapping[str, Any]) -> None:
        """Write the events that came since the last document."""
        events = [(float(event["time"]), str(event["text"])) for event in document.get("events", ())]
        start = events.index(self._last) + 1 if self._last in events else 0
        for at, text in events[start:]:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
            self._write(f"{stamp} {text}")
        if events:
            self._last = events[-1]


def draw(
    document: Mapping[str, Any],
    now: float,
    width: int,
    height: int,
    footer: str = "",
    output: Sequence[tuple[str, str]] = (),
) -> RenderableType:
    """One picture of a status document, no higher than ``height`` lines."""
    from rich.text import Text

    head = [status.heading(document, now)]
    rows = status.agent_rows(document, now)
    if rows:
        head += ["", *status.table_lines(rows, styled=True, width=width)]
    tree = status.tree_lines(document["tree"], styled=True) if document.get("tree") else []
    events = status.event_lines(document, now, shown=EVENTS_SHOWN)
    printed = [f"{name} | {clean(line, coloured=False)}" for name, line in output]
    # What is new counts most; the tree hardly ever changes, so it gives way first.
    left = height - len(head) - 2
    events = _last(events, max(2, left // 3))
    printed = _last(printed, max(2, left - len(events) - len(tree) - 3))
    tree = _first(tree, left - len(events) - len(printed) - 3)
    footer = footer[: max(0, width - KEYS_COLUMNS)]
    parts = [part for part in (head, tree, events, printed, [footer]) if any(part)]
    text = Text.from_ansi("\n\n".join("\n".join(part) for part in parts), no_wrap=True, overflow="crop")
    text.stylize("bold", 0, len(head[0]))
    if footer:
        text.stylize("dim", len(text) - len(footer))
    return text


def _first(lines: list[str], count: int) -> list[str]:
    if len(lines) <= count:
        return lines
    return [*lines[: max(0, count - 1)], f"... {len(lines) - max(0, count - 1)} more"] if count > 0 else []


def _last(lines: list[str], count: int) -> list[str]:
    return lines[-count:] if count > 0 else []
