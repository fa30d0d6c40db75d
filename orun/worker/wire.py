"""Frames on a socket: four bytes of length, little endian, then one MessagePack value.

A request is ``[seq, handler, payload, options]`` and its reply ``[seq, ok, body]``. ``seq`` is chosen by
the client and means something on its connection only. ``options`` may hold ``id`` (16 bytes that name
the request for ever, so that it can be sent again after a broken connection), ``key`` (an idempotency
key), and ``deadline_ms`` (unix time). When ``ok`` is false the body is an error:
``{"type", "message", "retry_after"?, "hint"?, "where"?}``.
"""

from __future__ import annotations

import struct

import msgpack

TYPE_CHECKING = False  # typing would cost each command 8 ms
if TYPE_CHECKING:
    from typing import Any, Literal, TypeAlias

    ErrorType: TypeAlias = Literal[
        "bad_request",
        "unknown_handler",
        "busy",
        "deadline_exceeded",
        "handler_error",
        "timeout",
        "unencodable_reply",
        "too_large",
        "read_only",
        "unavailable",
        "interrupted",
        "dead_letter",
        "conflict",
    ]

HEADER_BYTES = 4
ENVELOPE_BYTES_MAX = 4096
"""What a frame may hold beside its payload: handler, identifiers and lengths."""

_LENGTH = struct.Struct("<I")


class BadFrame(ValueError):
    """Bytes that are not a frame of this protocol."""


class FrameTooLarge(BadFrame):
    """A frame announces more bytes than the receiver accepts."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"a frame of {size_bytes} bytes is over the limit of {limit_bytes}")
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


def pack(value: Any) -> bytes:
    """Encode a value as MessagePack. Raises TypeError, ValueError or OverflowError for what has no encoding."""
    return msgpack.packb(value, use_bin_type=True)  # type: ignore[no-any-return]


class Encoder:
    """``pack`` for one owner in one thread: it keeps its buffer, which makes it more than twice as fast."""

    __slots__ = ("_busy", "_pack")

    def __init__(self) -> None:
        self._pack = msgpack.Packer(use_bin_type=True).pack
        self._busy = False

    def __call__(self, value: Any) -> bytes:
        """As ``pack``."""
        if self._busy:
            # A user's mapping may come back here while it is being encoded; the buffer is in use then.
            return pack(value)
        self._busy = True
        try:
            return self._pack(value)  # type: ignore[no-any-return]
        finally:
            self._busy = False


def unpack(body: bytes | memoryview) -> Any:
    """Decode one MessagePack value. Raises BadFrame for anything malformed, too deep or not UTF-8."""
    try:
        return msgpack.unpackb(body, raw=False, strict_map_key=False)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError, TypeError) as error:
        raise BadFrame(f"not a MessagePack value: {str(error) or type(error).__name__}") from error


def encode(value: Any) -> bytes:
    """One frame around a value."""
    body = pack(value)
    return _LENGTH.pack(len(body)) + body


def encode_reply(seq: int, ok: bool, body: bytes) -> bytes:
    """The frame of a reply whose body is encoded already: ``[seq, ok, body]`` without a second pass."""
    outcome = b"\xc3" if ok else b"\xc2"
    return b"".join((_LENGTH.pack(11 + len(body)), b"\x93\xcf", seq.to_bytes(8, "big"), outcome, body))


def error_body(kind: ErrorType, message: str, **more: Any) -> dict[str, Any]:
    """The body of a reply that reports a failure."""
    return {"type": kind, "message": message, **more}


class Decoder:
    """Cuts a stream of bytes into frame bodies, whatever way it was split on its way."""

    __slots__ = ("_limit", "_rest")

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies completed by ``data``. Raises FrameTooLarge; the stream is unusable from then on."""
        if self._rest:
            self._rest += data
            # A large body arrives in many pieces: look at the length before anything is copied.
            if len(self._rest) < HEADER_BYTES + self._announced():
                return []
            data = bytes(self._rest)
            self._rest.clear()
        bodies = []
        at = 0
        end = len(data)
        while end - at >= HEADER_BYTES:
            (size,) = _LENGTH.unpack_from(data, at)
            if size > self._limit:
                raise FrameTooLarge(size, self._limit)
            if end - at - HEADER_BYTES < size:
                break
            at += HEADER_BYTES
            bodies.append(data[at : at + size])
            at += size
        if at < end:
            self._rest += memoryview(data)[at:]
        return bodies

    def _announced(self) -> int:
        if len(self._rest) < HEADER_BYTES:
            return 0
        (size,) = _LENGTH.unpack_from(self._rest)
        if size > self._limit:
            raise FrameTooLarge(size, self._limit)
        return int(size)
