"""Power cuts under a whole orun: the file system loses what it had not written.

`disk` replies are never lost, `process` replies are lost for a moment at most, and the next start is clean. The
disk is an ext4 on a loop device that is told to forget everything its log has not; before that, another process
has random pages of the database and the rings written out of order, as the kernel may do at any time.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orun.errors import OrunError
from orun.worker.client import connect
from tests.faults.counting import ROUNDS, SEED
from tests.faults.mounts import Disk, disk, needs_root
from tests.support import Orun, orun_in, wait_until

CUTS = max(3, ROUNDS // 3)
LOSS_S_MAX = 1.0

AGENT = """
from orun import Agent
agent = Agent("ledger")

@agent.handler
def write(state, request):
    number = state.get("last", 0)
    if request["number"] != number + 1:
        return {"error": f"{request['number']} after {number}"}
    state["last"] = number + 1
    state[f"entry {number % 50}"] = {"number": number + 1, "text": "x" * request["bytes"]}
    return {"number": number + 1}

@agent.handler(readonly=True)
def check(state, request):
    last = state.get("last", 0)
    entries = [state[f"entry {number % 50}"]["number"] for number in range(max(0, last - 50), last)]
    assert entries == list(range(max(0, last - 50) + 1, last + 1)), entries
    return last
"""

# Writes random pages back out of order, as the kernel may do at any time, and lets the file system commit.
ADVERSARY = """
import ctypes, os, random, sys, time
from pathlib import Path
libc = ctypes.CDLL(None)
rng = random.Random(int(sys.argv[2]))
state = Path(sys.argv[1])
other = os.open(state / "dummy", os.O_CREAT | os.O_RDWR)
while True:
    for path in (state / "journal" / "data.mdb", *(state / "rings").glob("*.ring")):
        try:
            fd = os.open(path, os.O_RDWR)
        except OSError:
            continue
        pages = os.fstat(fd).st_size // 4096 + 1
        for _ in range(20):
            libc.sync_file_range(fd, ctypes.c_long(rng.randrange(pages) * 4096), ctypes.c_long(4096), 7)
        os.close(fd)
    if rng.random() < 0.07:
        os.pwrite(other, b"x", rng.randrange(9999))
        os.fsync(other)
    time.sleep(0.003)
"""


class Ledger:
    """Numbers the agent has acknowledged, and when."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.times: dict[int, float] = {}

    async def write(self, state_dir: Path, seconds: float) -> None:
        """Write numbers for a while."""
        end = time.monotonic() + seconds
        with suppress(OrunError):
            async with connect(str(state_dir)) as client:
                while time.monotonic() < end:
                    number = self.last + 1
                    reply = await client.call("write", {"number": number, "bytes": 100 + number % 900}, timeout=5)
                    assert reply == {"number": number}, reply
                    self.last = number
                    self.times[number] = time.monotonic()

    def lost_s(self, found: int, cut: float) -> float:
        """The time before the cut from which acknowledged numbers are missing."""
        assert found + 1 >= min(self.times), "more is lost than was written since the last cut"
        return cut - self.times[found + 1] if found < self.last else 0.0


@pytest.fixture
def powered(tmp_path: Path) -> Iterator[tuple[Disk, Orun]]:
    with disk(tmp_path, 192 << 20) as found, orun_in(tmp_path) as orun:
        orun.state_dir = found.path / "state"
        orun.environment["ORUN_STATE_DIR"] = str(orun.state_dir)
        yield found, orun
        orun.end()


@needs_root
@pytest.mark.parametrize("durability", ["disk", "process"])
def test_power_cuts(powered: tuple[Disk, Orun], durability: str) -> None:
    disk, orun = powered
    rng = random.Random(SEED)
    arguments = (str(orun.write(AGENT)), "--durability", durability, "--set", "store.checkpoint_bytes=200KB")
    orun.start(*arguments)
    for cut in range(CUTS):
        ledger = Ledger(orun.call("check"))
        cut_at = strike(orun, disk, ledger, rng)
        assert ledger.times, "nothing was written"
        disk.unmount()
        disk.mount()
        orun.start(*arguments)
        found = orun.call("check")
        if durability == "disk":
            assert found in (ledger.last, ledger.last + 1), (cut, found)
        else:
            assert ledger.lost_s(found, cut_at) <= LOSS_S_MAX, (cut, found, ledger.last)
        assert orun.json("wal", "verify")["ok"], cut


def strike(orun: Orun, disk: Disk, ledger: Ledger, rng: random.Random) -> float:
    """Write, cut the power in the middle of it, and end everything that ran; when it was cut."""

    async def main() -> float:
        adversary = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ADVERSARY, str(orun.state_dir), str(rng.randrange(1 << 30)), env=orun.environment
        )
        writing = asyncio.create_task(ledger.write(orun.state_dir, 30))
        await asyncio.sleep(rng.uniform(0.3, 1.0))
        # Nothing may be acknowledged between the last look and the cut: everything stands still for it.
        tree = orun.processes()
        for pid in tree:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.02)
        cut_at = time.monotonic()
        disk.cut_the_power()
        for pid in tree:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await adversary.wait()
        return cut_at

    cut_at = asyncio.run(main())
    wait_until(lambda: not orun.processes(), what="the end of everything")
    return cut_at
