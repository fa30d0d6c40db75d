"""Hangs are told apart, in real processes: frozen, blocked, overdue, busy."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from tests.support import Orun, wait_until

HANGER = """
import asyncio, time
from orun import Agent
agent = Agent("hanger")

@agent.handler(retry=False, timeout=0.5)
def loop_for_ever(state, request):
    while True:
        pass

@agent.handler(timeout=60)
def work(state, request):
    end = time.monotonic() + request["seconds"]
    while time.monotonic() < end:
        pass
    return "done"

@agent.handler
async def block_the_loop_later(state, request):
    asyncio.get_running_loop().call_later(0.2, time.sleep, 60)
    return "soon"

@agent.handler
def add(state, request):
    state["n"] = state.get("n", 0) + 1
    return state["n"]
"""


def start(orun: Orun) -> dict[str, object]:
    orun.start(str(orun.write(HANGER)), "--set", "runtime.stale=1s", "--set", "runtime.intensity=20")
    assert orun.call("add") == 1
    return orun.agent()


def dumps(orun: Orun) -> list[Path]:
    return sorted((orun.state_dir / "dumps").iterdir())


def test_a_handler_past_its_deadline_is_killed_and_its_stack_is_kept(orun: Orun) -> None:
    start(orun)
    done = orun.run("call", "loop_for_ever", "null", "--json")
    assert done.returncode == 1
    assert json.loads(done.stderr)["error"]["type"] == "interrupted"
    (dump,) = dumps(orun)
    assert "loop_for_ever" in dump.read_text()
    assert orun.call("add") == 2
    assert "overdue" in orun.agent()["last_error"]["text"]


def test_a_busy_handler_is_left_alone(orun: Orun) -> None:
    before = start(orun)
    assert orun.call("work", {"seconds": 3}) == "done"
    assert orun.agent()["pid"] == before["pid"]
    assert dumps(orun) == []


def test_a_blocked_loop_is_killed_and_its_stack_is_kept(orun: Orun) -> None:
    before = start(orun)
    assert orun.call("block_the_loop_later") == "soon"
    wait_until(lambda: orun.agent()["restarts"] == 1, what="the restart")
    assert "blocked" in orun.agent()["last_error"]["text"]
    assert orun.call("add") == 2
    assert len(dumps(orun)) == 1
    assert orun.agent()["pid"] != before["pid"]


def test_a_frozen_worker_is_continued_when_that_helps(orun: Orun) -> None:
    before = start(orun)
    os.kill(int(str(before["pid"])), signal.SIGSTOP)
    time.sleep(0.2)
    assert orun.call("add") == 2
    assert orun.agent()["pid"] == before["pid"]


def test_a_frozen_standby_does_not_delay_recovery(orun: Orun) -> None:
    start(orun)
    agent = wait_until(lambda: orun.agent() if orun.agent()["standby"] else None, what="a standby")
    os.kill(agent["standby"], signal.SIGSTOP)
    os.kill(agent["pid"], signal.SIGKILL)
    began = time.monotonic()
    assert orun.call("add") == 2
    assert time.monotonic() - began < 10


def test_a_flood_of_output_neither_blocks_nor_fills_the_disk(orun: Orun) -> None:
    orun.start(
        str(
            orun.write(
                """
                import sys
                from orun import Agent
                agent = Agent("flood")

                @agent.handler
                def pour(state, request):
                    line = "x" * 999 + "\\n"
                    for _ in range(request["megabytes"] * 1000):
                        sys.stdout.write(line)
                    sys.stdout.flush()
                    return "poured"
                """
            )
        )
    )
    assert orun.call("pour", {"megabytes": 100}) == "poured"
    wait_until(
        lambda: "dropped" in (orun.state_dir / "logs" / "flood.log").read_text(), what="the note on what was dropped"
    )
    size = sum(path.stat().st_size for path in (orun.state_dir / "logs").iterdir())
    assert size < 60_000_000


def test_grandchildren_in_their_own_session_die_with_their_worker(orun: Orun) -> None:
    orun.start(
        str(
            orun.write(
                """
                import os, subprocess, sys
                from orun import Agent
                agent = Agent("parent")

                @agent.handler
                def spawn(state, request):
                    code = "import os, time; os.fork() or os.setsid(); time.sleep(600)"
                    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
                    return child.pid
                """
            )
        )
    )
    pid = orun.call("spawn")
    marker = [p for p in orun.processes() if b"time.sleep(600)" in Path(f"/proc/{p}/cmdline").read_bytes()]
    assert pid in marker
    os.kill(orun.agent()["pid"], signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{p}").exists() for p in marker), 2, "the grandchildren to be gone")


def test_a_plain_command_in_the_foreground_passes_its_exit_code_on(orun: Orun) -> None:
    done = orun.run("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert done.returncode == 7
