"""Times as people type them: a log position, an ISO time, or how long ago."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from orun.errors import UsageError
from orun.units import parse_duration


def parse_moment(text: str, *, now: float | None = None) -> dict[str, Any]:
    """``{"at_lsn": N}`` or ``{"at_ms": UNIX_MS}``: a bare number is a log position."""
    if text.isdecimal():
        return {"at_lsn": int(text)}
    return {"at_ms": int(parse_time(text, "--at", now=now) * 1000)}


def parse_time(text: str, option: str, *, now: float | None = None) -> float:
    """Unix time of an ISO time, local unless it names a zone, or of an age such as ``10m`` (``10m ago``)."""
    now = time.time() if now is None else now
    try:
        return now - parse_duration(text.removesuffix("ago").strip())
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"{option}: cannot read the time {text!r}",
            hint="for example 2026-11-21T10:05:00Z, 2026-11-21 10:05, or 10m for ten minutes ago",
        ) from error
    return moment.timestamp()
