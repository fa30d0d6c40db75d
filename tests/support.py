"""What the tests share: a running orun in a folder of its own, and waiting without sleeping blindly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")
Completed = subprocess.CompletedProcess[str]

COUNTER = """
from orun import Agent
agent = Agent("counter")

@agent.handler
def add(state, request):
    state["total"] = state.get("total", 0) + request["amount"]
    return {"total": state["total"]}

@agent.handler(readonly=True)
def total(state, request):
    return {"total": state.get("total", 0)}
"""


def wait_until(condition: Callable[[], Value], timeout_s: float = 20.0, what: str = "the condition") -> Value:
    """Poll until the condition is true; returns its value. Raises AssertionError after the time-out."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout_s:g} s")
        time.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def processes_with(marker: str) -> list[int]:
    """Living processes whose environment or command line holds the marker."""
    found = []
    needle = marker.encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            for name in ("environ", "cmdline"):
                try:
                    content = Path(f"/proc/{entry}/{name}").read_bytes()
                except OSError:
                    continue
                if needle in content and alive(int(entry)):
                    found.append(int(entry))
                    break
    return found


class Orun:
    """The command line, in one folder with its own state directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self.marker = f"ORUN_TEST_MARK={folder}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ORUN_")},
            "ORUN_TEST_MARK": str(folder),
            "ORUN_STATE_DIR": str(self.state_dir),
        }
        if "ORUN_CACHE_DIR" in os.environ:
            self.environment["ORUN_CACHE_DIR"] = os.environ["ORUN_CACHE_DIR"]

    def write(self, source: str, name: str = "agent.py") -> Path:
        """Write a file into the folder."""
        path = self.folder / name
        path.write_text(textwrap.dedent(source))
        return path

    def run(
        self, *arguments: str, stdin: str | None = None, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "orun", *arguments],
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def ok(self, *arguments: str, stdin: str | None = None) -> str:
        """Run a command that must succeed; returns what it printed."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, f"orun {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """Run a command that must succeed and prints one JSON document."""
        return json.loads(self.ok(*arguments, "--json"))

    def start(self, *arguments: str) -> dict[str, Any]:
        """`orun run … --detach`; returns the status document."""
        self.ok("run", *arguments, "--detach")
        return self.status()

    def spawn(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command and leave it running."""
        return subprocess.Popen(
            [sys.executable, "-m", "orun", *arguments], cwd=self.folder, env=self.environment, text=True, **options
        )

    def call(self, handler: str, payload: object = None, *flags: str) -> Any:
        """Call a handler that must answer."""
        return json.loads(self.ok("call", handler, json.dumps(payload), *flags))

    def status(self) -> dict[str, Any]:
        """`orun status --json`."""
        document: dict[str, Any] = self.json("status")
        return document

    def agent(self) -> dict[str, Any]:
        """The only agent's part of the status."""
        (agent,) = self.status()["agents"]
        assert isinstance(agent, dict)
        return agent

    def processes(self) -> list[int]:
        """Everything alive that was started from here."""
        return processes_with(self.marker)

    def end(self) -> None:
        """Leave nothing behind."""
        self.run("stop", "--timeout", "10s")
        deadline = time.monotonic() + 10
        while (left := self.processes()) and time.monotonic() < deadline:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.02)


@contextmanager
def orun_in(folder: Path) -> Iterator[Orun]:
    """An ``Orun`` whose processes are gone afterwards."""
    orun = Orun(folder)
    try:
        yield orun
    finally:
        orun.end()
