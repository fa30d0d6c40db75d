"""From `kill -9` to the last process of the tree, grandchildren in sessions of their own included."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from tests.bench.figures import Figure, Report, median
from tests.bench.processes import ROOT, elapsed_ms, workspace
from tests.faults.counting import descendants
from tests.faults.test_tree import PARENT, grandchildren
from tests.support import alive, orun_in, wait_until

LIMIT_MS = 100
VICTIMS = ("worker", "runtime", "guard", "everything")


def run(report: Report, quick: bool) -> None:
    rounds = 3 if quick else 15
    report.title(
        f"The tree: kill -9 until nothing is left, three grandchildren in their own sessions ({rounds} rounds)"
    )
    for victim in VICTIMS:
        times = [_struck(victim) for _ in range(rounds)]
        report.add(Figure(f"{victim} killed: median", median(times), "ms", LIMIT_MS))
        report.add(Figure(f"{victim} killed: max", max(times), "ms", LIMIT_MS))


def _struck(victim: str) -> float:
    """Kill one part, or everything, and time the end of all that must not outlive it."""
    with workspace() as folder, orun_in(folder) as orun:
        orun.environment["PYTHONPATH"] = str(ROOT)
        orun.write(PARENT)
        status = orun.start("agent.py")
        assert orun.call("spawn") == "spawned"
        wait_until(lambda: len(grandchildren(orun)) == 6, what="the grandchildren")
        (agent,) = status["agents"]
        guard, runtime = status["pid"], status["runtime_pid"]
        everything = [guard, *descendants(guard)]
        below = [pid for pid in everything if pid != guard]
        named = {
            "worker": ([agent["pid"]], [agent["pid"], *grandchildren(orun)]),
            "runtime": ([runtime], below),
            "guard": ([guard], everything),
            "everything": ([pid for pid in everything if pid not in grandchildren(orun)], everything),
        }
        victims, doomed = named[victim]
        begin = time.perf_counter()
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while any(map(alive, doomed)):
            time.sleep(0.0005)
        return elapsed_ms(begin)
