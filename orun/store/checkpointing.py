"""Making a checkpoint, by the recorder from the log alone: the worker is not asked and not stopped.

1. Read the records after the last checkpoint and gather the last change of each block and the
   records of requests still open.
2. Write the changed blocks as versions of the new LSN, some with each commit.
3. Write the marker with the last of them.

A crash in between leaves versions without a marker. They hold what the blocks were at that LSN, so
the next checkpoint may lie over them, and nobody reads them before that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from orun.engine.journal import RecordView
from orun.store import blocks, checkpoints, log
from orun.store.blocks import BlockCodec
from orun.store.checkpoints import CheckpointInfo
from orun.store.environment import Txn
from orun.store.frames import FrameCodec
from orun.store.jobs import SLICE_BLOCKS, SLICE_S, Job
from orun.store.lane import Lane
from orun.store.records import FLAG_READONLY, Kind, iterate_changes

_READ_BYTES = 32 << 10
_RECORDS_AT_ONCE = 32
_CHANGES = (Kind.EFFECT, Kind.RESTORE)


@final
class OpenRequests:
    """The records of requests that were not answered yet, found by reading the log in order."""

    def __init__(self) -> None:
        self._open: dict[int, dict[int, None]] = {}

    def add(self, record: RecordView) -> None:
        """Take the next record into account; taking one twice does no harm."""
        if record.kind == Kind.REQUEST:
            if not record.flags & FLAG_READONLY:
                self._open.setdefault(record.ref or record.lsn, {})[record.lsn] = None
        elif record.kind == Kind.STEP:
            if record.ref in self._open:
                self._open[record.ref][record.lsn] = None
        elif record.kind in (Kind.EFFECT, Kind.DEAD):
            self._open.pop(record.ref, None)
        elif record.kind == Kind.RESTORE:
            # The state they were asked of is gone; a worker drops them at this place, too.
            self._open.clear()

    def lsns(self) -> tuple[int, ...]:
        """LSNs of all of their records, ascending."""
        return tuple(sorted(lsn for records in self._open.values() for lsn in records))


@final
class CheckpointJob(Job):
    """One checkpoint, at the end that the log has when the job's turn comes."""

    name = "checkpoint"

    def __init__(self, lane: Lane, *, reason: str, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        super().__init__(lane.agent)
        self.info: CheckpointInfo | None = None
        self.lsn = 0
        self.log_bytes = 0
        """Bytes of records that the checkpoint covers."""
        self._lane = lane
        self._reason = reason
        self._clock = clock
        self._monotonic = monotonic
        self._started = False
        self._frames = FrameCodec()
        self._codec = BlockCodec()
        self._open = OpenRequests()
        self._open_before: list[int] = []
        self._read_lsn = 0
        self._base: CheckpointInfo | None = None
        self._batch: list[RecordView] = []
        self._changes: dict[bytes, bytes | None] = {}
        self._keys: list[bytes] | None = None
        self._at = 0
        self._bytes = 0
        self._total = 0
        self._slice: list[tuple[bytes, bytes]] = []
        self._slice_end = 0
        self._slice_total = 0

    def prepare(self, txn: Txn) -> None:
        """Read the log for a while; after its end, encode the next blocks."""
        deadline = self._monotonic() + SLICE_S * self.haste
        if not self._started:
            self._start()
        if self.finished:
            return
        if self._keys is None:
            self._collect(txn, deadline)
        if self._keys is not None:
            self._encode(txn, self._keys)
            self.ready = True

    def _start(self) -> None:
        lane = self._lane
        self._started = True
        self.lsn, self.log_bytes = lane.end.last_lsn, lane.log_bytes
        base = self._base = lane.infos[-1] if lane.infos else None
        if self.lsn == (base.lsn if base else 0):
            self.info, self.finished = base, True  # nothing happened since
        elif base is not None:
            self._open_before, self._read_lsn, self._total = list(base.open), base.lsn, base.total

    def _collect(self, txn: Txn, deadline: float) -> None:
        for lsn in self._open_before:
            record = log.record_at(txn, self.agent, self._frames, lsn)
            if record is not None:
                self._open.add(record)
        self._open_before = []
        while self._read_lsn < self.lsn and self._monotonic() < deadline:
            if not self._batch:
                self._read(txn)
            # Taken from the end: the batch is in reverse.
            for _ in range(min(_RECORDS_AT_ONCE, len(self._batch))):
                record = self._batch.pop()
                self._open.add(record)
                if record.kind in _CHANGES:
                    self._changes.update(iterate_changes(record.payload))
                self._read_lsn = record.lsn
        if self._read_lsn == self.lsn:
            # In order, because neighbours share pages.
            self._keys = sorted(self._changes)

    def _read(self, txn: Txn) -> None:
        found = log.read(txn, self.agent, self._frames, self._read_lsn, upto_lsn=self.lsn, bytes_max=_READ_BYTES)
        assert found, "the log ends before the checkpoint"
        self._batch = [record for records in found for record in records][::-1]

    def _encode(self, txn: Txn, keys: list[bytes]) -> None:
        self._slice_end = min(self._at + SLICE_BLOCKS * self.haste, len(keys))
        self._slice_total = self._total
        self._slice = []
        before = self._base.lsn if self._base else 0
        for key in keys[self._at : self._slice_end]:
            data = self._changes[key]
            old = blocks.find(txn, self.agent, key, before) if before else None
            had = old is not None and not blocks.is_deletion(old[1])
            self._slice_total += (data is not None) - had
            stored_key = blocks.version_key(key, self.lsn)
            self._slice.append((stored_key, self._codec.encode(stored_key, data)))

    def write(self, txn: Txn) -> None:
        """Put the blocks of this slice, its part of the dirty list, and with the last one the marker."""
        assert self._keys is not None
        database = blocks.database(self.agent)
        for stored_key, value in self._slice:
            txn.put(database, stored_key, value)
        if self._slice:
            chunk = self._keys[self._at : self._slice_end]
            checkpoints.put_dirty(txn, self.agent, self.lsn, self._at, chunk)
        if self._slice_end == len(self._keys):
            self.info = self._describe()
            checkpoints.put(txn, self.info)

    def _describe(self) -> CheckpointInfo:
        assert self._keys is not None
        return CheckpointInfo(
            id=checkpoints.checkpoint_id(self.agent, self.lsn),
            agent=self.agent,
            lsn=self.lsn,
            number=self._base.number + 1 if self._base else 1,
            time=self._clock(),
            blocks=len(self._keys),
            bytes=self._bytes + self._slice_bytes(),
            total=self._slice_total,
            reason=self._reason,
            version=self._lane.row.version,
            open=self._open.lsns(),
        )

    def _slice_bytes(self) -> int:
        return sum(len(key) + len(value) for key, value in self._slice)

    def written(self) -> None:
        """Go on behind the slice; finished when it was the last."""
        assert self._keys is not None
        self._bytes += self._slice_bytes()
        self._total = self._slice_total
        self._at = self._slice_end
        self.ready = False
        self.finished = self._at == len(self._keys)
