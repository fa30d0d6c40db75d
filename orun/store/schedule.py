"""The recorder's long work, one job at a time: checkpoints, what follows from them, and when they are due.

Checkpoints and retention come in order. Exports, which take longest, wait until there is nothing else.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import Any, final

from orun.errors import NotFound, OrunError
from orun.settings import StoreSettings
from orun.store.checkpointing import CheckpointJob
from orun.store.checkpoints import CheckpointInfo
from orun.store.environment import Environment
from orun.store.exports import ExportJob
from orun.store.jobs import HASTE_MAX, Job
from orun.store.lane import Lane
from orun.store.layout import StateDir
from orun.store.retention import RetentionJob


@final
class Schedule:
    """Which job is next, and what its end leads to."""

    def __init__(
        self,
        state: StateDir,
        settings: StoreSettings,
        lanes: dict[str, Lane],
        *,
        executor: Executor,
        on_event: Callable[[str, dict[str, Any]], None],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._settings = settings
        self._lanes = lanes
        self._executor = executor
        self._on_event = on_event
        self._wake = wake
        self._clock = clock
        self._monotonic = monotonic
        self._jobs: deque[Job] = deque()
        self._exports: deque[ExportJob] = deque()

    @property
    def job(self) -> Job | None:
        """The job under way."""
        if self._jobs:
            return self._jobs[0]
        return self._exports[0] if self._exports else None

    @property
    def ready(self) -> bool:
        """The job has something for the next commit."""
        return self.job is not None and self.job.ready

    @property
    def idle(self) -> bool:
        """There is nothing to do, or nothing before another thread has finished."""
        return self.job is None or self.job.waits

    def checkpoint(self, lane: Lane, reason: str) -> Future[CheckpointInfo]:
        """A checkpoint as soon as possible; the newest one when nothing happened since."""
        if lane.log_damage is not None:
            raise lane.log_damage
        if lane.end.last_lsn == 0:
            raise NotFound(f"{lane.agent} has logged nothing yet, so there is nothing to keep")
        job = CheckpointJob(lane, reason=reason, clock=self._clock, monotonic=self._monotonic)
        lane.checkpoints_queued += 1
        self._jobs.append(job)
        return job.future

    def compact(self) -> list[RetentionJob]:
        """Bring every agent down to what the settings keep."""
        jobs = [RetentionJob(lane.agent, lane.infos, self._settings) for lane in self._lanes.values()]
        self._jobs.extend(jobs)
        return jobs

    def start_due(self) -> None:
        """Begin the checkpoints whose time has come."""
        now = self._monotonic()
        for lane in self._lanes.values():
            if not self._wants_checkpoints(lane):
                continue
            if lane.log_bytes >= self._settings.checkpoint_bytes and not lane.checkpoint_failed:
                self.checkpoint(lane, "log size")
            elif now - lane.checkpoint_at >= self._settings.checkpoint_interval:
                self.checkpoint(lane, "interval")

    def due(self) -> float | None:
        """When the next checkpoint or paced commit is due, in monotonic seconds."""
        moments = [lane.due for lane in self._lanes.values() if lane.due is not None]
        moments += [
            lane.checkpoint_at + self._settings.checkpoint_interval
            for lane in self._lanes.values()
            if self._wants_checkpoints(lane)
        ]
        return min(moments, default=None)

    @staticmethod
    def _wants_checkpoints(lane: Lane) -> bool:
        changed = lane.end.last_lsn != lane.checkpoint_lsn
        return changed and not lane.checkpoints_queued and lane.log_damage is None

    def advance(self, environment: Environment) -> None:
        """One slice of the job's reading."""
        job = self.job
        if job is None or job.ready:
            return
        if isinstance(job, CheckpointJob):
            # The log must not grow faster than it is read: requests then wait a little longer instead.
            behind = self._lanes[job.agent].log_bytes // max(self._settings.checkpoint_bytes, 1)
            job.haste = min(max(behind, 1), HASTE_MAX)
        try:
            with environment.read() as txn:
                job.prepare(txn)
        except OrunError as error:
            # The log or a block is damaged, or an export cannot be written: requests go on.
            job.fail(error)
        if job.finished:
            self._end(job)

    def written(self) -> None:
        """What the job wrote is durable."""
        job = self.job
        assert job is not None
        job.written()
        if isinstance(job, RetentionJob):
            lane = self._lanes[job.agent]
            lane.infos = [info for info in lane.infos if info.lsn >= job.kept[0].lsn]
        if job.finished:
            self._end(job)

    def fail_all(self, error: OrunError) -> None:
        """Nothing can be written any more."""
        for job in (*self._jobs, *self._exports):
            job.fail(error)
        self._jobs.clear()
        self._exports.clear()

    def _end(self, job: Job) -> None:
        queue: deque[Any] = self._jobs if self._jobs else self._exports
        assert queue[0] is job
        queue.popleft()
        lane = self._lanes[job.agent]
        if isinstance(job, CheckpointJob):
            lane.checkpoints_queued -= 1
        error = job.future.exception() if job.future.done() else None
        if error is not None:
            if isinstance(job, CheckpointJob):
                lane.checkpoint_at = self._monotonic()
                lane.checkpoint_failed = True
            self._on_event("job_failed", {"agent": job.agent, "job": job.name, "problem": str(error)})
        elif isinstance(job, CheckpointJob):
            self._checkpointed(job, lane)
        elif isinstance(job, ExportJob):
            self._exported(job, lane)
        else:
            assert isinstance(job, RetentionJob)
            for problem in job.problems:
                self._on_event("job_failed", {"agent": job.agent, "job": job.name, "problem": problem})
            job.future.set_result(job)

    def _checkpointed(self, job: CheckpointJob, lane: Lane) -> None:
        info = job.info
        assert info is not None
        if info.lsn > lane.checkpoint_lsn:
            lane.add_checkpoint(info, lane.log_bytes - job.log_bytes, self._monotonic())
            self._jobs.append(RetentionJob(job.agent, lane.infos, self._settings))
            every = self._settings.export_every
            if every and info.number % every == 0:
                self._export(info)
            self._on_event("checkpoint", info.as_dict())
        job.future.set_result(info)

    def _export(self, info: CheckpointInfo) -> None:
        try:
            job = ExportJob(
                self._state,
                info,
                executor=self._executor,
                wake=self._wake,
                kept=self._settings.exports_kept,
                monotonic=self._monotonic,
            )
        except OrunError as error:
            self._on_event("job_failed", {"agent": info.agent, "job": ExportJob.name, "problem": str(error)})
        else:
            self._exports.append(job)

    def _exported(self, job: ExportJob, lane: Lane) -> None:
        lane.infos = [replace(info, exported=True) if info.lsn == job.info.lsn else info for info in lane.infos]
        self._on_event("exported", {"agent": job.agent, "id": job.info.id, "path": str(job.path)})
        job.future.set_result(job.path)
