"""A store in a folder of its own, driven without a thread or with one, and a model of what it must hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, TypeVar

from orun.engine.journal import JournalWriter
from orun.settings import StoreSettings
from orun.store.checkpoints import CheckpointInfo
from orun.store.committer import Activation, Committer
from orun.store.layout import StateDir
from orun.store.planning import Planner
from orun.store.records import FLAG_KEYED, Kind, encode_effect
from orun.store.restore import RestorePlan
from orun.store.targets import Target

T = TypeVar("T")
State = dict[bytes, bytes]

SMALL = StoreSettings(
    ring_bytes=64 << 10,
    map_bytes=1 << 20,
    segment_bytes=4 << 10,
    log_bytes_kept=0,
    checkpoints_kept=3,
    export_every=0,
)


class Inline(Executor):
    """Runs what it is given at once."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def state_dir(path: Path) -> StateDir:
    """A state directory, ready to use."""
    state = StateDir(path)
    state.create()
    return state


class Worker:
    """The worker's end: appends, and remembers the state after each LSN."""

    def __init__(self, activation: Activation, history: dict[int, State]) -> None:
        self.writer = JournalWriter.open(activation.ring_path)
        self.history = history

    @property
    def state(self) -> State:
        """The newest state."""
        return self.history[max(self.history)]

    def append(self, kind: Kind, payload: bytes, **fields: int) -> int:
        """Log a record that changes nothing."""
        before = self.state
        lsn = self.writer.append(kind, payload, **fields)
        self.history[lsn] = before
        return lsn

    def request(self, body: bytes = b"request", **fields: int) -> int:
        """Log a request."""
        return self.append(Kind.REQUEST, body, **fields)

    def effect(
        self, ref: int, changes: dict[bytes, bytes | None] | None = None, key: bytes = b"", reply: bytes = b"r"
    ) -> int:
        """Log what a request changed and answered."""
        changes = changes or {}
        payload = encode_effect(reply, True, changes.items(), key=key)
        after = dict(self.state)
        for name, value in changes.items():
            if value is None:
                after.pop(name, None)
            else:
                after[name] = value
        lsn = self.writer.append(Kind.EFFECT, payload, ref=ref, flags=FLAG_KEYED if key else 0)
        self.history[lsn] = after
        return lsn

    def change(self, changes: dict[bytes, bytes | None], key: bytes = b"") -> int:
        """A request and its effect; the effect's LSN."""
        return self.effect(self.request(), changes, key)

    def close(self) -> None:
        """Unmap the ring."""
        self.writer.close()


class Desk:
    """A committer without its thread, one agent, and the history that it must be able to tell."""

    def __init__(self, path: Path, settings: StoreSettings = SMALL, agent: str = "counter") -> None:
        self.state = state_dir(path)
        self.settings = settings
        self.agent = agent
        self.now = 1_700_000_000.0
        self.history: dict[int, State] = {0: {}}
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.worker: Worker | None = None
        self.committer = self._open()

    def _open(self) -> Committer:
        return Committer(
            self.state,
            self.settings,
            executor=Inline(),
            on_event=lambda kind, fields: self.events.append((kind, fields)),
            wake=lambda: None,
            idempotency_ttl=3600.0,
            clock=lambda: self.now,
        )

    def activate(self) -> Worker:
        """A new worker; the old one is fenced."""
        activation = self.committer.activate(self.agent, durability="disk", version="v1", reason="test")
        if self.worker is not None:
            self.worker.close()
        self.worker = Worker(activation, self.history)
        return self.worker

    def run_jobs(self) -> None:
        """Commit and advance until nothing is left to do."""
        self.committer.commit()
        while not self.committer.schedule.idle:
            self.committer.schedule.advance(self.committer.environment)
            self.committer.commit()

    def checkpoint(self, reason: str = "test") -> CheckpointInfo:
        """A checkpoint, with all that follows from it."""
        self.committer.commit()
        future = self.committer.schedule.checkpoint(self.committer.lane(self.agent), reason)
        self.run_jobs()
        return future.result(0)

    def plan(self, target: Target | str) -> RestorePlan:
        """What a restore would change."""
        wanted = Target.parse(target, now=self.now) if isinstance(target, str) else target
        return Planner(self.committer.environment, self.agent, self.warn).plan(wanted)

    def restore(self, target: Target | str) -> RestorePlan:
        """Retire the worker and restore."""
        self.retire()
        self.committer.begin_restore(self.agent)
        plan = self.plan(target)
        done = self.committer.apply_restore(plan)
        self.committer.end_restore(self.agent)
        for lsn in range(plan.from_lsn + 1, done.lsn + 1):
            self.history[lsn] = self.current()
        return done

    def current(self) -> State:
        """What the store says the state is."""
        found = Planner(self.committer.environment, self.agent, self.warn).state()
        return {key: value for key, value in found.items() if value is not None}

    def warn(self, text: str) -> None:
        """Kept with the events."""
        self.events.append(("warning", {"text": text}))

    def retire(self) -> None:
        """Fence the worker."""
        self.committer.retire(self.agent)
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def crash(self) -> None:
        """End without another commit and open again, as after `kill -9`."""
        self.committer.environment.close()
        for lane in self.committer.lanes.values():
            lane.detach()
        if self.worker is not None:
            self.worker.close()
            self.worker = None
        self.committer = self._open()

    def close(self) -> None:
        """Let go of everything."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None
        for lane in self.committer.lanes.values():
            lane.detach()
        self.committer.environment.close()

    def flip(self, database: str, key: bytes, offset: int, mask: int = 1) -> None:
        """Change one byte of a stored value."""

        def build(txn: Any) -> None:
            value = bytearray(txn.get(database, key))
            value[offset] ^= mask
            txn.put(database, key, bytes(value))

        self.committer.environment.write(build)

    def environment_restore(self, database: str, key: bytes, value: bytes) -> None:
        """Put a value back."""
        self.committer.environment.write(lambda txn: txn.put(database, key, value))

    def rows(self, database: str) -> list[tuple[bytes, bytes]]:
        """Everything in a named database."""
        with self.committer.environment.read() as txn:
            return [(key, bytes(value)) for key, value in txn.rows(database)]

    def databases(self, prefix: str) -> list[str]:
        """Named databases."""
        with self.committer.environment.read() as txn:
            return txn.names(prefix)


def eventfd_count(fd: int) -> int:
    """Read an eventfd that may be empty."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
