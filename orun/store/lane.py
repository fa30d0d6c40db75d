"""One agent as the recorder sees it: the ring it drains, where its log ends, and its checkpoints.

What is written becomes the lane's state only after the commit: ``write`` returns the new end,
``committed`` takes it over, gives the ring's room back and tells the worker.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from orun.engine.journal import (
    WAKE_ASLEEP,
    WAKE_DRAINING,
    WAKE_PACING,
    CorruptRecord,
    Drained,
    JournalReader,
    scan,
)
from orun.errors import Damaged
from orun.store import agents, checkpoints, deadletters, idempotency, log
from orun.store.agents import AgentRow
from orun.store.checkpoints import CheckpointInfo
from orun.store.deadletters import DeadLetter
from orun.store.environment import Txn
from orun.store.frames import FrameCodec
from orun.store.log import LogEnd
from orun.store.records import FLAG_KEYED, Kind

_EPOCHS_SKIPPED = 1000
"""An agent whose entry is damaged may have been activated so often without logging anything."""
_DRAINS_MAX = 2
"""Drains of a live ring for one commit: each takes half of the ring at most."""


def _row(txn: Txn, agent: str, codec: FrameCodec, end: LogEnd) -> AgentRow:
    try:
        return agents.load(txn, agent) or AgentRow()
    except Damaged:
        # The records say in which epoch they were written.
        record = log.record_at(txn, agent, codec, end.last_lsn) if end.position else None
        return AgentRow(epoch=(record.epoch if record else 0) + _EPOCHS_SKIPPED)


@dataclass(slots=True)
class Batch:
    """What one commit takes from one lane."""

    lane: Lane
    drained: list[Drained]
    end: LogEnd = field(default_factory=LogEnd)
    letters: list[DeadLetter] = field(default_factory=list)


@final
class Lane:
    """One agent."""

    def __init__(
        self, agent: str, row: AgentRow, end: LogEnd, infos: list[CheckpointInfo], log_bytes: int, now: float
    ) -> None:
        self.agent = agent
        self.row = row
        self.end = end
        self.infos = infos
        self.reader: JournalReader | None = None
        self.ring_path: Path | None = None
        self.notify_fd = -1
        self.damage: Damaged | None = None
        self.damage_told = False
        self.due: float | None = None
        """When records that nobody waits for are committed at the latest."""
        self.log_bytes = log_bytes
        """Bytes of records since the last checkpoint: what a new worker has to replay."""
        self.checkpoint_at = now
        """When the last checkpoint was made, or tried in vain."""
        self.checkpoint_failed = False
        self.checkpoints_queued = 0
        self.restoring = False
        self.log_damage: Damaged | None = None
        """The log behind the last checkpoint cannot be read: there is no worker before a restore."""

    @classmethod
    def load(cls, txn: Txn, agent: str, codec: FrameCodec, now: float) -> Lane:
        """As the database has it. Damage in the log does not keep the other agents from starting."""
        infos = checkpoints.load(txn, agent)
        base = infos[-1].lsn if infos else 0
        damage: Damaged | None = None
        size = 0
        try:
            end = log.find_end(txn, agent, codec)
            if base < end.last_lsn:
                log.read(txn, agent, codec, base, upto_lsn=base + 1, bytes_max=1, whole=True)
            size = sum(frame.raw_size for frame, _ in log.frames(txn, agent, codec, base))
        except Damaged as error:
            damage = error
            end = LogEnd(log.last_lsn(txn, agent, codec))
        lane = cls(agent, _row(txn, agent, codec, end), end, infos, size, now)
        lane.log_damage = damage
        return lane

    @property
    def checkpoint_lsn(self) -> int:
        """LSN of the newest checkpoint, 0 without one."""
        return self.infos[-1].lsn if self.infos else 0

    def attach(self, reader: JournalReader, path: Path, notify_fd: int) -> None:
        """Listen to a new ring."""
        assert self.reader is None
        self.reader, self.ring_path, self.notify_fd = reader, path, notify_fd
        self.due = None
        self.damage = None
        self.damage_told = False
        self.publish()

    def detach(self) -> Path | None:
        """Stop listening; returns the ring's file, which the caller removes."""
        path, self.ring_path = self.ring_path, None
        if self.reader is not None:
            self.reader.close()
            self.reader = None
        if self.notify_fd >= 0:
            os.close(self.notify_fd)
            self.notify_fd = -1
        self.due = None
        return path

    def wants_commit(self, now: float, interval: float) -> bool:
        """Must something be committed at once? Otherwise the ring is left in a mode to sleep in."""
        reader = self.reader
        if reader is None or self.damage is not None:
            return False
        if self.due is None:
            if not reader.set_wake_mode(WAKE_ASLEEP):
                return False
            self.due = now + interval
        # Setting the mode comes before the look at who waits: a waiter sees the mode or we see them.
        return reader.set_wake_mode(WAKE_PACING) or now >= self.due

    def gather(self, *, everything: bool = False) -> list[Drained]:
        """Copy out what the ring has; ``everything``: to the end of a sealed ring."""
        reader = self.reader
        if reader is None or self.damage is not None:
            return []
        reader.set_wake_mode(WAKE_DRAINING)
        self.due = None
        result: list[Drained] = []
        try:
            while everything or len(result) < _DRAINS_MAX:
                drained = reader.drain()
                if drained is None:
                    break
                result.append(drained)
        except Damaged as error:
            # What lies behind cannot be told from noise. No append may be acknowledged any more.
            reader.seal()
            self.damage = error if isinstance(error, CorruptRecord) else Damaged(error.message, hint=error.hint)
        return result

    def write(self, txn: Txn, batch: Batch, codec: FrameCodec, *, segment_bytes: int, ttl_ms: int) -> None:
        """Write what was drained, and what goes with it in the same transaction."""
        end = self.end
        batch.letters.clear()
        for drained in batch.drained:
            end = log.append(txn, self.agent, end, drained, codec, segment_bytes=segment_bytes)
            if drained.flags & FLAG_KEYED or drained.kinds >> Kind.DEAD & 1:
                self._file(txn, batch, drained, codec, ttl_ms)
        batch.end = end

    def _file(self, txn: Txn, batch: Batch, drained: Drained, codec: FrameCodec, ttl_ms: int) -> None:
        for record in scan(drained.data, None):
            if record.kind == Kind.DEAD:
                batch.letters.append(deadletters.put(txn, self.agent, codec, record))
            if record.flags & FLAG_KEYED and record.kind in (Kind.EFFECT, Kind.DEAD):
                idempotency.put(txn, self.agent, record, ttl_ms)

    def committed(self, batch: Batch) -> None:
        """The batch is durable: give the room back and say so to the worker."""
        assert batch.end.last_lsn >= self.end.last_lsn
        self.end = batch.end
        self.log_bytes += sum(len(drained.data) for drained in batch.drained)
        if self.reader is not None:
            self.reader.release()
            self.publish()

    def publish(self) -> None:
        """Tell the worker how far the disk and the checkpoints are, and wake it."""
        if self.reader is not None:
            self.reader.publish(self.end.last_lsn, self.checkpoint_lsn)
            # When the counter is full, the worker has been told often enough.
            with suppress(BlockingIOError):
                os.eventfd_write(self.notify_fd, 1)

    def add_checkpoint(self, info: CheckpointInfo, log_bytes: int, now: float) -> None:
        """A checkpoint is durable; ``log_bytes`` of records lie behind it."""
        assert info.lsn >= self.checkpoint_lsn
        self.infos = [old for old in self.infos if old.lsn != info.lsn] + [info]
        self.log_bytes = log_bytes
        self.checkpoint_at = now
        self.checkpoint_failed = False
        self.publish()
