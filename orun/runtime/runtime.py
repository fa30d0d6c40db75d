"""The runtime: what is started in which order, what makes it end, and how it ends.

    main ─┬─ forkserver                one_for_one, intensity from the settings
          ├─ agent NAME ── worker      one supervisor for each agent
          ├─ children ─── commands     the user's strategy
          └─ gateway                   only with an HTTP address

``main`` itself allows no restart: a branch that gave up is the end of the runtime, with the last error and
exit code 14. It ends in an orderly way on a signal or on ``orun stop``, and at once when the disk fails
(nothing more may be acknowledged) or the guard is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from orun.errors import NotFound, OrunError
from orun.runtime import gateway, leftovers, reporting
from orun.runtime.agents import AgentChild, AgentHost, Services
from orun.runtime.child import ChildSpec, Exit, failure_of
from orun.runtime.commands import command_spec
from orun.runtime.control import ControlServer
from orun.runtime.early import WORKER_MODULES, Early
from orun.runtime.foreground import Foreground
from orun.runtime.forked import ForkedChild
from orun.runtime.forking import Forkserver
from orun.runtime.guardlink import GuardLink
from orun.runtime.launch import Options
from orun.runtime.logs import ChildLog
from orun.runtime.notify import SystemdNotifier
from orun.runtime.operations import Operations
from orun.runtime.processes import Processes
from orun.runtime.supervisor import Supervisor
from orun.runtime.sweep import child_pids
from orun.runtime.vital import VITAL
from orun.runtime.watch import watch
from orun.settings import ChildSettings, Restart, Settings
from orun.store.layout import StateDir
from orun.store.lock import StateLock
from orun.store.recorder import Recorder
from orun.worker.process import set_subreaper

log = logging.getLogger("orun.runtime")

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
EXIT_GUARD_GONE = 125
HTTP_FILE = "http"


@final
class Runtime:
    """One runtime, from the lock to the last line of its log."""

    def __init__(self, options: Options, settings: Settings, early: Early | None = None) -> None:
        self._early = early
        self.options = options
        self.settings = settings
        self.state = StateDir(options.state_dir)
        self.started = time.time()
        self.hosts: dict[str, AgentHost] = {}
        self.http: str | None = None
        self.events: reporting.Events
        self.recorder: Recorder
        self._logs: dict[str, ChildLog] = {}
        self._foreground: Foreground | None = None
        self._ending: asyncio.Future[int]
        self._signals = 0
        self._listening: socket.socket | None = None
        self._token = ""

    async def run(self, ready: Callable[[dict[str, Any]], None], foreground: Foreground | None) -> int:
        """Start everything, say that it is ready, and serve until the end. Returns the exit code."""
        loop = asyncio.get_running_loop()
        self._ending = loop.create_future()
        self._catch_signals(loop)
        loop.set_exception_handler(_tell)
        set_subreaper()
        ours = {self._early.pid} if self._early is not None else set()
        self.processes = Processes(spare=set(child_pids()) - ours)
        self.state.create()
        with StateLock(self.state):
            self.events = reporting.Events(self.state, self.settings.logs)
            self.events.foreground = self._foreground = foreground
            logging.getLogger("orun").addHandler(self.events)
            logging.getLogger("orun").setLevel(logging.INFO)
            leftovers.sweep(self.state.run)
            guard = GuardLink.from_environment(self._guard_gone)
            try:
                return await self._run(ready)
            finally:
                self.processes.kill_everything()
                self.processes.close()
                self.state.runtime_file.unlink(missing_ok=True)
                for output in self._logs.values():
                    output.close()
                if foreground is not None:
                    await asyncio.to_thread(foreground.close)
                if guard is not None:
                    guard.close()
                logging.getLogger("orun").removeHandler(self.events)
                self.events.close()

    async def _run(self, ready: Callable[[dict[str, Any]], None]) -> int:
        self._bind_http()
        self.recorder = Recorder(
            self.state,
            self.settings.store,
            on_failure=self._storage_failed,
            on_event=self._recorder_event,
            idempotency_ttl=self.settings.agent.idempotency_ttl,
        )
        self.recorder.start()
        try:
            await asyncio.to_thread(self.recorder.recover)
            self.processes.open()
            self.main = Supervisor(
                "main", intensity=0, auto_shutdown="any_significant" if self._lone_command else "never"
            )
            await self.main.start()
            try:
                return await self._serve(ready)
            finally:
                await self._stop_children()
        finally:
            await asyncio.to_thread(self.recorder.stop)

    async def _serve(self, ready: Callable[[dict[str, Any]], None]) -> int:
        notifier = SystemdNotifier.from_environment()
        await self._start_children()
        self.operations = Operations(self)
        control = ControlServer(self.state.control_socket, self.operations.table())
        await control.open()
        try:
            await self._start_gateway()
            if self.options.watch:
                self._watching = asyncio.create_task(watch(self.options.agents, self._reload_path), name="watch")
            ready(self.publish())
            if notifier is not None:
                notifier.ready(", ".join(self.hosts) or "children run")
            names = ", ".join([*self.hosts, *(command.name for command in self._commands())])
            log.info("ready: %s%s", names, f", http://{self.http}" if self.http else "")
            return await self._until_the_end()
        finally:
            if notifier is not None:
                notifier.stopping()
                notifier.close()
            await control.close()

    async def _start_children(self) -> None:
        settings = self.settings.runtime
        self.forkserver = Forkserver(
            self.processes, modules=WORKER_MODULES, output=self.log_of("forkserver").pipes, early=self._early
        )
        await self._add_branch("forkserver", [ChildSpec("forkserver process", start=self.forkserver.child)])
        services = Services(
            settings=self.settings,
            state=self.state,
            recorder=self.recorder,
            forkserver=self.forkserver,
            processes=self.processes,
            log_of=self.log_of,
        )
        hosts = [AgentHost(path, services) for path in self.options.agents]
        # Programs load side by side; which of them fails first is told first.
        await asyncio.gather(*(host.open() for host in hosts))
        for host in hosts:
            if host.name in self.hosts:
                raise OrunError(
                    f"two agent files define agent {host.name!r}: {self.hosts[host.name].path}, {host.path}"
                )
            self.hosts[host.name] = host
            await self._add_branch(f"agent {host.name}", [_worker_spec(host, settings.shutdown)])
        commands = self._commands()
        if commands:
            specs = [command_spec(command, self.forkserver, self.log_of(command.name)) for command in commands]
            if self._lone_command:
                specs = [replace(spec, significant=True) for spec in specs]
            await self._add_branch("children", specs, strategy=settings.strategy)

    async def _add_branch(self, name: str, specs: list[ChildSpec], **options: Any) -> None:
        settings = self.settings.runtime
        significant = any(spec.significant for spec in specs)

        def make() -> Supervisor:
            return Supervisor(
                name,
                specs,
                intensity=settings.intensity,
                period=settings.period,
                backoff=settings.backoff,
                backoff_max=settings.backoff_max,
                auto_shutdown="all_significant" if significant else "never",
                **options,
            )

        restart: Restart = "transient" if significant else "permanent"
        await self.main.start_child(
            ChildSpec(name, start=make, type="supervisor", restart=restart, significant=significant)
        )

    @property
    def _lone_command(self) -> bool:
        """Whether this runs one command in the foreground, whose exit is then the result."""
        return bool(self.options.command) and self.options.foreground

    def _commands(self) -> list[ChildSettings]:
        """The plain commands: those of the settings, or the one of ``orun run -- CMD``."""
        if not self.options.command:
            return list(self.settings.children)
        restart: Restart = "temporary" if self._lone_command else "permanent"
        name = Path(self.options.command[0]).name
        return [ChildSettings(name=name, command=tuple(self.options.command), restart=restart)]

    def _bind_http(self) -> None:
        if not self.options.http:
            return
        host, port = gateway.check_address(self.options.http, self.options.token_file)
        if self.options.token_file:
            self._token = gateway.read_token(self.options.token_file)
        # A runtime that the guard has restarted takes the port it had: clients know that one.
        kept = self.state.run / HTTP_FILE
        if port == 0 and os.environ.get("ORUN_RESTARTS", "0") != "0" and kept.exists():
            port = int(kept.read_text())
        self._listening = gateway.bind(host, port)
        port = self._listening.getsockname()[1]
        kept.write_text(str(port))
        self.http = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def _start_gateway(self) -> None:
        if self._listening is None:
            return
        listening = self._listening
        args = reporting.runtime_document(self.state, self.started, self.http, self.hosts.values())
        args |= {
            "state_dir": str(self.state.path),
            "token": self._token,
            "body_bytes_max": self.settings.agent.request_bytes_max,
        }

        def make() -> ForkedChild:
            return ForkedChild(
                "gateway",
                "orun.runtime.gateway:main",
                lambda: args,
                lambda: {"listen": listening.fileno()},
                forkserver=self.forkserver,
                output=self.log_of("gateway"),
                start_timeout_s=self.settings.runtime.start_timeout,
            )

        await self._add_branch("gateway", [ChildSpec("gateway process", start=make)])

    async def _until_the_end(self) -> int:
        branches = asyncio.create_task(self.main.wait())
        try:
            await asyncio.wait((self._ending, branches), return_when=asyncio.FIRST_COMPLETED)
            if self._ending.done():
                return self._ending.result()
            exit = branches.result()
        finally:
            branches.cancel()
        if exit.reason == "shutdown":
            command = exit.root()
            return command.code if command.code is not None else 128 + (command.signal or 0)
        raise failure_of(_innermost(exit))

    async def _reload_path(self, path: str) -> str:
        (host,) = [host for host in self.hosts.values() if host.path == path]
        (result,) = (await self.operations.reload({"agent": host.name}))["agents"]
        return f"{host.name} runs version {result['version']}" if result["changed"] else f"{host.name}: nothing changed"

    async def _stop_children(self) -> None:
        log.info("stopping")
        self.main.stop()
        await self.main.wait()
        for host in self.hosts.values():
            host.close()
            # The next start then replays nothing.
            await asyncio.wrap_future(self.recorder.retire(host.name))
            if self.recorder.position(host.name)["log_bytes"]:
                await asyncio.wrap_future(self.recorder.checkpoint(host.name, "stop"))

    def log_of(self, name: str) -> ChildLog:
        """The log of a child, across its lives."""
        if name not in self._logs:
            self._logs[name] = ChildLog(
                name,
                self.state.logs,
                self.settings.logs,
                complain=lambda trouble: log.warning("%s", trouble),
                echo=self._foreground,
            )
        return self._logs[name]

    def publish(self) -> dict[str, Any]:
        """Write where clients and the gateway find the agents and their handlers; returns the document."""
        document = reporting.runtime_document(self.state, self.started, self.http, self.hosts.values())
        reporting.write_runtime_file(self.state, document)
        return document

    def rotate_logs(self) -> list[str]:
        """Begin a new log file for every child."""
        for output in self._logs.values():
            output.rotate()
        return sorted(self._logs)

    def host(self, name: str | None) -> list[AgentHost]:
        """The agent of this name, or all. Raises NotFound."""
        if name is None:
            return list(self.hosts.values())
        if name not in self.hosts:
            raise NotFound(f"no agent {name!r} runs here", hint=f"agents: {', '.join(self.hosts) or 'none'}")
        return [self.hosts[name]]

    def end(self, code: int) -> None:
        """Stop in an orderly way and end with this exit code."""
        if not self._ending.done():
            self._ending.set_result(code)

    def _catch_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        for number, code in (
            (signal.SIGINT, EXIT_INTERRUPTED),
            (signal.SIGTERM, EXIT_TERMINATED),
            (signal.SIGHUP, EXIT_TERMINATED),
        ):
            loop.add_signal_handler(number, self._signalled, number, code)

    def _signalled(self, number: int, code: int) -> None:
        self._signals += 1
        if self._signals == 1:
            log.info("%s: stopping in an orderly way; once more ends at once", signal.Signals(number).name)
            self.end(code)
        elif hasattr(self, "main"):
            self.main.kill()

    def _guard_gone(self) -> None:
        self.processes.kill_everything()
        os._exit(EXIT_GUARD_GONE)

    def _storage_failed(self, error: OrunError) -> None:
        self._ending.get_loop().call_soon_threadsafe(self._fail_stop, error)

    def _fail_stop(self, error: OrunError) -> None:
        """After a failed write the disk's answers mean nothing: whatever is not acknowledged yet stays so."""
        log.error("%s", error.message)
        if not self._ending.done():
            self._ending.set_exception(error)
        self.main.kill()

    def _recorder_event(self, kind: str, fields: dict[str, Any]) -> None:
        log.log(reporting.event_level(kind), "%s", reporting.event_text(kind, fields))


def _tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What the event loop could not deliver to anybody: told, and the end of this process when it was vital."""
    error = context.get("exception")
    log.error("%s", context["message"], exc_info=error)
    if context.get(VITAL):
        os.kill(os.getpid(), signal.SIGKILL)


def _worker_spec(host: AgentHost, shutdown_s: float) -> ChildSpec:
    return ChildSpec("worker", start=lambda: AgentChild(host), shutdown=shutdown_s)


def _innermost(exit: Exit) -> Exit:
    """The exit of the branch that gave up, rather than that of the supervisor above, which only passes it on."""
    while exit.cause is not None and exit.cause.reason in ("intensity", "no_restart"):
        exit = exit.cause
    return exit
