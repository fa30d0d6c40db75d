"""Whether requests notice a checkpoint: p99 while 1,000 dirty blocks of 80 MB are written, and without."""

from __future__ import annotations

import threading
import time

from tests.bench import programs
from tests.bench.bench_recovery import BLOCKS, PAYLOAD, _fill
from tests.bench.figures import Figure, Report, quantile
from tests.bench.load import Caller
from tests.bench.processes import control, orun_agent, socket_path
from tests.support import Orun

DIRTY = 1000
WINDOW = 4


def run(report: Report, quick: bool) -> None:
    rounds = 6 if quick else 30
    report.title(f"Checkpoint: {DIRTY} dirty blocks of 80 MB, {WINDOW} requests in flight ({rounds} rounds)")
    with orun_agent(programs.AGENT, "--set", "store.checkpoint_bytes=1GB") as orun:
        _fill(orun)
        without: list[float] = []
        during: list[float] = []
        taken: list[float] = []
        for number in range(rounds):
            _touch(orun, number)
            without += _window(orun, 0.2, None)
            during += _window(orun, 0.2, taken)
    base, loaded = quantile(without, 0.99) * 1000, quantile(during, 0.99) * 1000
    report.add(Figure("p99 while a checkpoint is made, minus p99 without", loaded - base, "ms", 5))
    report.add(Figure("p99 while a checkpoint is made", loaded, "ms", None, True, {"without": base}))
    longest = Figure("longest request", max(during) * 1000, "ms", None, True, {"without": max(without) * 1000})
    report.add(longest)
    report.add(Figure("the checkpoint itself, median", quantile(taken, 0.5), "ms"))


def _touch(orun: Orun, number: int) -> None:
    first = number * DIRTY % BLOCKS
    for start in range(first, first + DIRTY, 100):
        caller = Caller(socket_path(orun), "touch", {"first": start, "count": 100})
        caller.once()
        caller.close()


def _window(orun: Orun, seconds: float, taken: list[float] | None) -> list[float]:
    """Latencies of a stretch of requests; with ``taken``, of those that were under way during a checkpoint."""
    caller = Caller(socket_path(orun), "add", PAYLOAD)
    thread = threading.Thread(target=caller.run, args=(seconds, WINDOW))
    thread.start()
    begin, end = 0.0, float("inf")
    if taken is not None:
        time.sleep(seconds / 4)
        begin = time.perf_counter()
        control(orun, "checkpoint")
        end = time.perf_counter()
        taken.append((end - begin) * 1000)
    thread.join()
    caller.close()
    return [ended - started for started, ended in caller.spans if ended >= begin and started <= end]
