"""Dead letters: requests set aside because they ended their worker too often.

Filed by the recorder when it commits a DEAD record, in the same transaction, with the request as it
came, so that it can be sent again whatever becomes of the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from orun.engine.journal import RecordView
from orun.errors import Damaged, NotFound
from orun.store import log, rows
from orun.store.environment import Txn
from orun.store.frames import FrameCodec
from orun.store.records import Kind, decode_effect
from orun.store.rows import LSN


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One request that was set aside."""

    lsn: int
    """LSN of the request's first delivery; its name in the list."""
    dead_lsn: int
    """LSN of the record that set it aside."""
    time_ms: int
    attempts: int
    request: bytes
    """The client's frame body, byte for byte; empty when the log no longer had it, or had it damaged."""
    error: bytes
    """The encoded reply body that the caller got."""

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return asdict(self)


def _database(agent: str) -> str:
    return f"dead/{agent}"


def put(txn: Txn, agent: str, codec: FrameCodec, record: RecordView) -> DeadLetter:
    """File the letter that a DEAD record speaks of; its frame is already in the transaction."""
    assert record.kind == Kind.DEAD
    request = b""
    attempts = 0
    for delivery in _deliveries(txn, agent, codec, record):
        attempts += 1
        request = request or bytes(delivery.payload)  # only the first delivery carries it
    letter = DeadLetter(
        lsn=record.ref,
        dead_lsn=record.lsn,
        time_ms=record.time_ms,
        attempts=attempts,
        request=request,
        error=decode_effect(record.payload).reply,
    )
    key = LSN.pack(letter.lsn)
    content = asdict(letter)
    del content["lsn"]
    txn.put(_database(agent), key, rows.pack(key, content))
    return letter


def _deliveries(txn: Txn, agent: str, codec: FrameCodec, dead: RecordView) -> Iterator[RecordView]:
    # From the first delivery on: they lie close together, since the request kept ending its worker.
    for frame, value in log.frames(txn, agent, codec, dead.ref - 1, dead.lsn):
        if frame.has(Kind.REQUEST):
            yield from (r for r in log.records(codec, agent, frame, value) if _is_delivery(r, dead))


def _is_delivery(record: RecordView, dead: RecordView) -> bool:
    return record.kind == Kind.REQUEST and dead.ref in (record.lsn, record.ref) and record.lsn < dead.lsn


def load(txn: Txn, agent: str) -> list[DeadLetter]:
    """All letters of an agent, oldest first."""
    return [_decode(agent, key, value) for key, value in txn.rows(_database(agent))]


def get(txn: Txn, agent: str, lsn: int) -> DeadLetter:
    """One letter; NotFound when there is none of that LSN."""
    row = txn.get(_database(agent), LSN.pack(lsn))
    if row is None:
        raise NotFound(f"{agent} has no dead letter {lsn}", hint="`orun deadletters list` shows them")
    return _decode(agent, LSN.pack(lsn), row)


def drop(txn: Txn, agent: str, lsn: int) -> bool:
    """Whether there was such a letter."""
    return txn.delete(_database(agent), LSN.pack(lsn))


def verify(txn: Txn, agent: str) -> Iterator[tuple[int, str]]:
    """LSN and complaint for each damaged letter."""
    for key, value in txn.rows(_database(agent)):
        try:
            _decode(agent, key, value)
        except Damaged as error:
            yield LSN.unpack(key)[0], error.message


def _decode(agent: str, key: bytes, row: bytes | memoryview) -> DeadLetter:
    lsn = LSN.unpack(key)[0]
    return DeadLetter(lsn=lsn, **rows.unpack(key, row, f"dead letter {lsn} of {agent}"))
