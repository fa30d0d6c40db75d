"""What a worker takes over when it becomes the active one: state, unanswered requests, and given answers.

Effects are applied, never run again. Records are read from the last checkpoint on, or from the oldest
request that was unanswered at that checkpoint. A request without an effect is to be delivered again.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

from orun.engine.journal import RecordView
from orun.errors import Damaged
from orun.store.reader import AgentReader
from orun.store.records import FLAG_READONLY, NO_ID, Kind, unpack_effect
from orun.worker import wire
from orun.worker.requests import Answers
from orun.worker.state import Blocks

# Plain numbers: looking a member up in an enumeration costs more than all else that is done with a record.
_REQUEST, _STEP = int(Kind.REQUEST), int(Kind.STEP)
_RESTORE = int(Kind.RESTORE)
_ANSWERS = (int(Kind.EFFECT), int(Kind.DEAD))

RECALLED_RECORDS = 2048
"""Replies are taken from so many records at least: more than can have been on their way when a worker died."""

log = logging.getLogger("orun.worker")


@final
@dataclass(slots=True)
class Unanswered:
    """A request that the log holds without an effect."""

    first_lsn: int
    frame: bytes | memoryview
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
    collecting = gc.isenabled()
    gc.disable()  # thousands of small objects, all of them kept: a collection finds nothing
    try:
        for batch in reader.records(start):
            _take(batch, blocks, answers, waiting, base_lsn)
            records += len(batch)
            last_lsn = max(last_lsn, batch[-1].lsn)
            progress(records)
    finally:
        if collecting:
            gc.enable()
    if records < RECALLED_RECORDS and start > 0:
        _recall(reader, start, RECALLED_RECORDS - records, answers)
    return Takeover(blocks, answers, [waiting[lsn] for lsn in sorted(waiting)], records, last_lsn)


def _recall(reader: AgentReader, start: int, count: int, answers: Answers) -> None:
    """Remember the replies in the last records before the replay, too.

    A checkpoint may have been made after a worker's last effects and before their replies had left. The state
    needs nothing from before it, but the callers send those requests again.
    """
    try:
        for batch in reader.records(max(start - count, 0)):
            for record in batch:
                if record.lsn > start:
                    return
                if record.kind in _ANSWERS:
                    reply, ok, _, request_id, _ = unpack_effect(record.payload)
                    if request_id != NO_ID:
                        answers.remember(request_id, b"", ok, reply)
    except Damaged as error:
        log.warning("replies from before the last checkpoint cannot be recalled: %s", error.message)


def _take(
    batch: list[RecordView], blocks: Blocks, answers: Answers, waiting: dict[int, Unanswered], base_lsn: int
) -> None:
    for record in batch:
        kind = record.kind
        if kind in _ANSWERS:
            waiting.pop(record.ref, None)
            reply, ok, changes, request_id, key = unpack_effect(record.payload)
            if record.lsn > base_lsn:
                blocks.replay(record.lsn, changes)
            if request_id != NO_ID or key:
                answers.remember(b"" if request_id == NO_ID else request_id, key, ok, reply)
        elif kind == _REQUEST:
            if record.ref:
                if record.ref in waiting:
                    waiting[record.ref].attempts += 1
            elif not record.flags & FLAG_READONLY:
                waiting[record.lsn] = Unanswered(record.lsn, record.payload)
        elif kind == _RESTORE:
            waiting.clear()
            # The replies to keys whose effects it undid are gone from the store; those it left are found there.
            answers.forget_keys()
            if record.lsn > base_lsn:
                blocks.replay(record.lsn, unpack_effect(record.payload)[2])
        elif kind == _STEP and record.ref in waiting:
            name, result = wire.unpack(record.payload)
            waiting[record.ref].steps[name] = result
