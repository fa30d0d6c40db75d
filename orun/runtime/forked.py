"""A child that is one of orun's own programs, forked from the forkserver: the gateway."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any, final

from orun.runtime.child import STDERR_LINES_SHOWN, Child, Exit, StartFailed
from orun.runtime.forking import Forkserver
from orun.runtime.logs import ChildLog
from orun.runtime.processes import Process


@final
class ForkedChild(Child):
    """One life of ``target``. It writes a byte to the descriptor ``ready`` when it is ready, and ends on SIGTERM."""

    def __init__(
        self,
        name: str,
        target: str,
        args: Callable[[], dict[str, Any]],
        fds: Callable[[], dict[str, int]],
        *,
        forkserver: Forkserver,
        output: ChildLog,
        start_timeout_s: float,
    ) -> None:
        self._name = name
        self._target = target
        self._args = args
        self._fds = fds
        self._forkserver = forkserver
        self._output = output
        self._start_timeout_s = start_timeout_s
        self._process: Process | None = None
        self._stopped = False

    async def start(self) -> None:
        """Fork it and wait until it is ready. Raises StartFailed."""
        self._output.forget_tail()
        streams = self._output.pipes()
        ready, say_ready = os.pipe()
        own = {"stdout": streams[0], "stderr": streams[1], "ready": say_ready}
        try:
            self._process = await self._forkserver.fork(
                self._target, self._args(), fds=self._fds() | own, title=self._name
            )
        except BaseException:
            os.close(ready)
            raise
        finally:
            for fd in own.values():
                os.close(fd)
        self.pid = self._process.pid
        try:
            await self._await_ready(ready, self._process)
        except BaseException:
            self._process.kill()
            raise
        if self._stopped:
            self.stop()

    async def _await_ready(self, fd: int, process: Process) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(fd, readable.set)
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await readable.wait()
            ready = os.read(fd, 1)
        except TimeoutError:
            exit = Exit(
                reason="start_failed", message=f"not ready within {self._start_timeout_s:g} s", child=self._name
            )
            raise StartFailed(f"{self._name}: {exit.message}", exit) from None
        finally:
            loop.remove_reader(fd)
            os.close(fd)
        if not ready:
            exit = self._explained(await process.wait())
            raise StartFailed(f"{self._name} ended before it was ready: {exit.text()}", exit)

    async def wait(self) -> Exit:
        """How it ended."""
        assert self._process is not None
        return self._explained(await self._process.wait())

    def stop(self) -> None:
        """Ask it to finish what is under way and end."""
        self._stopped = True
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it now."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()

    def _explained(self, exit: Exit) -> Exit:
        self._output.drain()
        exit = replace(exit, child=self._name, stderr=tuple(self._output.tail(STDERR_LINES_SHOWN)))
        return replace(exit, reason="stopped") if self._stopped else exit
