"""Whatever of the tree is killed, nothing below it lives on, grandchildren in sessions of their own included."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.counting import descendants
from tests.support import Orun, alive, wait_until

PATIENCE_S = 2.0
"""A few milliseconds are usual; `tests.bench tree` shows them. Here only what survives counts."""

PARENT = """
import subprocess, sys
from orun import Agent
agent = Agent("parent")

GRANDCHILD = '''
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    time.sleep(600)
os.setsid()
print("grandchild", os.getpid(), flush=True)
time.sleep(600)
'''

@agent.handler(retry=False)
def spawn(state, request):
    # It inherits stdout and stderr and never closes them.
    for _ in range(3):
        subprocess.Popen([sys.executable, "-S", "-E", "-c", GRANDCHILD], start_new_session=True).wait()
    return "spawned"

@agent.handler
def ping(state, request):
    return "pong"
"""


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def grandchildren(orun: Orun) -> list[int]:
    found = []
    for pid in orun.processes():
        with suppress(OSError):
            if b"grandchild" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@pytest.fixture
def parent(orun: Orun) -> Orun:
    orun.start(str(orun.write(PARENT)), "--set", "runtime.backoff_max=0.01s")
    assert orun.call("spawn") == "spawned"
    wait_until(lambda: len(grandchildren(orun)) == 6, what="the grandchildren")
    wait_until(lambda: orun.agent()["standby"], what="a standby")
    return orun


class Tree:
    """The processes by their part, as they were before the strike."""

    def __init__(self, orun: Orun) -> None:
        status = orun.status()
        agent = status["agents"][0]
        self.guard: int = status["pid"]
        self.runtime: int = status["runtime_pid"]
        self.worker: int = agent["pid"]
        self.standby: int = agent["standby"]
        self.template: int = agent["template"]
        everything = orun.processes()
        (self.forkserver,) = [pid for pid in everything if name(pid).startswith("forkserver")]
        (self.sentinel,) = [pid for pid in everything if name(pid) == "orun-sentinel"]
        self.grandchildren = grandchildren(orun)
        self.below_the_guard = descendants(self.guard)
        self.everything = everything


def strike(victims: list[int], doomed: list[int]) -> None:
    """Kill the victims one right after the other, and see that none of the doomed survives."""
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    while any(map(alive, doomed)):
        assert time.monotonic() - began < PATIENCE_S, [(pid, name(pid)) for pid in doomed if alive(pid)]
        time.sleep(0.001)


@pytest.mark.parametrize(
    "victims",
    [
        lambda tree: [tree.guard],
        lambda tree: [tree.guard, tree.runtime],
        lambda tree: [tree.runtime, tree.guard],
        lambda tree: [tree.guard, tree.sentinel],
        lambda tree: [tree.sentinel, tree.guard],
        lambda tree: [tree.worker, tree.template, tree.forkserver, tree.runtime, tree.guard],
        lambda tree: [tree.guard, tree.runtime, tree.forkserver, tree.template, tree.worker, tree.standby],
        lambda tree: tree.everything,
        lambda tree: list(reversed(tree.everything)),
    ],
    ids=[
        "guard",
        "guard and runtime",
        "runtime and guard",
        "guard and sentinel",
        "sentinel and guard",
        "upwards",
        "downwards",
        "everything",
        "everything in reverse",
    ],
)
def test_without_its_guard_nothing_of_the_tree_is_left(parent: Orun, victims: Callable[[Tree], list[int]]) -> None:
    tree = Tree(parent)
    strike(victims(tree), tree.everything)
    # The guard may have started a sentinel in the place of a killed one; it ends when it finds nothing left.
    wait_until(lambda: not parent.processes(), PATIENCE_S, "the last sentinel to be gone")
    assert parent.run("status").returncode == 3


def test_what_dies_below_the_guard_takes_what_is_below_it_along_and_comes_back(parent: Orun) -> None:
    """One after the other: worker, forkserver, template, sentinel, runtime."""
    tree = Tree(parent)
    strike([tree.template], [tree.template])
    strike([tree.forkserver], [tree.forkserver])
    assert all(map(alive, tree.grandchildren))
    assert parent.call("ping") == "pong"
    strike([tree.worker], [tree.worker, *tree.grandchildren])
    assert parent.call("ping") == "pong"
    assert parent.call("spawn") == "spawned"
    wait_until(lambda: len(grandchildren(parent)) == 6, what="the grandchildren")
    wait_until(lambda: parent.agent()["standby"] and parent.agent()["template"], what="a standby")
    os.kill(tree.sentinel, signal.SIGKILL)
    wait_until(lambda: any(name(pid) == "orun-sentinel" for pid in parent.processes()), what="a new sentinel")
    tree = Tree(parent)
    strike([tree.runtime], tree.below_the_guard)
    assert parent.call("ping") == "pong"
    tree = Tree(parent)
    strike([tree.guard], tree.everything)


def test_what_outlives_guard_and_sentinel_is_ended_by_the_next_run(parent: Orun) -> None:
    """Nobody is left to end the grandchildren; the state directory remembers whose they were."""
    tree = Tree(parent)
    victims = [pid for pid in tree.everything if pid not in tree.grandchildren]
    strike(victims, victims)
    parent.start(str(parent.folder / "agent.py"))
    wait_until(lambda: not any(map(alive, tree.grandchildren)), PATIENCE_S, "the grandchildren to be gone")
    assert parent.call("ping") == "pong"
