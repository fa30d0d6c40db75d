"""kill -9 at random moments of every process, with clients that check every acknowledged reply.

The number of rounds is `ORUN_FAULT_ROUNDS` (a short one by default), the seed `ORUN_FAULT_SEED`.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

import pytest

from tests.faults.counting import CHAIN, ROUNDS, descendants, shake, worker_pid
from tests.support import Orun, alive, wait_until

# Killed more often than anything is in earnest: it shall neither give up nor pause.
TIRELESS = ("--set", "runtime.intensity=1000000", "--set", "runtime.backoff_max=0.01s")
GUARD_PERIOD_S = 5.5
GUARD_RESTARTS = 3
"""The guard starts a runtime anew so often within five seconds."""


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("durability", ["disk", "process"])
def test_kill_of_the_worker_loses_nothing(orun: Orun, durability: str) -> None:
    orun.start(str(orun.write(CHAIN)), "--durability", durability, *TIRELESS)

    def strike(rng: random.Random) -> None:
        kill(worker_pid(orun))

    shake(orun, ROUNDS, strike).check()


def test_kill_of_any_one_process_loses_nothing(orun: Orun) -> None:
    arguments = (str(orun.write(CHAIN)), "--durability", "process", *TIRELESS)
    orun.start(*arguments)
    deaths: list[float] = []

    def strike(rng: random.Random) -> None:
        status = orun.status()
        guard, runtime = status["pid"], status["runtime_pid"]
        tree = [guard, *descendants(guard)]
        if len([at for at in deaths if time.monotonic() - at < GUARD_PERIOD_S]) >= GUARD_RESTARTS:
            tree.remove(runtime)
        victim = rng.choice(tree)
        kill(victim)
        if victim == guard:
            wait_until(lambda: not any(map(alive, tree)), 1, "the tree to be gone")
            orun.start(*arguments)
        elif victim == runtime:
            deaths.append(time.monotonic())
            wait_until(lambda: orun.run("status", "--json").returncode == 0, what="the runtime to be back")

    shake(orun, ROUNDS, strike).check()


@pytest.mark.parametrize("durability", ["disk", "process"])
def test_kill_of_everything_at_once_loses_nothing_and_leaves_nothing(orun: Orun, durability: str) -> None:
    arguments = (str(orun.write(CHAIN)), "--durability", durability)
    orun.start(*arguments)

    def strike(rng: random.Random) -> None:
        guard = orun.status()["pid"]
        tree = [guard, *descendants(guard)]
        rng.shuffle(tree)
        for pid in tree:
            kill(pid)
        wait_until(lambda: not any(map(alive, tree)), 1, "the tree to be gone")
        orun.start(*arguments)

    shake(orun, max(3, ROUNDS // 4), strike).check()
