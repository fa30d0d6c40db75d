"""The live view of a terminal: agents, the tree and the latest events, redrawn in place.

Rich does the drawing and is loaded when the first view is made, never before. Elsewhere than on a terminal
``PlainLines`` says the same as one line for every event, with its time, and nothing else.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from orun.observe import status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from rich.console import Console, RenderableType

EVENTS_SHOWN = 8


class LiveView:
    """Shows status documents on a terminal. A context manager: leaving it gives the terminal back."""

    def __init__(self, console: Console, *, footer: str = "", clock: Callable[[], float] = time.time) -> None:
        from rich.live import Live

        self._console = console
        self._footer = footer
        self._clock = clock
        # Drawn when a document comes and at no other time, so that nothing of rich runs in a thread of its own.
        self._live = Live(console=console, auto_refresh=False, transient=False, vertical_overflow="crop")

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, document: Mapping[str, Any]) -> None:
        """Draw this document in place of the one before."""
        if not self._live.is_started:
            self._live.start()
        self._live.update(draw(document, self._clock(), self._console.width, self._footer), refresh=True)

    def close(self) -> None:
        """Leave the last picture standing and give the terminal back."""
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


def draw(document: Mapping[str, Any], now: float, width: int, footer: str = "") -> RenderableType:
    """One picture of a status document."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
    narrow = width < 110
    hidden = {"version", "req/s", "errors"} if narrow else set()
    for column in status.COLUMNS:
        if column not in hidden:
            table.add_column(column, no_wrap=True, justify="left" if column in ("agent", "state") else "right")
    for row in status.agent_rows(document, now):
        cells = [
            Text(text, style=status.STYLES.get(text.split(" ", 1)[0], "") if column == "state" else "")
            for column, text in zip(status.COLUMNS, row, strict=True)
            if column not in hidden
        ]
        table.add_row(*cells)
    parts: list[RenderableType] = [Text(status.heading(document, now), style="bold"), table]
    if document.get("tree"):
        parts.append(Text("\n".join(status.tree_lines(document["tree"])), style="dim"))
    events = status.event_lines(document, now, shown=EVENTS_SHOWN)
    if events:
        parts += [Text(""), Text("\n".join(events))]
    if footer:
        parts += [Text(""), Text(footer, style="dim")]
    return Group(*parts)
