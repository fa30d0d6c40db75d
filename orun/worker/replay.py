"""What a worker takes over when it becomes the active one: state, unanswered requests, and given answers.

Effects are applied, never run again. Records are read from the last checkpoint on, or from the oldest
request that was unanswered at that checkpoint. A request without an effect is to be delivered again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

from orun.store.reader import AgentReader
from orun.store.records import FLAG_READONLY, NO_ID, Kind, decode_effect
from orun.worker import wire
from orun.worker.requests import Answers
from orun.worker.state import Blocks


@final
@dataclass(slots=True)
class Unanswered:
    """A request that the log holds without an effect."""

    first_lsn: int
    frame: bytes
    attempts: int = 1
    steps: dict[str, Any] = field(default_factory=dict)


@final
@dataclass(slots=True)
class Takeover:
    """The result of a replay."""

    blocks: Blocks
    answers: Answers
    unanswered: list[Unanswered]
    records: int
    last_lsn: int


def replay(reader: AgentReader, cache_bytes_max: int, progress: Callable[[int], None]) -> Takeover:
    """Read the log from the last checkpoint on. ``progress`` is told the number of records done, now and then.

    Raises Damaged when the log cannot be read.
    """
    base_lsn = reader.base()
    blocks = Blocks(reader, base_lsn, cache_bytes_max)
    answers = Answers()
    waiting: dict[int, Unanswered] = {}
    pending = reader.pending()
    start = min(min(pending) - 1, base_lsn) if pending else base_lsn
    records = 0
    last_lsn = base_lsn
    for batch in reader.records(start):
        for record in batch:
            kind = record.kind
            if kind == Kind.EFFECT or kind == Kind.DEAD:
                waiting.pop(record.ref, None)
                effect = decode_effect(record.payload)
                if record.lsn > base_lsn:
                    for key, value in effect.changes:
                        blocks.replay(record.lsn, key, value)
                request_id = b"" if effect.request_id == NO_ID else effect.request_id
                answers.remember(request_id, effect.key, effect.ok, effect.reply)
            elif kind == Kind.REQUEST:
                if record.ref:
                    if record.ref in waiting:
                        waiting[record.ref].attempts += 1
                elif not record.flags & FLAG_READONLY:
                    waiting[record.lsn] = Unanswered(record.lsn, bytes(record.payload))
            elif kind == Kind.RESTORE:
                waiting.clear()
                if record.lsn > base_lsn:
                    for key, value in decode_effect(record.payload).changes:
                        blocks.replay(record.lsn, key, value)
            elif kind == Kind.STEP and record.ref in waiting:
                name, result = wire.unpack(record.payload)
                waiting[record.ref].steps[name] = result
        records += len(batch)
        last_lsn = max(last_lsn, batch[-1].lsn) if batch else last_lsn
        progress(records)
    return Takeover(blocks, answers, [waiting[lsn] for lsn in sorted(waiting)], records, last_lsn)
