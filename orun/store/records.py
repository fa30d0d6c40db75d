"""The records of the log: their kinds, flags and payload layouts.

The engine frames every record (header, CRC32C, chain); this module says what the payloads hold.
All integers are little endian. The layouts are fixed binary ones, not MessagePack, so that a
replay can slice out keys and values without decoding any of them.

REQUEST   the client's frame body, byte for byte (see ``orun.worker.wire``); ``ref`` is 0, or the LSN
          of the first delivery when a request is delivered again.
EFFECT    what a request changed and answered; ``ref`` is the LSN of its first REQUEST record.
STEP      the journaled result of ``ctx.step``; ``ref`` is the LSN of the first REQUEST record;
          payload: MessagePack ``[name, result]``.
DEAD      a request set aside; ``ref`` as for EFFECT; payload laid out as an EFFECT without changes
          whose reply is the error that its caller gets.
RESTORE   changes (as in an EFFECT) that bring the state back to an earlier LSN, kept in ``ref``.
EPOCH     the first record of every worker's journal: MessagePack ``{"version", "reason", "attempt_of"}``.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass


class Kind(enum.IntEnum):
    """What a record is."""

    REQUEST = 1
    EFFECT = 2
    STEP = 3
    DEAD = 4
    RESTORE = 5
    EPOCH = 6


FLAG_KEYED = 1
"""On EFFECT and DEAD: the record carries an idempotency key."""
FLAG_READONLY = 2
"""On REQUEST: no effect will follow, and the request is never delivered again."""
FLAG_MORE = 4
"""On RESTORE: the next record continues this restore."""

KEY_BYTES_MAX = 400
"""A block's key, in UTF-8. LMDB's keys end at 511 bytes, and a version and escapes are added."""

KEY_STORED_MAX = 500
"""A block's key as it is stored: each NUL in it takes two bytes."""

_EFFECT = struct.Struct("<BBHII16s")
_CHANGE = struct.Struct("<HHI")
_LAYOUT = 1
_DELETED = 1
NO_ID = bytes(16)
_KEY_CHECKED = KEY_STORED_MAX // 2
"""A shorter key fits whatever it holds: no byte is stored as more than two."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What one request did. ``changes`` maps a block's key to its encoded value, or None: deleted."""

    reply: bytes
    ok: bool
    changes: tuple[tuple[bytes, bytes | None], ...] = ()
    request_id: bytes = NO_ID
    key: bytes = b""


def encode_effect(
    reply: bytes,
    ok: bool,
    changes: Iterable[tuple[bytes, bytes | None]] = (),
    request_id: bytes = NO_ID,
    key: bytes = b"",
) -> bytes:
    """Lay out an EFFECT payload; ``reply`` is the encoded reply body.

    Raises ValueError for a block key that has no place in the database.
    """
    parts = [b"", key, reply]
    count = 0
    for name, value in changes:
        count += 1
        size = len(name)
        if size > _KEY_CHECKED and size + name.count(0) > KEY_STORED_MAX:
            raise ValueError(f"the block key {name[:20]!r}... is too long")
        if value is None:
            parts += (_CHANGE.pack(size, _DELETED, 0), name)
        else:
            parts += (_CHANGE.pack(size, 0, len(value)), name, value)
    parts[0] = _EFFECT.pack(_LAYOUT, 0 if ok else 1, len(key), len(reply), count, request_id)
    return b"".join(parts)


def decode_effect(payload: bytes | memoryview) -> Effect:
    """Read an EFFECT, DEAD or RESTORE payload. Raises ValueError when the layout is not one we know."""
    reply, ok, changes, request_id, key = unpack_effect(payload)
    return Effect(reply, ok, tuple(changes), request_id, key)


def unpack_effect(
    payload: bytes | memoryview,
) -> tuple[bytes, bool, list[tuple[bytes, bytes | None]], bytes, bytes]:
    """The fields of an Effect, in its order, without one: a replay reads ten thousand of these."""
    data = bytes(payload)
    layout, outcome, key_size, reply_size, count, request_id = _EFFECT.unpack_from(data)
    if layout != _LAYOUT:
        raise ValueError(f"effect layout {layout} is not known")
    reply_at = _EFFECT.size + key_size
    at = reply_at + reply_size
    key = data[_EFFECT.size : reply_at]
    reply = data[reply_at:at]
    changes: list[tuple[bytes, bytes | None]] = []
    for _ in range(count):
        name_size, flags, value_size = _CHANGE.unpack_from(data, at)
        at += _CHANGE.size
        end = at + name_size
        if flags & _DELETED:
            changes.append((data[at:end], None))
            at = end
        else:
            changes.append((data[at:end], data[end : end + value_size]))
            at = end + value_size
    return reply, outcome == 0, changes, request_id, key


def iterate_changes(payload: bytes | memoryview) -> list[tuple[bytes, bytes | None]]:
    """The changes of an EFFECT or RESTORE payload."""
    return unpack_effect(payload)[2]
