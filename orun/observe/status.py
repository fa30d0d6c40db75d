"""The status document as text: agents in a table, and below it the supervision tree.

The document is what ``orun status --json`` prints. Read here, with everything but the first line optional::

    {"schema": 1, "state_dir": TEXT, "pid": GUARD, "runtime_pid": N, "started": UNIX, "http": "HOST:PORT" | null,
     "agents": [{"name", "pid", "state", "restarts", "version", "lsn", "last_checkpoint", "requests", "errors",
                 "durable_lsn", "queued", "in_flight", "requests_per_s", "p50_ms", "p99_ms", "detail"}],
     "tree": {"name", "kind", "pid", "state", "restarts", "detail", "children": [...]},
     "events": [{"time": UNIX, "text": TEXT}]}

``last_checkpoint`` is null or ``{"id", "lsn", "time"}``. Nothing here imports rich: the command must be quick.
"""

from __future__ import annotations

import time

from orun.units import format_age, format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

COLUMNS = (
    "agent",
    "state",
    "pid",
    "version",
    "requests",
    "errors",
    "restarts",
    "req/s",
    "p50",
    "p99",
    "log",
    "checkpoint",
)
LEFT_OUT = ("version", "p50", "req/s", "log", "p99", "restarts", "errors", "checkpoint")
"""Columns that go first when the terminal is too narrow for all, in this order."""
EVENTS_SHOWN = 5
STYLES = {
    "running": "green",
    "starting": "yellow",
    "waiting": "yellow",
    "stopping": "yellow",
    "stopped": "dim",
    "finished": "dim",
}
_ANSI = {"green": "32", "yellow": "33", "red": "31", "dim": "2", "bold": "1"}


def render(
    document: Mapping[str, Any], *, styled: bool = False, now: float | None = None, width: int | None = None
) -> str:
    """The whole of ``orun status`` for people. ``width``: of the terminal, where there is one."""
    now = time.time() if now is None else now
    parts = [heading(document, now)]
    rows = agent_rows(document, now)
    if rows:
        parts.append("\n".join(table_lines(rows, styled=styled, width=width)))
    if document.get("tree"):
        parts.append("\n".join(tree_lines(document["tree"], styled=styled)))
    events = event_lines(document, now)
    if events:
        parts.append("\n".join(events))
    return "\n\n".join(parts)


def heading(document: Mapping[str, Any], now: float) -> str:
    """One line: what runs where, and since when."""
    text = f"orun pid {document['pid']}"
    if document.get("started"):
        text += f", up {format_duration(int(max(1.0, now - document['started'])))}"
    if document.get("http"):
        text += f", http://{document['http']}"
    return f"{text}, state in {document['state_dir']}"


def agent_rows(document: Mapping[str, Any], now: float) -> list[tuple[str, ...]]:
    """The cells of the agents' table, in the order of COLUMNS."""
    return [
        (
            agent["name"],
            agent.get("state", "-") + (f" ({agent['detail']})" if agent.get("detail") else ""),
            _text(agent.get("pid")),
            _text(agent.get("version"))[:12],
            _text(agent.get("requests")),
            _text(agent.get("errors")),
            _text(agent.get("restarts")),
            _number(agent.get("requests_per_s")),
            _milliseconds(agent.get("p50_ms")),
            _milliseconds(agent.get("p99_ms")),
            _log_position(agent),
            _checkpoint(agent.get("last_checkpoint"), now),
        )
        for agent in document.get("agents", ())
    ]


def tree_lines(node: Mapping[str, Any], *, styled: bool = False, lead: str = "", branch: str = "") -> list[str]:
    """The supervision tree, one process a line."""
    words = [str(node["name"])]
    if node.get("kind"):
        words.append(f"({node['kind']})")
    if node.get("pid"):
        words.append(f"pid {node['pid']}")
    if node.get("state"):
        words.append(paint_state(node["state"], styled))
    if node.get("restarts"):
        words.append(f"restarts {node['restarts']}")
    if node.get("detail"):
        words.append(f"- {node['detail']}")
    lines = [lead + branch + " ".join(words)]
    below = lead + ("" if not branch else "   " if branch.startswith("└") else "│  ")
    children = node.get("children", ())
    for number, child in enumerate(children):
        last = number == len(children) - 1
        lines += tree_lines(child, styled=styled, lead=below, branch="└─ " if last else "├─ ")
    return lines


def event_lines(document: Mapping[str, Any], now: float, *, shown: int = EVENTS_SHOWN) -> list[str]:
    """The latest events, oldest first, each with its age."""
    return [
        f"{format_age(now - event['time']):>10}  {event['text']}" for event in list(document.get("events", ()))[-shown:]
    ]


def paint_state(state: str, styled: bool) -> str:
    """A state in the colour of its urgency."""
    style = STYLES.get(state.split(" ", 1)[0])
    return f"\x1b[{_ANSI[style]}m{state}\x1b[0m" if styled and style else state


def table_lines(rows: list[tuple[str, ...]], *, styled: bool = False, width: int | None = None) -> list[str]:
    """The agents' table, a line each; columns are left out where it would be wider than ``width``."""
    cells = [tuple(column.upper() for column in COLUMNS), *rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(COLUMNS))]
    shown = list(range(len(COLUMNS)))
    for name in LEFT_OUT:
        if width is None or sum(widths[at] for at in shown) + 2 * (len(shown) - 1) <= width:
            break
        shown.remove(COLUMNS.index(name))
    lines = []
    for number, row in enumerate(cells):
        parts = [row[at].ljust(widths[at]) for at in shown]
        if number == 0 and styled:
            parts[0], parts[-1] = f"\x1b[1m{parts[0]}", f"{parts[-1].rstrip()}\x1b[0m"
        elif styled:
            parts[1] = paint_state(row[1], True) + " " * (widths[1] - len(row[1]))
        lines.append("  ".join(parts).rstrip())
    return lines


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else format_duration(value / 1000)


def _log_position(agent: Mapping[str, Any]) -> str:
    lsn, durable = agent.get("lsn"), agent.get("durable_lsn")
    if lsn is None:
        return "-"
    return str(lsn) if durable is None or durable >= lsn else f"{lsn} ({lsn - durable} not on disk)"


def _checkpoint(checkpoint: Any, now: float) -> str:
    if not isinstance(checkpoint, dict):
        return _text(checkpoint)
    text = str(checkpoint.get("id", checkpoint.get("lsn", "-")))
    if checkpoint.get("time"):
        text += f", {format_age(now - checkpoint['time'])}"
    return text
