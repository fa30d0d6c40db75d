"""SIGSTOP: of single processes, and of the whole tree as when a machine is suspended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.faults.counting import ROUNDS, descendants
from tests.support import Orun, alive, wait_until

WORKING = """
import time
from orun import Agent
agent = Agent("working")

@agent.handler
def add(state, request):
    state["n"] = state.get("n", 0) + 1
    return state["n"]

@agent.handler(timeout=4)
def work(state, request):
    # Its own time, which a stopped process has none of.
    end = time.process_time() + request["seconds"]
    open("working", "w").close()
    while time.process_time() < end:
        pass
    state["worked"] = True
    return "done"

"""


def start(orun: Orun) -> dict[str, int]:
    status = orun.start(str(orun.write(WORKING)), "--set", "runtime.stale=1s", "--set", "runtime.intensity=20")
    assert orun.call("add") == 1
    agent = wait_until(lambda: orun.agent() if orun.agent()["standby"] else None, what="a standby")
    (forkserver,) = [pid for pid in orun.processes() if Path(f"/proc/{pid}/comm").read_text().startswith("forkserver")]
    parts = {name: agent[name] for name in ("standby", "template")}
    return {
        **parts,
        "worker": agent["pid"],
        "guard": status["pid"],
        "runtime": status["runtime_pid"],
        "forkserver": forkserver,
    }


def test_requests_go_on_while_runtime_and_guard_stand_still(orun: Orun) -> None:
    """The worker serves by itself; its replies wait for the disk only when the runtime does not record."""
    parts = start(orun)
    os.kill(parts["guard"], signal.SIGSTOP)
    assert orun.call("add") == 2
    os.kill(parts["guard"], signal.SIGCONT)
    os.kill(parts["runtime"], signal.SIGSTOP)
    done = orun.spawn("call", "add", "null", stdout=subprocess.PIPE)
    time.sleep(1.5)
    assert done.poll() is None, "a reply that no disk has"
    os.kill(parts["runtime"], signal.SIGCONT)
    out, _ = done.communicate(timeout=10)
    assert out.strip() == "3"
    agent = orun.agent()
    assert (agent["pid"], agent["restarts"]) == (parts["worker"], 0)


def test_a_runtime_that_stands_still_is_replaced_by_the_guard(orun: Orun) -> None:
    parts = start(orun)
    os.kill(parts["runtime"], signal.SIGSTOP)
    wait_until(lambda: not alive(parts["runtime"]), 10, "the stopped runtime to be killed")
    assert orun.call("add") == 2
    wait_until(lambda: orun.run("status").returncode == 0, what="the new runtime")
    assert orun.status()["pid"] == parts["guard"]


def test_a_forkserver_and_a_template_that_stand_still_do_not_stop_recovery(orun: Orun) -> None:
    parts = start(orun)
    for name in ("forkserver", "template", "standby") if ROUNDS > 12 else ("template", "standby"):
        os.kill(parts[name], signal.SIGSTOP)
    began = time.monotonic()
    os.kill(parts["worker"], signal.SIGKILL)
    assert orun.call("add") == 2
    assert time.monotonic() - began < 18


def test_a_suspended_machine_kills_nobody(orun: Orun) -> None:
    """Everything stops for longer than any counter may stand still, in the middle of a busy handler."""
    parts = start(orun)
    busy = orun.spawn("call", "work", '{"seconds": 0.8}', "--timeout", "60s", stdout=subprocess.PIPE)
    wait_until(lambda: (orun.folder / "working").exists(), what="the handler")
    tree = [parts["guard"], *descendants(parts["guard"])]
    for pid in tree:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4.5)
    for pid in reversed(tree):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    out, _ = busy.communicate(timeout=20)
    assert out.strip() == '"done"'
    assert orun.call("add") == 2
    agent = orun.agent()
    assert (agent["pid"], agent["restarts"]) == (parts["worker"], 0)
    assert orun.status()["runtime_pid"] == parts["runtime"]
    assert list((orun.state_dir / "dumps").iterdir()) == []
