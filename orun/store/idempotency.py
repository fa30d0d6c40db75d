"""Idempotency keys: the reply to each, filed in the same transaction as the effect it came from.

One database for each agent: ``k`` + key -> row [ok, reply, LSN, expiry]; ``l`` + LSN -> the key.
All replies are kept equally long, so the order of LSNs is the order of expiry: the sweep reads from
the front, and a restore removes from the back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from orun.engine.journal import RecordView
from orun.errors import Damaged
from orun.store import rows
from orun.store.environment import Txn
from orun.store.records import FLAG_KEYED, Kind, decode_effect
from orun.store.rows import LSN

SWEEP_ROWS = 64
"""Entries looked at in one sweep: it runs inside a commit."""


def _database(agent: str) -> str:
    return f"idem/{agent}"


@final
class StoredReply:
    """The reply to an idempotency key."""

    __slots__ = ("expiry_ms", "lsn", "ok", "reply")

    def __init__(self, ok: bool, reply: bytes, lsn: int, expiry_ms: int) -> None:
        self.ok = ok
        self.reply = reply
        self.lsn = lsn
        self.expiry_ms = expiry_ms


def put(txn: Txn, agent: str, record: RecordView, ttl_ms: int) -> None:
    """File the reply of a keyed EFFECT or DEAD record."""
    assert record.flags & FLAG_KEYED
    assert record.kind in (Kind.EFFECT, Kind.DEAD)
    effect = decode_effect(record.payload)
    stored_key = b"k" + effect.key
    row = [effect.ok, effect.reply, record.lsn, record.time_ms + ttl_ms]
    txn.put(_database(agent), stored_key, rows.pack(stored_key, row))
    txn.append(_database(agent), b"l" + LSN.pack(record.lsn), effect.key)


def get(txn: Txn, agent: str, key: bytes, now_ms: int) -> StoredReply | None:
    """The reply to a key, when there is one and it has not expired."""
    stored_key = b"k" + key
    row = txn.get(_database(agent), stored_key)
    if row is None:
        return None
    reply = StoredReply(*rows.unpack(stored_key, row, f"reply to idempotency key {key!r} of {agent}"))
    return reply if reply.expiry_ms > now_ms else None


def sweep(txn: Txn, agent: str, now_ms: int) -> int:
    """Remove expired entries from the front, a few at a time; returns how many."""
    removed = 0
    for lsn, key in list(_index(txn, agent, 0, SWEEP_ROWS)):
        stored = _entry_or_none(txn, agent, key)
        if stored is not None and stored.lsn == lsn:
            if stored.expiry_ms > now_ms:
                break
            txn.delete(_database(agent), b"k" + key)
        txn.delete(_database(agent), b"l" + LSN.pack(lsn))
        removed += 1
    return removed


def drop_after(txn: Txn, agent: str, lsn: int) -> int:
    """Forget the replies filed after ``lsn``: the effects they speak of are undone."""
    removed = 0
    for entry_lsn, key in list(_index(txn, agent, lsn + 1, None)):
        stored = _entry_or_none(txn, agent, key)
        if stored is not None and stored.lsn == entry_lsn:
            txn.delete(_database(agent), b"k" + key)
        txn.delete(_database(agent), b"l" + LSN.pack(entry_lsn))
        removed += 1
    return removed


def verify(txn: Txn, agent: str) -> Iterator[tuple[int, str]]:
    """LSN (0: not known) and complaint for each damaged entry."""
    for lsn, key in _index(txn, agent, 0, None):
        try:
            _entry(txn, agent, key)
        except Damaged as error:
            yield lsn, error.message


def _index(txn: Txn, agent: str, from_lsn: int, count: int | None) -> Iterator[tuple[int, bytes]]:
    for number, (key, value) in enumerate(txn.rows(_database(agent), b"l" + LSN.pack(from_lsn))):
        if number == count:
            return
        yield LSN.unpack_from(key, 1)[0], bytes(value)


def _entry_or_none(txn: Txn, agent: str, key: bytes) -> StoredReply | None:
    # A damaged entry must not stop the commit that the sweep is part of. It stays, and who asks for it is told.
    try:
        return _entry(txn, agent, key)
    except Damaged:
        return None


def _entry(txn: Txn, agent: str, key: bytes) -> StoredReply | None:
    stored_key = b"k" + key
    row = txn.get(_database(agent), stored_key)
    if row is None:
        return None
    return StoredReply(*rows.unpack(stored_key, row, f"reply to idempotency key {key!r} of {agent}"))
