"""Starting and measuring processes: a benchmark's orun, bare baselines, CPU time and memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orun.worker import plain
from tests.support import Orun, orun_in, wait_until

ROOT = Path(__file__).resolve().parents[2]
UNLIMITED = ("--set", "runtime.intensity=1000000", "--set", "runtime.backoff=0s")
"""A benchmark kills more often than any supervisor should allow, and every death shall be like a first one."""


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A folder on the disk that the benchmarks measure: ``ORUN_BENCH_DIR``, or the one for temporary files."""
    with tempfile.TemporaryDirectory(prefix="orun-bench-", dir=os.environ.get("ORUN_BENCH_DIR")) as folder:
        yield Path(folder)


@contextlib.contextmanager
def orun_agent(source: str, *flags: str) -> Iterator[Orun]:
    """A running agent in a workspace of its own."""
    with workspace() as folder, orun_in(folder) as orun:
        orun.environment["PYTHONPATH"] = str(ROOT)
        orun.write(source)
        orun.start("agent.py", *flags)
        yield orun


def socket_path(orun: Orun) -> str:
    from orun.project import read_runtime

    (agent,) = read_runtime(str(orun.state_dir))["agents"]
    return str(agent["socket"])


def control(orun: Orun, op: str, **args: Any) -> Any:
    """Ask the runtime without starting a command."""
    return plain.control(str(orun.state_dir), op, args, timeout_s=60)


def worker_pid(orun: Orun) -> int:
    (agent,) = control(orun, "status")["agents"]
    return int(agent["pid"])


@contextlib.contextmanager
def bare_worker(folder: Path, source: str, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program on its own, ended afterwards."""
    script = folder / "bare.py"
    script.write_text(source)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(script), *arguments], env=environment, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def pss_mb(pid: int) -> float:
    """Proportional set size: shared pages are divided among those that share them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no Pss line")


def title(pid: int) -> str:
    """What a process is, as far as /proc tells: its name and its command line."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return f"{Path(f'/proc/{pid}/comm').read_text().strip()} | {command}"


def cpu_ms(command: list[str], environment: dict[str, str], folder: Path, repeat: int) -> list[float]:
    """User plus system time of each run of a command, children included."""
    times = []
    for _ in range(repeat):
        with open(os.devnull, "wb") as nothing:
            process = subprocess.Popen(command, env=environment, cwd=folder, stdout=nothing, stderr=nothing)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, f"{command}: exit code {process.returncode}"
        times.append((usage.ru_utime + usage.ru_stime) * 1000)
    return times


def settle(orun: Orun) -> None:
    """Wait until the agent runs and its standby, if any, stands by."""
    wait_until(lambda: settled(orun), timeout_s=30, what="a worker with its standby")


def settled(orun: Orun) -> bool:
    agents = control(orun, "status")["agents"]
    return all(agent["state"] == "running" and agent["standby"] for agent in agents)


def elapsed_ms(begin: float) -> float:
    return (time.perf_counter() - begin) * 1000
