"""A request on its way through a worker: parsed, checked, and remembered until its reply has left."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Protocol, final

from orun.worker import wire
from orun.worker.agent import Handler

KEY_BYTES_MAX = 200
ID_BYTES = 16


class Caller(Protocol):
    """Somebody who waits for a reply."""

    def reply(self, seq: int, ok: bool, body: bytes) -> None:
        """Send a reply whose body is encoded."""


@final
@dataclass(slots=True, eq=False)
class Request:
    """One request. ``callers`` grows when the same request arrives again before it is answered."""

    handler: Handler | None
    payload: Any
    frame: bytes
    request_id: bytes
    key: bytes
    deadline_ms: int | None
    received_ns: int
    callers: list[tuple[Caller, int]] = field(default_factory=list)
    attempt: int = 1
    first_lsn: int = 0
    conflicts: int = 0
    steps: dict[str, Any] = field(default_factory=dict)


class Refused(Exception):
    """A request that is answered with an error before anything is logged."""

    def __init__(self, kind: wire.ErrorType, message: str, **more: Any) -> None:
        super().__init__(message)
        self.body = wire.error_body(kind, message, **more)


@final
@dataclass(frozen=True, slots=True)
class Envelope:
    """The parts of a frame."""

    seq: int
    handler: str
    payload: Any
    request_id: bytes
    key: bytes
    deadline_ms: int | None


def parse(frame: bytes) -> Envelope:
    """Read a frame's body. Raises wire.BadFrame when it is no request, Refused when a part of it is wrong."""
    parts = wire.unpack(frame)
    if not isinstance(parts, list) or len(parts) not in (3, 4):
        raise wire.BadFrame("a request is [seq, handler, payload, options]")
    seq, handler, payload = parts[:3]
    options = parts[3] if len(parts) == 4 else None
    if type(seq) is not int or not 0 <= seq < 1 << 63 or not isinstance(handler, str):
        raise wire.BadFrame("a request is [seq: int, handler: text, payload, options: map]")
    if not options:
        return Envelope(seq, handler, payload, b"", b"", None)
    if not isinstance(options, dict):
        raise wire.BadFrame("a request's options are a map")
    request_id = options.get("id", b"")
    key = options.get("key")
    deadline_ms = options.get("deadline_ms")
    if not isinstance(request_id, bytes) or len(request_id) not in (0, ID_BYTES):
        raise wire.BadFrame(f"a request's id is {ID_BYTES} bytes")
    if key is not None and (not isinstance(key, str) or not 0 < len(key.encode()) <= KEY_BYTES_MAX):
        raise wire.BadFrame(f"an idempotency key is text of 1 to {KEY_BYTES_MAX} bytes")
    if deadline_ms is not None and type(deadline_ms) is not int:
        raise wire.BadFrame("deadline_ms is a whole number of milliseconds since 1970")
    return Envelope(seq, handler, payload, request_id, b"" if key is None else key.encode(), deadline_ms)


def did_you_mean(name: str, known: list[str]) -> dict[str, str]:
    """A hint for a name that does not exist."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return {"hint": f"did you mean {near[0]!r}?"}
    return {"hint": "handlers: " + ", ".join(sorted(known)[:20])} if known else {}


@final
class Answers:
    """Recent replies by request id and by idempotency key, so that a request sent again is not run again.

    Ids are kept for the last ``count_max`` requests, as far as their replies fit; they cover a client that
    re-sends after a broken connection. Keys are durable: what has left this memory is found in the store.
    """

    def __init__(self, count_max: int = 20_000, bytes_max: int = 16 << 20) -> None:
        self._by_id: OrderedDict[bytes, tuple[bool, bytes]] = OrderedDict()
        self._by_key: OrderedDict[bytes, tuple[bool, bytes]] = OrderedDict()
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._bytes = 0

    def remember(self, request_id: bytes, key: bytes, ok: bool, body: bytes) -> None:
        """Keep a reply under what names its request."""
        if request_id:
            self._keep(self._by_id, request_id, ok, body)
        if key:
            self._keep(self._by_key, key, ok, body)

    def _keep(self, table: OrderedDict[bytes, tuple[bool, bytes]], name: bytes, ok: bool, body: bytes) -> None:
        before = table.get(name)
        if before is not None:
            self._bytes -= len(before[1])
        table[name] = (ok, body)
        self._bytes += len(body)
        # The newest stays in any case: it is the one that is most likely to be asked for again.
        while len(table) > 1 and (len(table) > self._count_max or self._bytes > self._bytes_max):
            self._bytes -= len(table.popitem(last=False)[1][1])

    def forget_keys(self) -> None:
        """Leave the replies to idempotency keys to the store, for a restore has undone some of them."""
        self._bytes -= sum(len(body) for _, body in self._by_key.values())
        self._by_key.clear()

    def by_id(self, request_id: bytes) -> tuple[bool, bytes] | None:
        """The reply that a request id got, if it is recent."""
        return self._by_id.get(request_id) if request_id else None

    def by_key(self, key: bytes) -> tuple[bool, bytes] | None:
        """The reply that an idempotency key got, if it is recent."""
        return self._by_key.get(key) if key else None
