"""A template: the process that has loaded an agent's program, and that its workers are forked from."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any, final

from orun.errors import DeadlineExceeded, OrunError
from orun.runtime.child import StartFailed
from orun.runtime.forking import ForkClient, Forkserver, ForkserverGone
from orun.runtime.logs import ChildLog
from orun.runtime.processes import Process, Processes
from orun.worker import wire

REPORT_BYTES_MAX = 1 << 16


@final
class Template:
    """A process that has loaded an agent's program and forks workers of it."""

    def __init__(self, process: Process, client: ForkClient, report: dict[str, Any], home: str) -> None:
        self._process = process
        self._client = client
        self.home = home
        self.agent: str = report["agent"]
        self.handlers: list[str] = report["handlers"]
        self.threads: int = report["threads"]

    @classmethod
    async def start(
        cls, forkserver: Forkserver, processes: Processes, output: ChildLog, home: str, timeout_s: float
    ) -> Template:
        """Load the program in ``home``. Raises what loading raised, by its exit code, or DeadlineExceeded."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        report_ours, report_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        streams = output.pipes()
        fds = {
            "control": theirs.fileno(),
            "report": report_theirs.fileno(),
            "stdout": streams[0],
            "stderr": streams[1],
        }
        try:
            process = await forkserver.fork("orun.worker.main:template", {"home": home}, fds=fds, title="template")
        except BaseException:
            ours.close()
            report_ours.close()
            raise
        finally:
            theirs.close()
            report_theirs.close()
            for fd in streams:
                os.close(fd)
        client = ForkClient(ours, processes)
        try:
            report = await cls._report(report_ours, process, timeout_s)
            await client.ready()
        except ForkserverGone:
            raise StartFailed("the template ended while it started", await process.wait()) from None
        except BaseException:
            client.close()
            process.kill()
            raise
        finally:
            report_ours.close()
        return cls(process, client, report, home)

    @staticmethod
    async def _report(report: socket.socket, process: Process, timeout_s: float) -> dict[str, Any]:
        report.setblocking(False)
        try:
            async with asyncio.timeout(timeout_s):
                data = await asyncio.get_running_loop().sock_recv(report, REPORT_BYTES_MAX)
        except TimeoutError:
            hint = "raise runtime.start_timeout if its imports take long"
            raise DeadlineExceeded(f"the agent did not load within {timeout_s:g} s", hint=hint) from None
        if not data:
            exit = await process.wait()
            raise StartFailed(f"the process that loads the agent ended: {exit.text()}", exit)
        message: dict[str, Any] = wire.unpack(data)
        if not message["ok"]:
            error = OrunError(message["message"], hint=message["hint"])
            error.code = message["code"]
            raise error
        return message

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can fork."""
        return self._process.exit is None and not self._client.closed

    async def fork(self, args: dict[str, Any], fds: dict[str, int], title: str) -> Process:
        """Fork a worker."""
        return await self._client.fork("orun.worker.main:worker", args, fds=fds, title=title)

    def kill(self) -> None:
        """End it; its workers live on."""
        self._client.close()
        self._process.kill()
