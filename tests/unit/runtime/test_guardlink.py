"""The guard hears from the runtime, and the runtime notices at once when the guard is gone."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orun.runtime import guardlink
from orun.runtime.guardlink import GuardLink
from tests.support import alive, wait_until


def test_heartbeats_go_on_while_the_loop_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardlink, "HEARTBEAT_S", 0.01)
    read, write = os.pipe()
    environment = {"ORUN_GUARD_FD": str(write)}

    async def main() -> None:
        link = GuardLink.from_environment(lambda: None, environment)
        assert link is not None
        assert link.guard == os.getppid()
        assert environment == {}
        assert not os.get_inheritable(write)
        await asyncio.sleep(0.1)
        link.close()
        assert len(os.read(read, 100)) >= 3

    asyncio.run(main())
    os.close(read)
    os.close(write)


def test_guard_that_does_not_read_or_has_closed_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardlink, "HEARTBEAT_S", 0.001)
    read, write = os.pipe()
    gone: list[bool] = []

    async def main() -> None:
        os.set_blocking(write, False)
        while select.select([], [write], [], 0)[1]:
            os.write(write, b"x" * 4096)
        link = GuardLink(write, os.getppid(), lambda: gone.append(True))
        await asyncio.sleep(0.02)
        os.close(read)
        await asyncio.sleep(0.02)
        link.close()

    asyncio.run(main())
    os.close(write)
    assert gone == []


def test_without_a_guard_there_is_no_link() -> None:
    assert GuardLink.from_environment(lambda: None, {}) is None


RUNTIME = """
import asyncio, os, sys, time
from orun.runtime.guardlink import GuardLink
from orun.runtime.processes import Processes
from orun.worker.process import set_subreaper

async def main():
    processes = Processes()
    def gone():
        processes.kill_everything()
        os.write(1, b"%d\\n" % time.monotonic_ns())
        os._exit(0)
    link = GuardLink.from_environment(gone)
    for _ in range(5):
        processes.spawn(["/bin/sh", "-c", "setsid sleep 1000 & setsid sleep 1000 & wait"], title="x", fds={})
    os.write(1, b"ready\\n")
    await asyncio.sleep(1000)

set_subreaper()
asyncio.run(main())
"""

GUARD = f"""
import os, subprocess, sys, time
read, write = os.pipe()
runtime = subprocess.Popen(
    [sys.executable, "-c", {RUNTIME!r}], pass_fds=[write], env=dict(os.environ, ORUN_GUARD_FD=str(write))
)
time.sleep(1000)
"""


def test_runtime_without_guard_kills_everything_and_ends_at_once(tmp_path: Path) -> None:
    mark = f"ORUN_TEST_MARK={tmp_path}"
    environment = {**os.environ, "ORUN_TEST_MARK": str(tmp_path)}
    guard = subprocess.Popen([sys.executable, "-c", GUARD], stdout=subprocess.PIPE, env=environment)
    assert guard.stdout is not None
    assert guard.stdout.readline() == b"ready\n"
    tree = wait_until(lambda: _tree(mark, guard.pid), what="the runtime and five shells with two sleepers each")
    killed = time.monotonic_ns()
    guard.kill()
    done = int(guard.stdout.readline())
    guard.wait()
    guard.stdout.close()
    wait_until(lambda: not any(map(alive, tree)), 5, "the end of the tree")
    # 3 to 5 ms are usual. This only tells a reaction from a time-out: a busy machine stretches any short bound.
    assert (done - killed) / 1e6 < 2000


def _tree(mark: str, guard: int) -> list[int] | None:
    """The processes below the guard, once they are all what they are going to be."""
    names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in _marked(mark) if pid != guard}
    return list(names) if sorted(names.values())[-15:] == ["sh"] * 5 + ["sleep"] * 10 else None


def _marked(mark: str) -> list[int]:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if mark.encode() in Path(f"/proc/{entry}/environ").read_bytes():
                found.append(int(entry))
        except OSError:
            continue
    return found
