"""The recorder: a thread, and the only writer of the journal database.

It sleeps in poll() until a worker has appended, somebody asks for something, or a checkpoint is
due. A commit begins when the one before it has ended and a worker waits for durability; records that
nobody waits for are committed ``commit_interval`` after the first of them. Appends of a worker that
still runs its handler thus cost no commit of their own.

The first commit that fails ends everything: the environment is closed, no record is released or
acknowledged, and all that is asked fails with that error. What workers journaled stays in their
rings, and ``recover`` takes it over when orun starts again.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, final

from orun.errors import OrunError, StorageFailed
from orun.settings import AgentSettings, StoreSettings
from orun.store import compaction, deadletters
from orun.store.backup import BackupInfo, write_backup
from orun.store.checkpoints import CheckpointInfo
from orun.store.committer import Activation, Committer
from orun.store.deadletters import DeadLetter
from orun.store.environment import Environment
from orun.store.layout import StateDir
from orun.store.planning import Planner
from orun.store.restore import RestorePlan
from orun.store.targets import Target
from orun.store.verify import Summary, verify

T = TypeVar("T")

Event = Callable[[str, dict[str, Any]], None]


@final
class Recorder:
    """See the module. Its methods may be called from any thread; the caller holds the state lock."""

    def __init__(
        self,
        state: StateDir,
        settings: StoreSettings,
        *,
        on_failure: Callable[[OrunError], None],
        on_event: Event,
        idempotency_ttl: float | None = None,
    ) -> None:
        self.state = state
        self.settings = settings
        self.failure: OrunError | None = None
        """Why nothing is written any more."""
        self._on_failure = on_failure
        self._on_event = on_event
        self._ttl = AgentSettings().idempotency_ttl if idempotency_ttl is None else idempotency_ttl
        self._commands: deque[Callable[[], None]] = deque()
        self._gate = threading.Lock()
        """Guards the moment after which nothing more is taken into the queue."""
        self._open = False
        self._stopping = False
        self._committer: Committer | None = None
        self._thread: threading.Thread | None = None
        self._recovered: Future[list[dict[str, Any]]] = Future()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="orun-store")
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """The eventfd that workers write when they are told to wake the recorder."""

    # Life

    def start(self) -> None:
        """Open the database, take over what a dead orun left behind, and start to record."""
        assert self._thread is None
        self._committer = Committer(
            self.state,
            self.settings,
            executor=self._executor,
            on_event=self._on_event,
            wake=self._wake,
            idempotency_ttl=self._ttl,
        )
        self._open = True
        # First in the queue: nobody is activated before the old journals are read.
        self._recovered = self._ask(lambda committer: committer.recover())
        self._thread = threading.Thread(target=self._run, name="orun-recorder", daemon=True)
        self._thread.start()

    def recover(self) -> list[dict[str, Any]]:
        """Wait until the journals that a dead orun left behind are taken over; says what each of them added."""
        return self._recovered.result()

    def stop(self) -> None:
        """Fence all workers, commit everything, and close the database. Safe to repeat."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping = True
            self._wake()
            thread.join()
        self._executor.shutdown()
        if self.wake_fd >= 0:
            os.close(self.wake_fd)
            self.wake_fd = -1

    # Requests

    def activate(self, agent: str, *, durability: str, version: str, reason: str) -> Future[Activation]:
        """Fence the previous worker durably, and make the ring of the next one."""
        return self._ask(
            lambda committer: committer.activate(agent, durability=durability, version=version, reason=reason)
        )

    def retire(self, agent: str) -> Future[int]:
        """Fence the worker and commit what it journaled; the last LSN."""
        return self._ask(lambda committer: committer.retire(agent))

    def checkpoint(self, agent: str, reason: str) -> Future[CheckpointInfo]:
        """A checkpoint of everything that is in the log; the newest one when nothing happened since."""
        result: Future[CheckpointInfo] = Future()

        def begin(committer: Committer) -> None:
            committer.commit()
            made = committer.schedule.checkpoint(committer.lane(agent), reason)
            made.add_done_callback(lambda done: _pass_on(done, result))

        _fail_with(self._ask(begin), result)
        return result

    def compact(self) -> Future[dict[str, Any]]:
        """Drop what the settings no longer keep; a report of the space."""
        result: Future[dict[str, Any]] = Future()

        def begin(committer: Committer) -> None:
            names = list(committer.lanes)
            before = compaction.measure(committer.environment, names)
            jobs = committer.schedule.compact()
            left = {job.agent for job in jobs}

            def finished(done: Future[Any], agent: str) -> None:
                left.discard(agent)
                if done.exception() is not None:
                    _pass_on(done, result)
                if not left and not result.done():
                    after = compaction.measure(committer.environment, names)
                    size = committer.environment.file_bytes()
                    result.set_result(compaction.report(before, after, jobs, size))

            for job in jobs:
                job.future.add_done_callback(partial(finished, agent=job.agent))
            if not jobs:
                result.set_result(compaction.report({}, {}, [], committer.environment.file_bytes()))

        _fail_with(self._ask(begin), result)
        return result

    def restore(self, agent: str, target: Target | str, dry_run: bool = False) -> Future[RestorePlan]:
        """Bring an agent without a worker back to an earlier state, or only say what that would change."""
        wanted = Target.parse(target, now=time.time()) if isinstance(target, str) else target

        def warn(text: str) -> None:
            self._on_event("read_past_damage", {"agent": agent, "problem": text})

        def perform() -> RestorePlan:
            if dry_run:
                return Planner(self._environment(), agent, warn).plan(wanted)
            self._ask(lambda committer: committer.begin_restore(agent)).result()
            try:
                plan = Planner(self._environment(), agent, warn).plan(wanted)
                return self._ask(lambda committer: committer.apply_restore(plan)).result()
            finally:
                self._ask(lambda committer: committer.end_restore(agent)).exception()  # it may have stopped

        return self._executor.submit(perform)

    def dead_letters(self, agent: str) -> Future[list[DeadLetter]]:
        """The requests that were set aside, oldest first."""
        return self.view(lambda environment: _letters(environment, agent))

    def drop_dead_letter(self, agent: str, lsn: int) -> Future[bool]:
        """Forget one; False when there was none of that LSN."""

        def drop(committer: Committer) -> bool:
            found: list[bool] = []
            committer.commit(lambda txn: found.append(deadletters.drop(txn, agent, lsn)))
            return found[-1]

        return self._ask(drop)

    def backup(self, path: Path) -> Future[BackupInfo]:
        """Write a backup while everything goes on."""
        return self.view(lambda environment: write_backup(environment, path))

    def verify(self, agent: str | None = None) -> Future[Summary]:
        """Check everything that is stored."""
        return self.view(lambda environment: verify(environment, agent))

    def view(self, task: Callable[[Environment], T]) -> Future[T]:
        """Run something that reads the database, in a thread of its own."""
        return self._executor.submit(lambda: task(self._environment()))

    # Known without asking

    def agents(self) -> list[str]:
        """The agents that were ever activated."""
        return sorted(self._open_committer().lanes)

    def checkpoints(self, agent: str) -> list[CheckpointInfo]:
        """The checkpoints of an agent, oldest first."""
        return list(self._open_committer().lane(agent).infos)

    def position(self, agent: str) -> dict[str, int]:
        """Where an agent's log stands."""
        lane = self._open_committer().lane(agent)
        end = lane.end
        return {
            "last_lsn": end.last_lsn,
            "durable_lsn": end.last_lsn,
            "last_crc": end.last_crc,
            "checkpoint_lsn": lane.checkpoint_lsn,
            "epoch": lane.row.epoch,
            "log_bytes": end.position,
        }

    # The thread

    def _run(self) -> None:
        failure: OrunError = StorageFailed("the recorder ended by an error of its own; see the log")
        clean = False
        try:
            self._loop(self._open_committer())
            clean = True
        except OrunError as error:
            failure = error
        finally:
            # An error that is none of ours goes on to threading.excepthook; nothing is acknowledged either way.
            if not clean:
                self._fail(failure)

    def _loop(self, committer: Committer) -> None:
        poll = select.poll()
        poll.register(self.wake_fd, select.POLLIN)
        schedule = committer.schedule
        while self._run_commands() or not self._closed_for_stop():
            schedule.start_due()
            schedule.advance(committer.environment)
            if committer.wants_commit():
                committer.commit()
            elif schedule.idle and not self._stopping:
                due = schedule.due()
                pause = None if due is None else max(0, int((due - time.monotonic()) * 1000) + 1)
                if poll.poll(pause):
                    with suppress(BlockingIOError):
                        os.eventfd_read(self.wake_fd)
        for agent in list(committer.lanes):
            committer.retire(agent)
        schedule.fail_all(StorageFailed("orun was stopped before this was done"))
        committer.environment.close()

    def _run_commands(self) -> bool:
        found = bool(self._commands)
        while self._commands:
            self._commands.popleft()()
        return found

    def _closed_for_stop(self) -> bool:
        with self._gate:
            if self._stopping and not self._commands:
                self._open = False
        return not self._open

    def _fail(self, failure: OrunError) -> None:
        committer = self._open_committer()
        committer.environment.close()
        with self._gate:
            self.failure = failure
            self._open = False
        self._run_commands()  # each is answered with the failure
        committer.schedule.fail_all(failure)
        self._on_failure(failure)

    def _ask(self, act: Callable[[Committer], T]) -> Future[T]:
        """Have the thread do something between two commits."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                if self.failure is not None:
                    raise self.failure
                future.set_result(act(self._open_committer()))
            except OrunError as error:
                future.set_exception(error)
                if self.failure is None and self._environment().closed:
                    raise  # a commit failed in it: the thread ends
            finally:
                if not future.done():
                    future.set_exception(StorageFailed("the recorder ended by an error of its own"))

        with self._gate:
            if self._open:
                self._commands.append(run)
                self._wake()
            else:
                future.set_exception(self.failure or StorageFailed("the recorder does not run"))
        return future

    def _wake(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_write(self.wake_fd, 1)

    def _open_committer(self) -> Committer:
        if self._committer is None:
            raise StorageFailed("the recorder does not run")
        return self._committer

    def _environment(self) -> Environment:
        return self._open_committer().environment


def _letters(environment: Environment, agent: str) -> list[DeadLetter]:
    with environment.read() as txn:
        return deadletters.load(txn, agent)


def _pass_on(done: Future[T], result: Future[T]) -> None:
    error = done.exception()
    if result.done():
        return
    if error is not None:
        result.set_exception(error)
    else:
        result.set_result(done.result())


def _fail_with(asked: Future[Any], result: Future[Any]) -> None:
    def failed(done: Future[Any]) -> None:
        error = done.exception()
        if error is not None and not result.done():
            result.set_exception(error)

    asked.add_done_callback(failed)
