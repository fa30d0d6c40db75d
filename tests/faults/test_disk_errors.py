"""The k-th write or sync of the runtime fails: it ends with a clear error, and nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import errno
import random
import subprocess
from pathlib import Path

import pytest

from orun.errors import OrunError
from orun.worker.client import connect
from tests.faults.counting import CHAIN, ROUNDS, SEED
from tests.faults.shims import DISK, build
from tests.support import Orun, wait_until

LIVES = max(2, ROUNDS // 12)
"""For each kind of failure."""


def count_until_the_end(orun: Orun, number: int) -> int:
    """Count on from a number until the runtime is gone; the last number acknowledged."""

    async def main() -> int:
        last = number
        try:
            async with connect(str(orun.state_dir)) as client:
                while True:
                    reply = await client.call("next", {"client": "c", "number": last + 1}, timeout=10)
                    assert reply == {"number": last + 1}
                    last += 1
        except OrunError:
            return last

    return asyncio.run(main())


def start(orun: Orun, agent: str, durability: str) -> subprocess.Popen[str]:
    """A runtime in the foreground that serves or has ended already."""
    process = orun.spawn("run", agent, "--durability", durability, stderr=subprocess.PIPE)
    runtime_file = orun.state_dir / "run" / "runtime.json"
    wait_until(lambda: runtime_file.exists() or process.poll() is not None, what="the runtime")
    return process


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(DISK, tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize(
    ("function", "error"),
    [("fdatasync", errno.EIO), ("pwrite", errno.EIO), ("pwrite", errno.ENOSPC), ("pwrite", 0)],
    ids=["fdatasync EIO", "pwrite EIO", "pwrite ENOSPC", "pwrite short"],
)
def test_a_failed_write_ends_the_runtime_and_loses_nothing(orun: Orun, shim: Path, function: str, error: int) -> None:
    agent = str(orun.write(CHAIN))
    rng = random.Random(SEED)
    orun.environment["LD_PRELOAD"] = str(shim)
    acknowledged = 0
    for life in range(LIVES):
        # The very first one is in the making of the database.
        at = 1 if life == 0 else rng.choice((rng.randrange(2, 15), rng.randrange(15, 400)))
        durability = rng.choice(("disk", "process"))
        orun.environment["ORUN_SHIM"] = f"{function}:{at}:{error}"
        process = start(orun, agent, durability)
        acknowledged = count_until_the_end(orun, acknowledged)
        _, said = process.communicate(timeout=20)
        where = (life, at, durability, said)
        assert process.returncode == 1, where
        assert f"shim: {function} fails" in said, where
        assert "error: " in said, where
        assert str(orun.state_dir / "journal") in said, where
        assert "hint: " in said, where
        assert "Traceback" not in said, where
        wait_until(lambda: not orun.processes(), what="the end of everything")
        del orun.environment["ORUN_SHIM"]
        orun.start(agent)
        found = orun.call("look").get("c", 0)
        assert found in (acknowledged, acknowledged + 1), where
        acknowledged = found
        assert orun.json("wal", "verify")["ok"], where
        orun.ok("stop")
