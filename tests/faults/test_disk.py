"""Full, failing and unwritable disks under a whole orun."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from orun.errors import OrunError
from orun.worker.client import connect
from tests.faults.mounts import needs_root, tmpfs
from tests.support import COUNTER, Orun, orun_in, wait_until

HOARDER = """
import os
from orun import Agent
agent = Agent("hoarder")

@agent.handler
def keep(state, request):
    number = state.get("count", 0) + 1
    state["count"] = number
    state[f"blob {number}"] = os.urandom(request["bytes"])
    return number

@agent.handler(readonly=True)
def count(state, request):
    for number in range(1, state.get("count", 0) + 1):
        assert len(state[f"blob {number}"]) == request["bytes"]
    return state.get("count", 0)

@agent.handler
def shout(state, request):
    for _ in range(request["lines"]):
        print("x" * 999)
    state["shouts"] = state.get("shouts", 0) + 1
    return state["shouts"]
"""


def fill_up(orun: Orun, size_bytes: int) -> int:
    """Have the agent keep things until the runtime is gone; the last acknowledged count."""

    async def main() -> int:
        acknowledged = 0
        try:
            async with connect(str(orun.state_dir)) as client:
                while True:
                    acknowledged = await client.call("keep", {"bytes": size_bytes}, timeout=10)
        except OrunError:
            return acknowledged

    return asyncio.run(main())


@needs_root
@pytest.mark.parametrize("durability", ["disk", "process"])
def test_full_disk_ends_the_runtime_and_loses_nothing(tmp_path: Path, durability: str) -> None:
    with tmpfs(tmp_path / "small", "72m") as mount, orun_in(tmp_path) as orun:
        orun.state_dir = mount / "state"
        orun.environment["ORUN_STATE_DIR"] = str(orun.state_dir)
        ballast = mount / "ballast"
        ballast.write_bytes(bytes(48 << 20))
        arguments = (str(orun.write(HOARDER)), "--durability", durability)
        process = orun.spawn("run", *arguments, stderr=subprocess.PIPE)
        wait_until(lambda: orun.run("status").returncode == 0, what="the runtime to answer")
        acknowledged = fill_up(orun, 50_000)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 1, said
        assert acknowledged > 0
        assert "the disk is full" in said
        assert str(orun.state_dir) in said
        assert "hint: free some space" in said
        assert "Traceback" not in said
        wait_until(lambda: not orun.processes(), what="the end of everything")
        # While it is full, a start says the same and changes nothing.
        again = orun.run("run", *arguments, "--detach")
        assert again.returncode in (0, 1)
        if again.returncode == 1:
            assert "full" in again.stderr or "No space left" in again.stderr
            assert "Traceback" not in again.stderr
        else:
            orun.run("stop")
        ballast.unlink()
        orun.start(*arguments)
        found = orun.call("count", {"bytes": 50_000})
        assert found in (acknowledged, acknowledged + 1)
        assert orun.call("keep", {"bytes": 50_000}) == found + 1
        assert orun.json("wal", "verify")["ok"]


@needs_root
def test_a_full_disk_for_logs_only_stops_nobody(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "1m") as mount, orun_in(tmp_path) as orun:
        orun.state_dir.mkdir()
        (orun.state_dir / "logs").symlink_to(mount)
        orun.start(str(orun.write(HOARDER)))
        for number in range(1, 4):
            assert orun.call("shout", {"lines": 1000}) == number
        wait_until(lambda: os.statvfs(mount).f_bavail == 0, what="the full disk")
        assert orun.call("keep", {"bytes": 10}) == 1
        orun.ok("checkpoint", "create")
        orun.ok("stop")
        orun.start(str(orun.folder / "agent.py"))
        assert orun.call("count", {"bytes": 10}) == 1


@needs_root
def test_a_read_only_state_directory_is_refused_by_name(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "24m") as mount, orun_in(tmp_path) as orun:
        orun.state_dir = mount / "state"
        orun.environment["ORUN_STATE_DIR"] = str(orun.state_dir)
        agent = str(orun.write(COUNTER))
        orun.start(agent)
        orun.call("add", {"amount": 2})
        orun.ok("stop")
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        refuses(orun, ("run", agent, "--detach"), "Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", str(mount)], check=True)
        orun.start(agent)
        assert orun.call("total") == {"total": 2}


def refuses(orun: Orun, arguments: tuple[str, ...], why: str) -> None:
    done = orun.run(*arguments)
    assert done.returncode in (1, 2), done
    assert why in done.stderr
    assert str(orun.state_dir) in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
    wait_until(lambda: not orun.processes(), what="the end of everything")


def test_a_state_directory_that_is_a_file_is_refused_by_name(orun: Orun) -> None:
    orun.state_dir.write_text("not a folder")
    refuses(orun, ("run", str(orun.write(COUNTER)), "--detach"), "xists")


def test_a_state_directory_below_a_file_is_refused_by_name(orun: Orun) -> None:
    (orun.folder / "file").write_text("")
    orun.state_dir = orun.folder / "file" / "state"
    orun.environment["ORUN_STATE_DIR"] = str(orun.state_dir)
    refuses(orun, ("run", str(orun.write(COUNTER)), "--detach"), "Not a directory")


@needs_root
def test_a_state_directory_of_somebody_else_is_refused_by_name(tmp_path: Path) -> None:
    """As a user without rights to it."""
    with orun_in(tmp_path) as orun:
        agent = str(orun.write(COUNTER))
        orun.state_dir = Path("/proc/1/orun-state")
        orun.environment["ORUN_STATE_DIR"] = str(orun.state_dir)
        refuses(orun, ("run", agent, "--detach"), "No such file or directory")


def test_a_map_that_must_grow_while_serving_grows(orun: Orun) -> None:
    agent = str(orun.write(HOARDER))
    orun.start(agent, "--set", "store.map_bytes=1MB", "--set", "store.checkpoint_bytes=1MB")

    async def main() -> None:
        async with connect(str(orun.state_dir)) as client:
            for number in range(1, 201):
                assert await client.call("keep", {"bytes": 50_000}) == number

    asyncio.run(main())
    assert (orun.state_dir / "journal" / "data.mdb").stat().st_size > 8 << 20
    assert orun.agent()["restarts"] == 0
    assert orun.call("count", {"bytes": 50_000}) == 200
    orun.ok("stop")
    orun.start(agent, "--set", "store.map_bytes=1MB")
    assert orun.call("count", {"bytes": 50_000}) == 200
    assert json.loads(orun.ok("wal", "verify", "--json"))["ok"]
