"""From `kill -9` to the first correct reply, and from the death of everything to the same."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orun.worker import wire
from tests.bench import programs, supervisord
from tests.bench.figures import Figure, Report, median, quantile
from tests.bench.load import Caller
from tests.bench.processes import (
    ROOT,
    UNLIMITED,
    control,
    elapsed_ms,
    orun_agent,
    settle,
    socket_path,
    worker_pid,
    workspace,
)
from tests.support import Orun

PAYLOAD = {"data": "x" * 190}
BLOCKS = 80_000
"""Of about 1 KB each."""
RECORDS_PER_REQUEST = 2
READ_ALONG_S = 0.3
"""After so long a standby has read what was written before."""


def run(report: Report, quick: bool) -> None:
    rounds = 10 if quick else 60
    report.title(f"Recovery: kill -9 of the worker to the first correct reply ({rounds} rounds)")
    baselines = _baselines(report, 3 if quick else 7)
    with orun_agent(programs.AGENT, *UNLIMITED) as orun:
        times = [_killed(orun, 1000, pause_s=READ_ALONG_S) for _ in range(rounds)]
        report.add(Figure("1,000 records since the checkpoint: median", median(times), "ms", 10, True, baselines))
        report.add(Figure("1,000 records since the checkpoint: p99", quantile(times, 0.99), "ms", 50))
        times = [_killed(orun, 1000) for _ in range(rounds)]
        report.add(Figure("same, ten kills a second, records just written: median", median(times), "ms", 10))
        report.add(Figure("same, ten kills a second, records just written: p99", quantile(times, 0.99), "ms", 50))
        times = [_everything_killed(orun) for _ in range(3 if quick else 10)]
        report.add(Figure("`orun run` again after the death of everything: median", median(times), "ms", 400))
        report.add(Figure("`orun run` again after the death of everything: max", max(times), "ms"))
    with orun_agent(programs.AGENT, *UNLIMITED) as orun:
        _fill(orun)
        times = [_killed(orun, 10_000) for _ in range(max(4, rounds // 4))]
        report.add(Figure("80 MB of state, 10,000 records: median", median(times), "ms", 50))
        report.add(Figure("80 MB of state, 10,000 records: max", max(times), "ms"))
        times = [_everything_killed(orun) for _ in range(3)]
        report.add(Figure("80 MB of state, `orun run` again: median", median(times), "ms"))


def _killed(orun: Orun, records: int, pause_s: float = 0.0) -> float:
    """Write so many records behind a checkpoint, kill the worker (after a pause), and ask at once."""
    settle(orun)
    control(orun, "checkpoint")
    path = socket_path(orun)
    caller = Caller(path, "add", PAYLOAD)
    for _ in range(records // RECORDS_PER_REQUEST // 50):
        caller.run(0, 50)
    before = caller.once()["total"]
    pid = worker_pid(orun)
    time.sleep(pause_s)
    begin = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    total = caller.once()["total"]
    taken = elapsed_ms(begin)
    caller.close()
    assert total == before + 1, f"{total} after {before}"
    return taken


def _everything_killed(orun: Orun) -> float:
    """Kill every process at the same moment, start again, and ask."""
    settle(orun)
    path = socket_path(orun)
    caller = Caller(path, "add", PAYLOAD)
    before = caller.once()["total"]
    caller.close()
    for pid in orun.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while orun.processes():
        time.sleep(0.001)
    begin = time.perf_counter()
    orun.ok("run", "agent.py", "--detach", *UNLIMITED)
    caller = Caller(path, "add", PAYLOAD)
    total = caller.once()["total"]
    taken = elapsed_ms(begin)
    caller.close()
    assert total == before + 1, f"{total} after {before}"
    return taken


def _fill(orun: Orun) -> None:
    for first in range(0, BLOCKS, 500):
        caller = Caller(socket_path(orun), "fill", {"first": first, "count": 500})
        caller.once()
        caller.close()
    control(orun, "checkpoint")


def _baselines(report: Report, rounds: int) -> dict[str, float]:
    """The same work without orun: no log, no recovery of state, only a program that is started again."""
    found = {}
    with workspace() as folder:
        script, path, state = folder / "bare.py", folder / "bare.sock", folder / "state"
        script.write_text(programs.BARE)
        state.write_bytes(wire.pack({"total": 0}))
        with _respawned([sys.executable, str(script), str(path), str(state)]) as pid:
            found["bare pidfd re-spawn"] = median([_baseline_killed(path, pid) for _ in range(rounds)])
        program = supervisord.install()
        if program is None:
            report.note("supervisord could not be installed: no such baseline")
        else:
            with supervisord.supervised(program, folder, script, path, state):
                find = lambda: _pid_of(str(script))  # noqa: E731
                found["supervisord"] = median([_baseline_killed(path, find) for _ in range(rounds)])
    return found


def _baseline_killed(path: Path, pid: Callable[[], int]) -> float:
    caller = Caller(path, "add", PAYLOAD)
    caller.once()
    victim = pid()
    begin = time.perf_counter()
    os.kill(victim, signal.SIGKILL)
    assert caller.once()["total"] == 1
    taken = elapsed_ms(begin)
    caller.close()
    return taken


@contextlib.contextmanager
def _respawned(command: list[str]) -> Iterator[Callable[[], int]]:
    """The least a supervisor can do: wait on a pidfd, spawn again."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(command, env=environment)]
    ending = threading.Event()

    def watch() -> None:
        while not ending.is_set():
            with os.fdopen(os.pidfd_open(processes[-1].pid)) as pidfd:
                select.select([pidfd], [], [])
            processes[-1].wait()
            if not ending.is_set():
                processes.append(subprocess.Popen(command, env=environment))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: processes[-1].pid
    finally:
        ending.set()
        processes[-1].kill()
        watcher.join()


def _pid_of(script: str) -> int:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                arguments = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if arguments[1:2] == [script.encode()]:
                    return int(entry)
    raise AssertionError(f"no process runs {script}")
