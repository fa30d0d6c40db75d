"""Plain commands as children: ``[[children]]`` and ``orun run -- CMD``."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

from orun.runtime.child import STDERR_LINES_SHOWN, Child, ChildSpec, Exit, StartFailed
from orun.runtime.logs import ChildLog
from orun.runtime.notify import NotifyReceiver
from orun.runtime.processes import Process
from orun.runtime.readiness import Readiness, Watchdog, command_succeeds, port_open
from orun.settings import ChildSettings

log = logging.getLogger("orun.commands")

TARGET: Final = "orun.worker.process:exec_command"
_EXEC_ERROR_BYTES: Final = 4096


class Forks(Protocol):
    """What starts processes: a :class:`~orun.runtime.forking.Forkserver` or ``ForkClient``."""

    async def fork(
        self, target: str, args: Mapping[str, Any], *, fds: Mapping[str, int] | None = None, title: str
    ) -> Process:
        """Fork a child."""


def command_spec(settings: ChildSettings, forks: Forks, output: ChildLog) -> ChildSpec:
    """The specification of a plain command. Raises UsageError when its readiness cannot be understood."""
    Readiness.parse(settings.ready)
    return ChildSpec(
        id=settings.name,
        start=lambda: CommandChild(settings, forks, output),
        restart=settings.restart,
        shutdown=settings.shutdown,
        success_codes=settings.success_codes,
        no_restart_codes=settings.no_restart_codes,
    )


class CommandChild(Child):
    """One life of a plain command."""

    def __init__(self, settings: ChildSettings, forks: Forks, output: ChildLog) -> None:
        self._settings = settings
        self._forks = forks
        self._output = output
        self._readiness = Readiness.parse(settings.ready)
        self._process: Process | None = None
        self._notify: NotifyReceiver | None = None
        self._watchdog = Watchdog(self._hung)
        self._notified = asyncio.Event()
        self._stop_asked = False
        self._kill_asked = False
        self._hang = ""
        self._status = ""
        self._deadline = 0.0
        self._timeout: asyncio.Timeout | None = None

    async def start(self) -> None:
        """Run it and wait until it is ready. Raises StartFailed."""
        try:
            await self._spawn()
            await self._become_ready()
        except BaseException:
            self.kill()
            self._close()
            raise

    async def wait(self) -> Exit:
        """How it ended."""
        assert self._process is not None
        exit = self._explained(await self._process.wait())
        self._close()
        return exit

    def stop(self) -> None:
        """SIGTERM, to everything in its process group, as a terminal's Ctrl-C would go to all of it."""
        self._stop_asked = True
        if self._process is not None:
            self._process.signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL; what it leaves behind is swept."""
        self._stop_asked = self._kill_asked = True
        if self._process is not None:
            self._process.kill()

    def status(self) -> dict[str, Any]:
        """What ``orun status`` shows beside what the supervisor knows."""
        shown: dict[str, Any] = {"command": list(self._settings.command)}
        if self._status:
            shown["message"] = self._status
        return shown

    async def _spawn(self) -> None:
        settings = self._settings
        env = dict(settings.env)
        if self._readiness.kind == "notify":
            self._notify = NotifyReceiver(settings.name, self._heard)
            env["NOTIFY_SOCKET"] = self._notify.address
        args = _arguments(settings, list(settings.command), env)
        self._output.forget_tail()
        streams = self._output.pipes()
        error_in, error_out = os.pipe()
        fds = {"stdout": streams[0], "stderr": streams[1], "exec_error": error_out}
        try:
            self._process = await self._forks.fork(TARGET, args, fds=fds, title=settings.name)
        except BaseException:
            os.close(error_in)
            raise
        finally:
            for fd in fds.values():
                os.close(fd)
        self.pid = self._process.pid
        problem = await _read_all(error_in)
        if problem:
            exit = replace(await self._process.wait(), reason="start_failed", message=problem, child=settings.name)
            raise StartFailed(f"{settings.name} cannot be run: {problem}", exit)
        self._catch_up()

    def _catch_up(self) -> None:
        # stop and kill may have been called while there was no process yet.
        if self._kill_asked:
            self.kill()
        elif self._stop_asked:
            self.stop()

    async def _become_ready(self) -> None:
        assert self._process is not None
        if self._readiness.kind == "started":
            return
        loop = asyncio.get_running_loop()
        ready = loop.create_task(self._ready(), name=f"{self._settings.name} becomes ready")
        ended = loop.create_task(self._process.wait(), name=f"{self._settings.name} ends")
        try:
            async with asyncio.timeout(self._settings.start_timeout) as self._timeout:
                await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            self.kill()
            exit = self._explained(await self._process.wait())
            message = f"not ready in time ({self._readiness.text()} did not come)"
            exit = replace(exit, reason="start_failed", message=message)
            raise StartFailed(f"{self._settings.name}: {message}", exit) from None
        finally:
            self._timeout = None
            for task in (ready, ended):
                task.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)
        if ready.cancelled():
            exit = replace(self._explained(await self._process.wait()), reason="start_failed")
            raise StartFailed(f"{self._settings.name} ended before it was ready: {exit.text()}", exit)
        ready.result()

    async def _ready(self) -> None:
        match self._readiness.kind:
            case "notify":
                await self._notified.wait()
            case "port":
                await port_open(self._readiness.port)
            case "command":
                await command_succeeds(self._readiness.command, self._probe)

    async def _probe(self, words: list[str], timeout_s: float) -> Exit:
        args = _arguments(self._settings, words, self._settings.env)
        silent = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        error_in, error_out = os.pipe()
        fds = {"stdout": silent, "stderr": silent, "exec_error": error_out}
        try:
            process = await self._forks.fork(TARGET, args, fds=fds, title=f"{self._settings.name}?")
        finally:
            for fd in (silent, error_in, error_out):
                os.close(fd)
        try:
            async with asyncio.timeout(timeout_s):
                return await process.wait()
        except TimeoutError:
            return Exit(reason="hung")
        finally:
            process.kill()

    def _heard(self, fields: Mapping[str, str]) -> None:
        self._status = fields.get("STATUS", self._status)
        extension = fields.get("EXTEND_TIMEOUT_USEC", "")
        if extension.isdecimal() and self._timeout is not None and not self._timeout.expired():
            now = asyncio.get_running_loop().time()
            self._timeout.reschedule(max(self._timeout.when() or 0.0, now + int(extension) / 1e6))
        if fields.get("READY") == "1":
            self._notified.set()
        if fields.get("STOPPING") == "1":
            self._watchdog.close()
        else:
            self._watchdog.heard(fields)

    def _hung(self, message: str) -> None:
        if self._process is not None and self._process.exit is None:
            log.warning("%s hangs and is killed: %s", self._settings.name, message)
            self._hang = message
            self._process.kill()

    def _explained(self, exit: Exit) -> Exit:
        self._output.drain()
        lines = tuple(self._output.tail(STDERR_LINES_SHOWN))
        exit = replace(exit, child=self._settings.name, stderr=lines)
        if self._hang:
            return replace(exit, reason="hung", message=self._hang)
        return replace(exit, reason="stopped") if self._stop_asked else exit

    def _close(self) -> None:
        self._watchdog.close()
        if self._notify is not None:
            self._notify.close()
            self._notify = None


def _arguments(settings: ChildSettings, command: list[str], env: Mapping[str, str]) -> dict[str, Any]:
    return {
        "command": command,
        "env": dict(env),
        "cwd": settings.cwd,
        "memory_max": settings.memory_max,
        "files_max": settings.files_max,
        "cpu_max": settings.cpu_max,
    }


async def _read_all(fd: int) -> str:
    """What comes through a pipe until it is closed by the exec, or by the end of the child."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        await readable.wait()
        return os.read(fd, _EXEC_ERROR_BYTES).decode("utf-8", "replace")
    finally:
        loop.remove_reader(fd)
        os.close(fd)
