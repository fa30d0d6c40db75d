"""Sizes and durations with units, read and written the same way everywhere.

A size counts in powers of 1024 whichever way it is spelled (``4MB``, ``4MiB``, ``4m``): some of them must
be powers of two, and nobody should have to remember which.
"""

from __future__ import annotations

_DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_duration(text: str) -> float:
    """Seconds in ``"30s"``, ``"500ms"``, ``"1h30m"`` or a bare number of seconds. Raises ValueError."""
    whole = rest = text.strip()
    total = 0.0
    if not rest:
        raise ValueError("expected a duration such as 30s, got nothing")
    while rest:
        number, rest = _leading_number(rest)
        unit, rest = _leading_letters(rest)
        if not number or (unit not in _DURATIONS and number != whole):
            raise ValueError(f"expected a duration such as 500ms, 30s or 1h30m, got {text!r}")
        total += float(number) * _DURATIONS[unit or "s"]
    return total


def parse_size(text: str) -> int:
    """Bytes in ``"4MB"``, ``"512k"`` or a bare number of bytes. Raises ValueError."""
    number, unit = _leading_number(text.strip())
    letters = unit.strip().upper().removesuffix("B").removesuffix("I")
    if not number or letters not in _SIZES:
        raise ValueError(f"expected a size such as 512KB, 4MB or 1GB, got {text!r}")
    return int(float(number) * _SIZES[letters])


def format_duration(seconds: float) -> str:
    """A duration for people, at most two units: ``1h05m``, ``42s``, ``3.4ms``."""
    if seconds < 1:
        return f"{seconds * 1000:.3g}ms"
    if seconds < 60:
        return f"{seconds:.3g}s"
    minutes, second = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{second:02}s"
    hours, minute = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minute:02}m"
    return f"{hours // 24}d{hours % 24:02}h"


def format_age(seconds: float) -> str:
    """How long ago, in whole seconds: ``now``, ``42s ago``, ``1h05m ago``."""
    return "now" if seconds < 1 else f"{format_duration(int(seconds))} ago"


def format_count(number: int, noun: str) -> str:
    """A number of things, as people say it: ``1 block``, ``3 blocks``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_size(size_bytes: float) -> str:
    """A size for people: ``812 B``, ``4.2 MB``."""
    if size_bytes < 1024:
        return f"{int(size_bytes)} B"
    for unit in "KMG":
        size_bytes /= 1024
        if size_bytes < 1024:
            return f"{size_bytes:.1f} {unit}B"
    return f"{size_bytes / 1024:.1f} TB"


def _leading_number(text: str) -> tuple[str, str]:
    end = 0
    while end < len(text) and (text[end] in "0123456789."):
        end += 1
    number = text[:end]
    if number.count(".") > 1 or number == ".":
        return "", text
    return number, text[end:]


def _leading_letters(text: str) -> tuple[str, str]:
    end = 0
    while end < len(text) and text[end].isalpha():
        end += 1
    return text[:end], text[end:]
