"""The documents of the store's commands as text for people."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from orun.cli import output
from orun.errors import Damaged
from orun.units import format_count, format_size


def checkpoints(document: Mapping[str, Any]) -> str:
    """The list of checkpoints."""
    rows = [
        (
            entry["id"],
            entry["agent"],
            entry["lsn"],
            moment(entry.get("time")),
            entry.get("blocks"),
            _size(entry.get("bytes")),
        )
        for entry in document["checkpoints"]
    ]
    if not rows:
        return "no checkpoint yet"
    return _table(("id", "agent", "log position", "time", "blocks", "size"), rows)


def verified_checkpoints(document: Mapping[str, Any]) -> str:
    """What a verification of checkpoints found."""
    lines = [
        f"{entry['id']}: {'ok' if entry.get('ok') else 'DAMAGED: ' + str(entry.get('problem'))}"
        for entry in document["checkpoints"]
    ]
    return "\n".join(lines) or "no checkpoint yet"


def verified_log(document: Mapping[str, Any]) -> str:
    """What a verification of the log found."""
    lines = []
    for entry in document["agents"]:
        problems = entry.get("problems", ())
        counts = ", ".join(format_count(entry[f"{what}s"], what) for what in ("record", "block", "checkpoint"))
        lines.append(f"{entry['agent']}: {counts}: {'DAMAGED' if problems else 'ok'}")
        lines += [f"  {problem['text']}" for problem in problems]
    return "\n".join(lines) or "no log yet"


def records(document: Mapping[str, Any]) -> str:
    """Records of the log."""
    rows = [
        (
            entry["agent"],
            entry["lsn"],
            entry["kind"],
            moment(entry.get("time")),
            entry.get("ref") or None,
            _size(entry.get("bytes")),
            entry.get("summary"),
        )
        for entry in document["records"]
    ]
    return _table(("agent", "log position", "kind", "time", "of", "size", "what"), rows) if rows else "no record there"


def deadletters(document: Mapping[str, Any]) -> str:
    """Requests that were set aside."""
    rows = [
        (
            entry["id"],
            entry["agent"],
            entry.get("handler"),
            moment(entry.get("time")),
            entry.get("attempts"),
            entry.get("error"),
        )
        for entry in document["deadletters"]
    ]
    return _table(("id", "agent", "handler", "time", "attempts", "error"), rows) if rows else "no dead letters"


def fields(entry: Mapping[str, Any]) -> str:
    """One thing, a field a line."""
    width = max((len(name) for name in entry), default=0)
    return "\n".join(f"{name.ljust(width)}  {_value(name, value)}" for name, value in entry.items())


def verdict(document: Mapping[str, Any]) -> int:
    """The exit code of a verification."""
    return 0 if document.get("ok", True) else Damaged.code


def moment(seconds: float | None) -> str | None:
    """A unix time in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    return output.table(header, rows, styled=output.colour(sys.stdout))


def _size(size_bytes: int | None) -> str | None:
    return None if size_bytes is None else format_size(size_bytes)


def _value(name: str, value: Any) -> str:
    if name == "time" and isinstance(value, int | float):
        return moment(value) or ""
    return value if isinstance(value, str) else output.to_json(value)
