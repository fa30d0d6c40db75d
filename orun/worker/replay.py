"""What a worker takes over when it becomes the active one: state, unanswered requests, and given answers.

Effects are applied, never run again. Records are read from the last checkpoint on, or from the oldest
request that was unanswered at that checkpoint. A request without an effect is to be delivered again.
A standby reads along while it waits, so that its predecessor's death finds it with little left to read.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

from orun.engine.journal import RecordView
from orun.errors import Damaged
from orun.settings import AgentSettings
from orun.store.reader import AgentReader
from orun.store.records import FLAG_READONLY, NO_ID, Kind, unpack_effect
from orun.worker import wire
from orun.worker.requests import Answers
from orun.worker.state import Blocks

# Plain numbers: looking a member up in an enumeration costs more than all else that is done with a record.
_REQUEST, _STEP = int(Kind.REQUEST), int(Kind.STEP)
_RESTORE = int(Kind.RESTORE)
_ANSWERS = (int(Kind.EFFECT), int(Kind.DEAD))

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
class Follower:
    """Reads the log as it grows, so that taking over means to read what is left of it.

    A standby that follows is at most a fraction of a second behind, whatever the log holds since the last
    checkpoint. It is read in slices, and from the start again when a checkpoint has overtaken it.
    """

    def __init__(self, reader: AgentReader, settings: AgentSettings) -> None:
        self._reader = reader
        self._cache_bytes_max = settings.cache_bytes
        # A request and an effect for each reply that can have been on its way when a worker died.
        self._recalled_records = 2 * settings.queue_limit
        self._restart(0)

    def _restart(self, base_lsn: int) -> None:
        self.blocks = Blocks(self._reader, base_lsn, self._cache_bytes_max)
        self.answers = Answers()
        self.records = 0
        """Records read so far."""
        self.last_lsn = base_lsn
        self._waiting: dict[int, Unanswered] = {}
        self._begun = False
        self._start = base_lsn
        self._recalled = False

    @property
    def unanswered(self) -> list[Unanswered]:
        """Requests without an effect, oldest first."""
        return [self._waiting[lsn] for lsn in sorted(self._waiting)]

    def advance(self, budget_s: float, progress: Callable[[int], None] = lambda records: None) -> bool:
        """Read for about so long; True at the end of the log. ``progress`` is told how many records were read.

        Raises Damaged when the log cannot be read.
        """
        until = time.monotonic() + budget_s
        base_lsn = self._reader.base()
        if base_lsn > self.last_lsn or not self._begun:
            self._begin(base_lsn)
        elif base_lsn > self.blocks.base_lsn:
            self.blocks.rebase(base_lsn)
            self.blocks.shed(sys.maxsize)
        collecting = gc.isenabled()
        gc.disable()  # thousands of small objects, all of them kept: a collection finds nothing
        try:
            for batch in self._reader.records(self.last_lsn):
                self._take(batch)
                progress(self.records)
                if time.monotonic() >= until:
                    return False
        finally:
            if collecting:
                gc.enable()
        return True

    def _begin(self, base_lsn: int) -> None:
        """Start at a checkpoint, or at the oldest request that was open at it."""
        self._restart(base_lsn)
        pending = self._reader.pending()
        start = min(min(pending) - 1, base_lsn) if pending else base_lsn
        self.last_lsn = self._start = start
        self._begun = True

    def recall(self) -> None:
        """Remember the replies before the start, too, unless enough has been read since. Once is enough.

        A checkpoint may have been made after a worker's last effects and before their replies had left. The
        state needs nothing from before it, but the callers send those requests again.
        """
        count = self._recalled_records - self.records
        if count > 0 and not self._recalled:
            _recall(self._reader, self._start, count, self.answers)
        self._recalled = True

    def _take(self, batch: list[RecordView]) -> None:
        _take(batch, self.blocks, self.answers, self._waiting)
        self.records += len(batch)
        self.last_lsn = batch[-1].lsn


def _recall(reader: AgentReader, start: int, count: int, answers: Answers) -> None:
    if not start:
        return
    try:
        for batch in reader.records(max(start - count, 0), start):
            for record in batch:
                if record.kind in _ANSWERS:
                    reply, ok, _, request_id, _ = unpack_effect(record.payload)
                    if request_id != NO_ID:
                        answers.remember(request_id, b"", ok, reply)
    except Damaged as error:
        log.warning("replies from before the last checkpoint cannot be recalled: %s", error.message)


def _take(batch: list[RecordView], blocks: Blocks, answers: Answers, waiting: dict[int, Unanswered]) -> None:
    base_lsn = blocks.base_lsn
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
