"""Real processes under this test process: it is their runtime, a subreaper, and sweeps what is left."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from orun.runtime.child import ChildSpec
from orun.runtime.commands import CommandChild, command_spec
from orun.runtime.forking import Forkserver
from orun.runtime.logs import ChildLog
from orun.runtime.processes import Processes
from orun.runtime.supervisor import Supervisor
from orun.runtime.sweep import child_pids
from orun.settings import ChildSettings, LogSettings
from orun.worker.process import set_subreaper

Result = TypeVar("Result")


class Lab:
    """A forkserver, the registry of processes and a folder for logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.complaints: list[str] = []
        self.processes = Processes(spare=child_pids())
        self.forkserver = Forkserver(self.processes)
        self.logs: dict[str, ChildLog] = {}

    def log(self, name: str, **settings: Any) -> ChildLog:
        if name not in self.logs:
            limits = LogSettings(**settings)
            self.logs[name] = ChildLog(name, self.folder, limits, complain=self.complaints.append)
        return self.logs[name]

    def command(self, name: str, *command: str, **settings: Any) -> ChildSpec:
        child = ChildSettings(name=name, command=command, **settings)
        return command_spec(child, self.forkserver, self.log(name))

    def python(self, name: str, source: str, **settings: Any) -> ChildSpec:
        return self.command(name, sys.executable, "-I", "-S", "-c", textwrap.dedent(source), **settings)

    def life(self, spec: ChildSpec) -> CommandChild:
        child = spec.start()
        assert isinstance(child, CommandChild)
        return child

    def top(self, *specs: ChildSpec, **options: Any) -> Supervisor:
        forkserver = ChildSpec("forkserver", self.forkserver.child)
        return Supervisor("top", [forkserver, *specs], **options)

    def text(self, name: str) -> str:
        self.logs[name].drain()
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""


def live(folder: Path, main: Callable[[Lab], Coroutine[Any, Any, Result]]) -> Result:
    """Run a coroutine as the runtime of real processes; nothing of them is left afterwards."""

    async def run() -> Result:
        lab = Lab(folder)
        before = open_fds()
        lab.processes.open()
        try:
            return await main(lab)
        finally:
            known = list(lab.processes.known.values())
            for process in known:
                process.kill()
            for process in known:
                await process.wait()
            assert lab.processes.kill_everything()
            lab.processes.close()
            for log in lab.logs.values():
                log.close()
            await until(lambda: open_fds() <= before, what="all descriptors closed")

    set_subreaper(True)
    try:
        return asyncio.run(run())
    finally:
        set_subreaper(False)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


async def until(
    condition: Callable[[], Any], timeout_s: float = 10.0, what: str = "the condition", step_s: float = 0.002
) -> Any:
    """Poll while the event loop turns; the condition's value, or AssertionError."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s:g} s"
        await asyncio.sleep(step_s)
    return value


def states(top: Supervisor) -> dict[str, str]:
    return {child["id"]: child["state"] for child in top.tree()["children"]}


def document(top: Supervisor, id: str) -> dict[str, Any]:
    (found,) = [child for child in top.tree()["children"] if child["id"] == id]
    return found
