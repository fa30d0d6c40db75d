"""A worker's life: stand by, take over, serve, hand over.

A standby has everything loaded and the store open, and waits. Told to activate, it replays the log,
opens its journal and serves; so the way from one worker's death to its successor's first reply holds
no import, no fork and no load of state. ``template`` is the process that standbys are forked from: it
has executed the agent's program once and shares its memory with all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import math
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any, NoReturn, final

from orun.engine.journal import JournalWriter
from orun.engine.pages import AgentPage
from orun.errors import Damaged, OrunError
from orun.settings import AgentSettings
from orun.store.layout import StateDir
from orun.store.reader import AgentReader
from orun.store.records import Kind
from orun.worker import forkserver, wire
from orun.worker.agent import Agent
from orun.worker.executor import Executor
from orun.worker.phase import PHASE_DRAINING, PHASE_REPLAYING, PHASE_SERVING
from orun.worker.program import load, load_snapshot
from orun.worker.rehearsal import rehearse
from orun.worker.replay import Follower
from orun.worker.service import Service

TICK_S = 0.25
FOLLOW_PAUSE_S = 0.05
FOLLOW_PAUSE_S_MAX = 1.0
FOLLOW_BUDGET_S = 0.005
"""A standby reads along with a tenth of a core at the most, and only while it can keep up."""
REHEARSAL_PAUSE_S = 0.03
"""A standby that is wanted at once is activated before it rehearses."""
SHED_PER_TURN = 200
EXIT_LOST = 75
"""A worker that another one has replaced, or that cannot go on (EX_TEMPFAIL)."""
EXIT_DAMAGED = 12
MESSAGE_BYTES_MAX = 1 << 16

_loaded: list[Agent] = []
"""The agent that this process, a template, has loaded; what it forks finds it here."""


def template(args: dict[str, Any], fds: dict[str, int]) -> None:
    """Load an agent's program, say what it is, and fork workers of it until told to end."""
    report = socket.socket(fileno=fds["report"])
    try:
        agent = load(load_snapshot(args["home"]))
    except OrunError as error:
        report.send(wire.pack({"ok": False, "code": error.code, "message": error.message, "hint": error.hint}))
        os._exit(error.code)
    _loaded.append(agent)
    # Counted by the kernel: a numerical library's own threads make a fork just as unsafe as Python's.
    threads = len(os.listdir("/proc/self/task")) - 1
    handlers = list(agent.handlers)
    report.send(wire.pack({"ok": True, "agent": agent.name, "handlers": handlers, "threads": threads}))
    report.close()
    forkserver.serve(fds["control"])


def worker(args: dict[str, Any], fds: dict[str, int]) -> None:
    """Be one worker, from standby to the end."""
    # No handler for SIGTERM: a process that a handler forks would inherit it, and with it the wake-up descriptor
    # of this loop, so that ending a pool of such processes would end nobody and drain the worker instead.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable(file=fds["dump"], all_threads=True)
    faulthandler.register(signal.SIGUSR2, file=fds["dump"], all_threads=True)
    agent = _loaded[0] if _loaded else load(load_snapshot(args["home"]))
    gc.enable()
    code = asyncio.run(Worker(agent, args, fds).run())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@final
class Worker:
    """One worker process."""

    def __init__(self, agent: Agent, args: dict[str, Any], fds: dict[str, int]) -> None:
        self._agent = agent
        self._settings = AgentSettings(**args["settings"])
        self._version: str = args["version"]
        self._state = StateDir(args["state_dir"])
        self._wake_fd = fds["wake"]
        self._listening = socket.socket(fileno=fds["listen"])
        self._control = socket.socket(fileno=fds["control"])
        self._page = AgentPage.attach(fds["page"])
        self._service: Service | None = None
        self._blocks_shed_scheduled = False
        self._follow_pause_s = FOLLOW_PAUSE_S
        self._prepared = False
        self._rehearsal: asyncio.Task[None] | None = None
        self._activation: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[int]

    async def run(self) -> int:
        """Stand by, then do what the runtime says. Returns the exit code."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._reader = AgentReader(self._state, self._agent.name)
        self._follower = Follower(self._reader, self._settings)
        self._control.setblocking(False)
        loop.add_reader(self._control.fileno(), self._on_control)
        self._say({"op": "standing", "pid": os.getpid()})
        loop.call_later(REHEARSAL_PAUSE_S, self._rehearse)
        return await self._ended

    def _rehearse(self) -> None:
        if self._activation is None:
            self._rehearsal = asyncio.get_running_loop().create_task(rehearse(self._settings))
            self._follow()

    def _follow(self) -> None:
        """Read along with the log, a little at a time, until this standby is wanted."""
        if self._activation is not None or self._prepared:
            return
        try:
            if self._follower.advance(FOLLOW_BUDGET_S):
                self._follower.recall()
                self._follow_pause_s = FOLLOW_PAUSE_S
            else:
                # A log that is faster than that is left alone more and more: the next checkpoint overtakes it anyway.
                self._follow_pause_s = min(self._follow_pause_s * 1.5, FOLLOW_PAUSE_S_MAX)
        except OrunError:
            # Whatever it is, it is there at the activation too, and is reported then.
            return
        asyncio.get_running_loop().call_later(self._follow_pause_s, self._follow)

    def _on_control(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES_MAX, 4)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # The runtime is gone: nobody would record what is done from here on.
            os._exit(EXIT_LOST)
        message = wire.unpack(data)
        if message["op"] == "prepare":
            self._prepare()
        elif message["op"] == "activate":
            self._activation = asyncio.get_running_loop().create_task(self._activate(message, fds[0]))
            self._activation.add_done_callback(self._activated)
        elif message["op"] == "drain":
            self._drain()

    def _activated(self, task: asyncio.Task[None]) -> None:
        error = task.exception()
        if isinstance(error, OrunError):
            self._say({"op": "failed", "code": error.code, "message": error.message, "hint": error.hint})
            self._end(EXIT_DAMAGED)
        elif error is not None:
            # A defect of ours: said where `orun logs` shows it, and ended at once rather than found hanging.
            traceback.print_exception(error)
            message = f"a defect of orun: {type(error).__name__}: {error}"
            self._say({"op": "failed", "code": 1, "message": message, "hint": "its traceback is in the agent's log"})
            self._end(EXIT_LOST)

    def _prepare(self) -> None:
        """Begin to take over: its predecessor is dead, and its journal is being sealed."""
        self._prepared = True
        if self._rehearsal is not None:
            self._rehearsal.cancel()
        self._start_ticks()
        self._page.phase = PHASE_REPLAYING
        with contextlib.suppress(OrunError):  # it is there at the activation too, and is reported then
            self._follower.advance(math.inf, self._progress)
            self._follower.recall()

    async def _activate(self, message: dict[str, Any], notify_fd: int) -> None:
        """Take over: replay, open the journal, serve."""
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        if not self._prepared:
            self._start_ticks()
            self._page.phase = PHASE_REPLAYING
        journal = JournalWriter.open(message["ring"])
        reason = message["reason"]
        follower = self._catch_up(journal.next_lsn, fresh=reason == "restore")
        replayed = time.monotonic()
        journal.append(Kind.EPOCH, wire.pack({"version": self._version, "reason": reason}))
        executor = self._build(follower, journal)
        os.set_inheritable(notify_fd, False)
        os.set_blocking(notify_fd, False)
        loop.add_reader(notify_fd, self._on_published, notify_fd, journal, executor)
        assert self._service is not None
        unanswered = follower.unanswered
        for request in unanswered:
            self._service.redeliver(request)
        await self._service.listen(self._listening)
        self._page.phase = PHASE_SERVING
        self._say(
            {
                "op": "serving",
                "records": follower.records,
                "unanswered": len(unanswered),
                "replay_ms": (replayed - started) * 1000,
                "total_ms": (time.monotonic() - started) * 1000,
            }
        )

    def _catch_up(self, next_lsn: int, *, fresh: bool) -> Follower:
        """The state at the end of the log, where the journal goes on. Raises Damaged when they do not meet."""
        follower = self._follower
        if not fresh:
            follower.advance(math.inf, self._progress)
        if fresh or follower.last_lsn + 1 != next_lsn:
            # The log was restored under a standby that had read along: what it knows is of another past.
            follower = Follower(self._reader, self._settings)
            follower.advance(math.inf, self._progress)
        if follower.last_lsn + 1 != next_lsn:
            raise Damaged(
                f"the log of {self._agent.name} ends at LSN {follower.last_lsn}, its journal begins at {next_lsn}"
            )
        follower.recall()
        return follower

    def _build(self, takeover: Follower, journal: JournalWriter) -> Executor:
        service = Service(self._agent, self._settings, takeover.answers)
        wake_needed = journal.wake_needed

        def wake_recorder(waiting: bool) -> None:
            if wake_needed(waiting):
                os.eventfd_write(self._wake_fd, 1)

        executor = Executor(
            self._agent,
            self._settings,
            takeover.blocks,
            takeover.answers,
            journal,
            self._page,
            wake_recorder=wake_recorder,
            answered=service.answered,
            abandon=self._abandon,
        )
        service.attach(executor, self._reader.reply_for)
        os.register_at_fork(after_in_child=executor.disown)
        self._service = service
        return executor

    def _start_ticks(self) -> None:
        # The ticker is a foreign call that never takes the GIL: it goes on under a handler that holds it,
        # and stands still only when the whole process does.
        self._page.handler_start_ns = 0
        self._page.pid = os.getpid()
        self._page.start_ticker(int(TICK_S * 1000))
        self._tick()

    def _tick(self) -> None:
        self._page.loop_ns = time.monotonic_ns()
        asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _progress(self, records: int) -> None:
        self._page.progress_done = records

    def _on_published(self, notify_fd: int, journal: JournalWriter, executor: Executor) -> None:
        try:
            os.eventfd_read(notify_fd)
        except BlockingIOError:
            return
        executor.on_durable()
        executor.blocks.rebase(journal.checkpoint_lsn)
        if executor.blocks.shedding and not self._blocks_shed_scheduled:
            self._blocks_shed_scheduled = True
            asyncio.get_running_loop().call_soon(self._shed, executor)

    def _shed(self, executor: Executor) -> None:
        executor.blocks.shed(SHED_PER_TURN)
        self._blocks_shed_scheduled = executor.blocks.shedding
        if self._blocks_shed_scheduled:
            asyncio.get_running_loop().call_later(0.001, self._shed, executor)

    def _drain(self) -> None:
        if self._service is None:
            self._end(0)
            return
        if not self._service.draining:
            self._page.phase = PHASE_DRAINING
            self._draining = asyncio.get_running_loop().create_task(self._service.drain())
            self._draining.add_done_callback(lambda _: self._end(0))

    def _say(self, message: dict[str, Any]) -> None:
        self._control.send(wire.pack(message))

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)

    def _abandon(self, reason: str) -> NoReturn:
        sys.stderr.write(f"orun: this worker ends: {reason}\n")
        sys.stderr.flush()
        os._exit(EXIT_LOST)
