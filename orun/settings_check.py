"""What a setting must satisfy beyond its type. A limit that cannot be kept is refused here, at the start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from orun.errors import UsageError
from orun.settings import ChildSettings, Settings

RING_BYTES_MIN = 64 << 10


def _positive(value: Any) -> bool:
    return bool(value > 0)


def _at_least_one(value: Any) -> bool:
    return bool(value >= 1)


def _ring(value: int) -> bool:
    return value >= RING_BYTES_MIN and value & (value - 1) == 0


def _address(value: str) -> bool:
    if not value:
        return True
    host, colon, port = value.rpartition(":")
    return bool(colon and host) and port.isdigit() and int(port) < 65536


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "runtime.standby": (lambda value: value in (0, 1), "must be 0 or 1"),
    "runtime.period": (_positive, "must be more than 0"),
    "runtime.stale": (_positive, "must be more than 0"),
    "runtime.start_timeout": (_positive, "must be more than 0"),
    "runtime.http": (_address, "must be HOST:PORT, for example 127.0.0.1:4000"),
    "agent.queue_limit": (_at_least_one, "must be at least 1"),
    "agent.concurrency": (_at_least_one, "must be at least 1"),
    "agent.handler_timeout": (_positive, "must be more than 0"),
    "agent.request_bytes_max": (_at_least_one, "must be at least 1"),
    "agent.attempts_max": (_at_least_one, "must be at least 1"),
    "store.ring_bytes": (_ring, f"must be a power of two and at least {RING_BYTES_MIN >> 10}KB"),
    "store.map_bytes": (lambda value: value >= 1 << 20, "must be at least 1MB"),
    "store.segment_bytes": (lambda value: value >= 1 << 16, "must be at least 64KB"),
    "store.checkpoints_kept": (_at_least_one, "must be at least 1"),
    "logs.files": (_at_least_one, "must be at least 1"),
}


def check(settings: Settings, origins: Mapping[str, str]) -> None:
    """Raise UsageError for the first value that cannot be kept, naming the key and where it was set."""
    for name, value in _numbers_and_rules(settings):
        place = origins.get(name, "default")
        if isinstance(value, int | float) and value < 0:
            raise UsageError(f"{place}: {name} must not be negative, got {value}")
        rule = _RULES.get(name)
        if rule is not None and not rule[0](value):
            raise UsageError(f"{place}: {name} {rule[1]}, got {value!r}")
    if settings.agent.request_bytes_max > settings.store.ring_bytes // 2:
        raise UsageError(
            f"agent.request_bytes_max ({settings.agent.request_bytes_max}) is over half of store.ring_bytes "
            f"({settings.store.ring_bytes})",
            hint="a request must fit into the worker's journal; raise store.ring_bytes",
        )
    _check_children(settings.children)


def _numbers_and_rules(settings: Settings) -> Iterator[tuple[str, Any]]:
    for section in ("runtime", "agent", "store", "logs"):
        part = getattr(settings, section)
        for name in part.__slots__:
            yield f"{section}.{name}", getattr(part, name)


def _check_children(children: tuple[ChildSettings, ...]) -> None:
    seen: set[str] = set()
    for number, child in enumerate(children, 1):
        what = f"[[children]] number {number}" + (f" ({child.name})" if child.name else "")
        if not child.name:
            raise UsageError(f"{what}: name is missing", hint='name = "web"')
        if not child.name.replace("-", "").replace("_", "").replace(".", "").isalnum() or child.name[0] in ".-":
            raise UsageError(f"{what}: a name has letters, digits, - _ and . only, as it names a log file")
        if child.name in seen:
            raise UsageError(f"{what}: the name is taken by another child")
        seen.add(child.name)
        if not child.command:
            raise UsageError(f"{what}: command is missing", hint='command = ["python", "-m", "http.server"]')
        kind, _, value = child.ready.partition(":")
        if kind not in ("", "notify", "port", "command") or (kind == "port" and not value.isdigit()):
            raise UsageError(f"{what}: ready must be notify, port:NUMBER or command:CMD, got {child.ready!r}")
        if kind == "command" and not value.strip():
            raise UsageError(f"{what}: ready names no command")
