"""The recorder's work without its thread: activation, group commit, jobs, recovery.

Everything here runs in one thread, the only one that writes. A commit takes what all rings have,
one frame for each agent, and with it the next slice of a job; only after it the rings' room is
given back, workers are told, and jobs move on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from orun.engine.journal import BlankJournal, JournalReader
from orun.errors import Damaged, InUse, NotFound
from orun.settings import StoreSettings
from orun.store import agents, checkpoints, idempotency, rebase, recovery, restore
from orun.store.agents import AgentRow
from orun.store.checkpoints import CheckpointInfo
from orun.store.environment import Environment, Txn
from orun.store.frames import FrameCodec
from orun.store.lane import Batch, Lane
from orun.store.layout import StateDir
from orun.store.lock import boot_id
from orun.store.log import LogEnd
from orun.store.restore import RestorePlan
from orun.store.schedule import Schedule

_HOUSEKEEPING_S = 10.0
"""How often, at most, a commit also sweeps expired replies and dead readers."""

Event = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Activation:
    """What a new worker needs to write its journal."""

    agent: str
    epoch: int
    ring_path: str
    first_lsn: int
    checkpoint_lsn: int
    notify_fd: int
    """An eventfd, written after every commit that concerns the worker; the recorder closes it."""


@final
class Committer:
    """See the module. The caller holds the state lock and calls from one thread."""

    def __init__(
        self,
        state: StateDir,
        settings: StoreSettings,
        *,
        executor: Executor,
        on_event: Event,
        wake: Callable[[], None],
        idempotency_ttl: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.environment = Environment.for_writer(state.journal, settings.map_bytes)
        self.lanes: dict[str, Lane] = {}
        self._state = state
        self._settings = settings
        self._on_event = on_event
        self._ttl_ms = int(idempotency_ttl * 1000)
        self._clock = clock
        self._monotonic = monotonic
        self._codec = FrameCodec()
        self.schedule = Schedule(
            state, settings, self.lanes, executor=executor, on_event=on_event, wake=wake, monotonic=monotonic
        )
        self._housekeeping_at = monotonic()
        with self.environment.read() as txn:
            for agent in agents.agent_names(txn):
                self.lanes[agent] = Lane.load(txn, agent, self._codec, monotonic())
                self._tell_damage(txn, self.lanes[agent])
        if self.lanes:
            self.environment.write(self._drop_unfinished)

    def _tell_damage(self, txn: Txn, lane: Lane) -> None:
        if lane.log_damage is not None:
            self._on_event("log_damaged", {"agent": lane.agent, "problem": lane.log_damage.message})
        for lsn in checkpoints.damaged(txn, lane.agent):
            self._on_event("checkpoint_damaged", {"agent": lane.agent, "lsn": lsn})

    def _drop_unfinished(self, txn: Txn) -> None:
        for lane in self.lanes.values():
            checkpoints.drop_unfinished(txn, lane.agent, lane.checkpoint_lsn)

    def lane(self, agent: str) -> Lane:
        """The lane of an agent that was activated at least once."""
        lane = self.lanes.get(agent)
        if lane is None:
            names = ", ".join(sorted(self.lanes)) or "none"
            raise NotFound(f"there is no agent {agent} in {self._state.path} (known: {names})")
        return lane

    # Commit

    def wants_commit(self) -> bool:
        """Is there something that must not wait?"""
        now = self._monotonic()
        interval = self._settings.commit_interval
        # Every lane is asked: asking also sets how its worker is to wake us.
        wanted = [lane.wants_commit(now, interval) for lane in self.lanes.values()]
        return any(wanted) or self.schedule.ready

    def commit(self, extra: Callable[[Txn], None] | None = None, sealed: Lane | None = None) -> None:
        """Make everything durable that the rings have, and ``extra`` with it."""
        batches = []
        for lane in self.lanes.values():
            drained = lane.gather(everything=lane is sealed)
            if drained:
                batches.append(Batch(lane, drained))
        self._write(batches, extra)
        for lane in self.lanes.values():
            if lane.damage is not None and not lane.damage_told:
                lane.damage_told = True
                self._on_event("journal_damaged", {"agent": lane.agent, "problem": lane.damage.message})

    def _write(self, batches: list[Batch], extra: Callable[[Txn], None] | None) -> None:
        job = self.schedule.job if self.schedule.ready else None
        if not batches and job is None and extra is None:
            return
        now = self._monotonic()
        housekeeping = now - self._housekeeping_at >= _HOUSEKEEPING_S

        def build(txn: Txn) -> None:
            for batch in batches:
                batch.lane.write(
                    txn, batch, self._codec, segment_bytes=self._settings.segment_bytes, ttl_ms=self._ttl_ms
                )
            if housekeeping:
                for agent in self.lanes:
                    idempotency.sweep(txn, agent, self._now_ms())
            if job is not None:
                job.write(txn)
            if extra is not None:
                extra(txn)

        size = sum(len(drained.data) for batch in batches for drained in batch.drained)
        self.environment.write(build, expected_bytes=size)
        for batch in batches:
            batch.lane.committed(batch)
            for letter in batch.letters:
                fields = {"agent": batch.lane.agent, "lsn": letter.lsn, "attempts": letter.attempts}
                self._on_event("dead_letter", fields)
        if job is not None:
            self.schedule.written()
        if housekeeping:
            self._housekeeping_at = now
            self.environment.reader_check()

    # Workers

    def activate(self, agent: str, *, durability: str, version: str, reason: str) -> Activation:
        """Fence the previous worker, make what it journaled durable, and give the next one a ring."""
        agents.check_name(agent)
        lane = self.lanes.get(agent)
        if lane is None:
            with self.environment.read() as txn:
                lane = self.lanes[agent] = Lane.load(txn, agent, self._codec, self._monotonic())
        if lane.log_damage is not None:
            raise lane.log_damage
        if lane.restoring:
            raise InUse(f"{agent} is being restored", hint="try again when that is done")
        row = AgentRow(lane.row.epoch + 1, version, reason, self._clock(), durability, boot_id())
        self._retire(lane, lambda txn: agents.put(txn, agent, row))
        lane.row = row
        path = self._state.ring(agent, row.epoch)
        reader = JournalReader.create(
            path,
            capacity=self._settings.ring_bytes,
            epoch=row.epoch,
            first_lsn=lane.end.last_lsn + 1,
            prev_crc=lane.end.last_crc,
        )
        notify_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        lane.attach(reader, path, notify_fd)
        return Activation(agent, row.epoch, str(path), lane.end.last_lsn + 1, lane.checkpoint_lsn, notify_fd)

    def retire(self, agent: str) -> int:
        """Fence the worker and make what it journaled durable; returns the last LSN."""
        lane = self.lane(agent)
        self._retire(lane, None)
        return lane.end.last_lsn

    def _retire(self, lane: Lane, extra: Callable[[Txn], None] | None) -> None:
        if lane.reader is not None:
            lane.reader.seal()
        if lane.reader is not None or extra is not None:
            self.commit(extra, sealed=lane)
        damaged = lane.damage is not None
        path = lane.detach()
        if path is not None:
            self._remove_ring(path, damaged=damaged)

    def _remove_ring(self, path: Path, *, damaged: bool) -> None:
        if damaged:
            path.replace(self._state.dumps / f"{path.name}.damaged")
        else:
            path.unlink(missing_ok=True)
        self.environment.reader_check()  # its worker may have died while it read

    # After a crash

    def recover(self) -> list[dict[str, Any]]:
        """Take over what rings that were left behind have beyond the log, and remove them."""
        found: list[dict[str, Any]] = []
        for path in sorted(self._state.rings.glob("*.ring.new")):
            path.unlink()
        for path in sorted(self._state.rings.glob("*.ring")):
            agent, _, epoch = path.name.removesuffix(".ring").rpartition(".")
            lane = self.lanes.get(agent)
            if lane is not None and lane.ring_path == path:
                continue
            if lane is None or not epoch.isdigit() or int(epoch) != lane.row.epoch:
                # Sealed and drained before its successor's epoch was committed: there is nothing new in it.
                path.unlink()
                continue
            found.append(self._recover_ring(lane, path))
        return found

    def _recover_ring(self, lane: Lane, path: Path) -> dict[str, Any]:
        found = recovery.Continuation(())
        try:
            reader = JournalReader.open(path)
        except BlankJournal:
            pass
        except Damaged as error:
            found = recovery.Continuation((), error.message)
        else:
            reader.seal()
            found = recovery.continuation(reader, lane.end.last_lsn, lane.end.last_crc)
            reader.close()
        if found.batches:
            self._write([Batch(lane, list(found.batches))], None)
            self._on_event("recovered", {"agent": lane.agent, "records": found.count})
        # Where the machine has stopped since, the journal's end may never have reached the disk.
        cut = bool(found.problem) and lane.row.boot_id != boot_id()
        if found.problem:
            self._on_event("journal_cut" if cut else "journal_damaged", {"agent": lane.agent, "problem": found.problem})
        self._remove_ring(path, damaged=bool(found.problem) and not cut)
        return {
            "agent": lane.agent,
            "epoch": lane.row.epoch,
            "records": found.count,
            "last_lsn": lane.end.last_lsn,
            "problem": found.problem,
        }

    # Restore

    def begin_restore(self, agent: str) -> Lane:
        """Keep workers away until ``end_restore``."""
        lane = self.lane(agent)
        if lane.reader is not None or lane.restoring:
            raise InUse(f"{agent} has a worker", hint="a restore needs the agent at rest")
        lane.restoring = True
        return lane

    def end_restore(self, agent: str) -> None:
        """Let workers in again."""
        self.lane(agent).restoring = False

    def apply_restore(self, plan: RestorePlan) -> RestorePlan:
        """Log what the plan changes, in one commit."""
        lane = self.lane(plan.agent)
        assert lane.restoring
        assert lane.reader is None
        if plan.rebase:
            self._rebase(lane, plan)
        else:
            drained = list(restore.restore_records(plan, lane.end, epoch=lane.row.epoch, time_ms=self._now_ms()))
            self._write([Batch(lane, drained)], lambda txn: _forget(txn, plan))
        result = replace(plan, applied=True, lsn=lane.end.last_lsn)
        self._on_event("restored", result.as_dict())
        return result

    def _rebase(self, lane: Lane, plan: RestorePlan) -> None:
        with self.environment.read() as txn:
            kept = rebase.keep_log(txn, lane.agent, self._state.dumps, plan.from_lsn)

        def build(txn: Txn) -> tuple[LogEnd, CheckpointInfo]:
            _forget(txn, plan)
            return rebase.begin_anew(txn, lane.row, lane.infos, plan, time_ms=self._now_ms())

        lane.end, info = self.environment.write(build)
        lane.log_damage = None
        lane.add_checkpoint(info, 0, self._monotonic())
        self._on_event("log_left_behind", {"agent": lane.agent, "path": str(kept)})

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _forget(txn: Txn, plan: RestorePlan) -> None:
    idempotency.drop_after(txn, plan.agent, plan.target_lsn)
