"""Things that happen to a running or resting orun: files removed, bytes flipped, odd places, slow programs."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.counting import ROUNDS, SEED
from tests.support import COUNTER, Orun, wait_until

NAMED = """
import sys
from orun import Agent
agent = Agent("{name}")

@agent.handler
def add(state, request):
    state["total"] = state.get("total", 0) + 1
    return [agent.name, state["total"]]
"""

SLOW = """
import threading, time
time.sleep(0.7)
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
"""


def kill_everything(orun: Orun) -> None:
    for pid in orun.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not orun.processes(), what="every process to be gone")


def test_a_runtime_file_that_is_removed_or_torn_is_no_danger(orun: Orun) -> None:
    agent = str(orun.write(COUNTER))
    status = orun.start(agent)
    orun.call("add", {"amount": 1})
    (orun.state_dir / "run" / "runtime.json").unlink()
    done = orun.run("run", agent, "--detach")
    assert done.returncode == 11, done
    assert str(status["runtime_pid"]) in done.stderr or str(status["pid"]) in done.stderr
    kill_everything(orun)
    for torn in ("", "{", "[]", '{"pid": "x"}', '{"pid": 1, "runtime_pid": 2, "agents": []}'):
        (orun.state_dir / "run" / "runtime.json").write_text(torn)
        assert orun.run("status").returncode == 3
    orun.start(agent)
    assert orun.call("total") == {"total": 1}


def test_sockets_that_are_removed_are_back_with_the_next_start(orun: Orun) -> None:
    agent = str(orun.write(COUNTER))
    orun.start(agent)
    orun.call("add", {"amount": 1})
    (orun.state_dir / "run" / "counter.sock").unlink()
    done = orun.run("call", "total", "null", "--timeout", "500ms")
    assert done.returncode in (1, 3, 124)
    assert "Traceback" not in done.stderr
    orun.ok("stop")
    orun.start(agent)
    assert orun.call("total") == {"total": 1}
    (orun.state_dir / "run" / "control.sock").unlink()
    done = orun.run("status")
    assert done.returncode in (1, 3)
    assert "Traceback" not in done.stderr
    assert orun.call("add", {"amount": 1}) == {"total": 2}


def test_a_ring_directory_removed_while_running_loses_nothing_committed(orun: Orun) -> None:
    agent = str(orun.write(COUNTER))
    orun.start(agent)
    orun.call("add", {"amount": 1})
    shutil.rmtree(orun.state_dir / "rings")
    assert orun.call("add", {"amount": 1}) == {"total": 2}
    # The next worker needs a journal: there is no place for one, and that is said.
    os.kill(orun.agent()["pid"], signal.SIGKILL)
    wait_until(lambda: orun.run("status").returncode == 3, what="the runtime to give up")
    assert str(orun.state_dir / "rings") in (orun.state_dir / "logs" / "runtime.log").read_text()
    orun.start(agent)
    assert orun.call("total") == {"total": 2}


@pytest.mark.parametrize("name", ["with space", "ünïcödé ☃", "long-" + "x" * 120, "a'quote\"and$dollar"])
def test_state_directories_with_odd_names(orun: Orun, name: str) -> None:
    orun.state_dir = orun.folder / name / "state"
    orun.environment["ORUN_STATE_DIR"] = str(orun.state_dir)
    agent = str(orun.write(COUNTER))
    orun.start(agent, "--http", "127.0.0.1:0")
    assert orun.call("add", {"amount": 1}) == {"total": 1}
    assert json.loads(orun.ok("call", "add", "-", "--lines", stdin='{"amount": 1}\n')) == {"total": 2}
    orun.ok("checkpoint", "create")
    os.kill(orun.agent()["pid"], signal.SIGKILL)
    assert orun.call("total") == {"total": 2}
    orun.ok("stop")


def test_two_agents_in_one_runtime_do_not_share_their_fate(orun: Orun) -> None:
    one = str(orun.write(NAMED.replace("{name}", "one"), "one.py"))
    two = str(orun.write(NAMED.replace("{name}", "two"), "two.py"))
    orun.start(one, two)
    assert orun.call("add", None, "--agent", "one") == ["one", 1]
    assert orun.call("add", None, "--agent", "two") == ["two", 1]
    agents = {agent["name"]: agent for agent in orun.status()["agents"]}
    os.kill(agents["one"]["pid"], signal.SIGKILL)
    assert orun.call("add", None, "--agent", "one") == ["one", 2]
    assert orun.call("add", None, "--agent", "two") == ["two", 2]
    agents_now = {agent["name"]: agent for agent in orun.status()["agents"]}
    assert agents_now["two"]["pid"] == agents["two"]["pid"]
    done = orun.run("call", "add", "null")
    assert done.returncode == 2
    assert "one" in done.stderr
    assert "two" in done.stderr


def test_an_agent_that_loads_slowly_and_starts_threads_survives_its_worker(orun: Orun) -> None:
    orun.start(str(orun.write(SLOW + COUNTER)), "--set", "runtime.stale=500ms")
    assert orun.call("add", {"amount": 1}) == {"total": 1}
    os.kill(orun.agent()["pid"], signal.SIGKILL)
    assert orun.call("add", {"amount": 1}) == {"total": 2}
    assert orun.agent()["restarts"] == 1


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x40]))


def test_a_flipped_byte_in_a_journal_cuts_off_only_what_no_disk_was_promised(orun: Orun) -> None:
    """`process` replies behind the flip are lost; the start says so and keeps the ring."""
    agent = str(orun.write(COUNTER))
    orun.start(agent, "--durability", "process", "--set", "store.commit_interval=60s")
    for _ in range(20):
        orun.call("add", {"amount": 1})
    (ring,) = (orun.state_dir / "rings").glob("*.ring")
    kill_everything(orun)
    content = ring.read_bytes()
    # In the middle of what was appended: behind the header, before the zeros at the end.
    end = len(content.rstrip(b"\0"))
    start = content.index(b"add")
    assert start < end
    flip(ring, (start + end) // 2)
    orun.start(agent)
    total = orun.call("total")["total"]
    assert 0 < total < 20
    log = (orun.state_dir / "logs" / "runtime.log").read_text()
    assert "journal damaged" in log
    assert list((orun.state_dir / "dumps").glob("*.damaged"))
    assert orun.call("add", {"amount": 1}) == {"total": total + 1}
    assert orun.json("wal", "verify")["ok"]


def test_flipped_bytes_in_the_database_are_found_and_said(orun: Orun) -> None:
    agent = str(
        orun.write(
            COUNTER.replace('return {"total": state["total"]}', 'state["text"] = "needle" * 200\n    return 1', 1)
        )
    )
    orun.start(agent)
    for _ in range(5):
        orun.call("add", {"amount": 1})
    orun.ok("checkpoint", "create")
    orun.ok("stop")
    data = orun.state_dir / "journal" / "data.mdb"
    rng = random.Random(SEED)
    clean = data.read_bytes()
    pages = [page for page in range(2, len(clean) // 4096) if clean[page * 4096 : page * 4096 + 4096].strip(b"\0")]
    for page in rng.sample(pages, min(ROUNDS // 4, len(pages))):
        data.write_bytes(clean)
        flip(data, page * 4096 + rng.randrange(200, 4000))
        verified = orun.run("wal", "verify")
        assert verified.returncode in (0, 12), verified
        assert "Traceback" not in verified.stderr
        started = orun.run("run", agent, "--detach")
        assert "Traceback" not in started.stderr
        assert started.returncode in (0, 12), started
        if started.returncode == 0:
            done = orun.run("call", "total", "null", "--timeout", "10s")
            assert done.returncode == 0, done
            assert json.loads(done.stdout) == {"total": 5}
            orun.run("stop")
        kill_everything(orun)


def test_a_command_that_is_interrupted_leaves_the_state_as_it_was(orun: Orun) -> None:
    agent = str(orun.write(COUNTER))
    for _ in range(3):
        process = orun.spawn("run", agent, "--detach", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(0.15)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert "Traceback" not in said
        if process.returncode == 0:
            orun.run("stop")
        else:
            assert process.returncode == 130, said
        wait_until(lambda: not orun.processes(), what="nothing to be left")
    orun.start(agent)
    assert orun.call("add", {"amount": 1}) == {"total": 1}
