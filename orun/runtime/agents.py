"""One agent: its template, its standby, its active worker, and the ways from one worker to the next.

    template   has loaded the program; standbys are forked from it
    standby    loaded and idle; becomes the worker when that dies, or when a new version takes over
    worker     the only one with a journal, and the only one that serves

Becoming the worker is always the same three steps: the recorder seals and stores the old journal and
opens a new one under the next epoch; the standby is told to activate; it replays and says that it
serves. A crash, a hang, a reload and a restore differ only in how the old worker ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from orun.engine.pages import AgentPage
from orun.errors import NotRunning, OrunError, UsageError
from orun.runtime.child import Child, Exit, StartFailed
from orun.runtime.control import listen
from orun.runtime.forking import ForkFailed, Forkserver
from orun.runtime.logs import ChildLog
from orun.runtime.processes import Process, Processes
from orun.runtime.template import Template
from orun.runtime.vital import vital
from orun.runtime.workers import WorkerProcess
from orun.settings import Settings
from orun.store.layout import StateDir
from orun.store.recorder import Recorder
from orun.worker.program import Program, load_snapshot, snapshot

ACTIVATION_NOTICED_S = 1.0
"""A healthy standby reacts within a millisecond; one that does not is frozen, and another is forked."""
REFILL_PAUSE_S = 0.02
REFILL_PAUSE_S_MAX = 5.0

log = logging.getLogger("orun.agent")


@final
@dataclass(frozen=True, slots=True)
class Services:
    """What the runtime offers to each agent."""

    settings: Settings
    state: StateDir
    recorder: Recorder
    forkserver: Forkserver
    processes: Processes
    log_of: Callable[[str], ChildLog]


@final
class AgentHost:
    """What outlives an agent's workers: its program, its socket, its page, its template and its standby."""

    def __init__(self, path: str, services: Services) -> None:
        self.path = path
        self.name = ""
        self.handlers: list[str] = []
        self.version = ""
        self.page = AgentPage.create()
        self.worker: WorkerProcess | None = None
        self.last_restart_ms: float | None = None
        self._services = services
        self._settings = services.settings
        self._listening: socket.socket | None = None
        self._home = ""
        self._template: Template | None = None
        self._standby: WorkerProcess | None = None
        self._refill_task: asyncio.Task[None] | None = None
        self._closing = False
        self._changing = asyncio.Lock()

    async def open(self) -> None:
        """Load the program and open the agent's socket. Raises UsageError when the program does not load."""
        program = snapshot(self.path)
        self._template = await self._new_template(program)
        self.name = self._template.agent
        self._adopt(self._template, program)
        self._listening = listen(self.socket_path, backlog=1024)

    @property
    def socket_path(self) -> Path:
        """Where clients connect."""
        return self._services.state.agent_socket(self.name)

    @property
    def shutdown_s(self) -> float:
        """How long a worker may take to drain."""
        return self._settings.runtime.shutdown

    @property
    def standby_pid(self) -> int | None:
        """The standby's process, if there is one."""
        return None if self._standby is None else self._standby.pid

    @property
    def template_pid(self) -> int | None:
        """The template's process, if there is one."""
        return None if self._template is None else self._template.pid

    async def take_standby(self) -> WorkerProcess:
        """A worker process ready to be activated: the standby, or a new fork."""
        standby, self._standby = self._standby, None
        if standby is not None and standby.alive:
            return standby
        return await self._fork_worker(await self._ensure_template())

    async def activate(self, process: WorkerProcess, reason: str) -> None:
        """Make ``process`` the worker. Raises StartFailed when it does not come to serve."""
        assert self._listening is not None
        recorder = self._services.recorder
        durability = self._settings.agent.durability
        activation = await asyncio.wrap_future(
            recorder.activate(self.name, durability=durability, version=self.version, reason=reason)
        )
        process.activate(activation.ring_path, activation.notify_fd, reason, activation.epoch)
        await process.noticed(ACTIVATION_NOTICED_S)
        await process.serving()
        self.worker = process

    def retire(self) -> Future[int]:
        """Seal the journal and store what is in it."""
        return self._services.recorder.retire(self.name)

    def refill(self) -> None:
        """Have a standby again, soon."""
        wanted = self._settings.runtime.standby and not self._closing
        if wanted and (self._refill_task is None or self._refill_task.done()):
            self._refill_task = vital(self._refill(), f"standby of {self.name}")

    async def _refill(self) -> None:
        pause = REFILL_PAUSE_S
        while not self._closing:
            await asyncio.sleep(pause)
            if self._standby is not None and self._standby.alive:
                return
            try:
                standby = await self._fork_worker(await self._ensure_template())
            except OrunError as error:
                log.warning("no standby of %s yet: %s", self.name, error.message)
                pause = min(pause * 2, REFILL_PAUSE_S_MAX)
                continue
            self._standby = standby
            standby.on_exit(self._standby_gone)

    def _standby_gone(self, process: WorkerProcess) -> None:
        if process is self._standby:
            self._standby = None
            log.warning("the standby of %s ended: %s", self.name, process.exit_report().text())
            self.refill()

    async def _ensure_template(self) -> Template:
        if self._template is None or not self._template.alive:
            self._template = await self._new_template(load_snapshot(self._home))
        return self._template

    async def _new_template(self, program: Program) -> Template:
        home = program.save(str(self._services.state.versions))
        services = self._services
        timeout_s = self._settings.runtime.start_timeout
        output = services.log_of("loader")
        return await Template.start(services.forkserver, services.processes, output, home, timeout_s)

    async def _fork_worker(self, template: Template) -> WorkerProcess:
        assert self._listening is not None
        services = self._services

        async def fork_bare(args: dict[str, Any], fds: dict[str, int], title: str) -> Process:
            return await services.forkserver.fork("orun.worker.main:worker", args, fds=fds, title=title)

        # A program that starts threads when it is loaded cannot be forked after that: each worker loads it anew.
        fork = fork_bare if template.threads else template.fork
        try:
            return await WorkerProcess.fork(
                fork,
                agent=self.name,
                version=self.version,
                home=self._home,
                settings=self._settings,
                state=services.state,
                listening=self._listening,
                wake_fd=services.recorder.wake_fd,
                page=self.page,
                output=services.log_of(self.name),
            )
        except ForkFailed:
            # It is gone or does not answer: whoever tries again gets a worker from a new one.
            template.kill()
            raise

    def _adopt(self, template: Template, program: Program) -> None:
        self.handlers = template.handlers
        self.version = program.version
        self._home = os.path.join(str(self._services.state.versions), program.version)

    async def reload(self, hand_over: Callable[[WorkerProcess, str], Awaitable[None]]) -> dict[str, Any]:
        """Take the program as it is in the working tree now, and hand over to it without dropping a request.

        Raises UsageError when it does not load: the old version goes on.
        """
        async with self._changing:
            program = snapshot(self.path)
            before = self.version
            if program.version == before:
                return {"agent": self.name, "version": before, "changed": False}
            template = await self._new_template(program)
            if template.agent != self.name:
                template.kill()
                raise UsageError(f"{self.path} now defines agent {template.agent!r}, and {self.name!r} is running")
            old_template, old_standby = self._template, self._standby
            old = (self.handlers, self.version, self._home)
            self._template, self._standby = template, None
            self._adopt(template, program)
            try:
                process = await self._fork_worker(template)
            except OrunError:
                self._template, self._standby = old_template, old_standby
                self.handlers, self.version, self._home = old
                template.kill()
                raise
            for leftover in (old_standby, old_template):
                if leftover is not None:
                    leftover.kill()
            await hand_over(process, f"reload from {before}")
            self.refill()
            return {"agent": self.name, "version": self.version, "previous": before, "changed": True}

    def close(self) -> None:
        """End the template and the standby."""
        self._closing = True
        if self._refill_task is not None:
            self._refill_task.cancel()
        for process in (self._standby, self._template):
            if process is not None:
                process.kill()
        self._standby = self._template = None
        if self._listening is not None:
            self._listening.close()
            self._listening = None
            self.socket_path.unlink(missing_ok=True)


@final
class AgentChild(Child):
    """One life of an agent's worker, as its supervisor sees it. A hand-over continues the same life."""

    def __init__(self, host: AgentHost) -> None:
        self._host = host
        self._process: WorkerProcess | None = None
        self._handing_over = False
        self._ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._stopping = False

    async def start(self) -> None:
        """Activate the standby. Raises StartFailed."""
        host = self._host
        started = time.monotonic()
        process = await host.take_standby()
        self._process = process
        try:
            if self._stopping:
                raise StartFailed(f"{host.name} was stopped", Exit(reason="stopped", child=host.name))
            process.prepare()
            await host.activate(process, "start" if host.worker is None else "restart")
        except BaseException:
            process.kill()
            raise
        self.pid = process.pid
        process.on_exit(self._gone)
        host.refill()
        host.last_restart_ms = (time.monotonic() - started) * 1000

    async def wait(self) -> Exit:
        """How the worker ended; a hand-over is no end."""
        return await self._ended

    def stop(self) -> None:
        """Drain and end."""
        self._stopping = True
        if self._process is not None:
            self._process.drain()

    def kill(self) -> None:
        """End it now."""
        self._stopping = True
        if self._process is not None:
            self._process.kill()

    def status(self) -> dict[str, Any]:
        """What ``orun status`` shows of it."""
        return {"standby": self._host.standby_pid, "template": self._host.template_pid, "version": self._host.version}

    async def hand_over(self, successor: WorkerProcess, reason: str) -> None:
        """Drain the worker and activate its successor in its place."""
        try:
            await self._drain()
            await self._succeed(successor, reason)
        finally:
            self._handing_over = False

    async def _drain(self) -> None:
        """Have the worker answer what it has and end."""
        old = self._process
        if old is None or self._ended.done() or self._handing_over:
            raise NotRunning(f"agent {self._host.name} is not running just now", hint="try again in a moment")
        self._handing_over = True
        old.drain()
        if not await old.gone(self._host.shutdown_s):
            old.kill()
            await old.gone(None)

    async def _succeed(self, successor: WorkerProcess, reason: str) -> None:
        """Make ``successor`` the worker of this life; when it fails, the supervisor starts another life."""
        try:
            await self._host.activate(successor, reason)
        except BaseException as error:
            successor.kill()
            self._end(Exit(reason="start_failed", message=str(error), child=self._host.name))
            raise
        self._process = successor
        self.pid = successor.pid
        successor.on_exit(self._gone)

    async def at_rest(self, perform: Callable[[], Awaitable[None]]) -> None:
        """Drain the worker, do something to its stored state, and let its successor serve."""
        host = self._host
        successor = await host.take_standby()
        failure: OrunError | None = None
        try:
            await self._drain()
            await asyncio.wrap_future(host.retire())
            try:
                await perform()
            except OrunError as error:
                failure = error
            await self._succeed(successor, "restore")
        finally:
            self._handing_over = False
        host.refill()
        if failure is not None:
            raise failure

    def _gone(self, process: WorkerProcess) -> None:
        if process is self._process and not self._handing_over:
            self._end(process.exit_report())

    def _end(self, exit: Exit) -> None:
        if not self._ended.done():
            self._ended.set_result(exit)
