"""Proportional set sizes: what orun itself takes, and what a standby adds to an agent of 200 MB."""

from __future__ import annotations

import subprocess

from tests.bench import programs
from tests.bench.figures import Figure, Report
from tests.bench.load import Caller
from tests.bench.processes import (
    bare_worker,
    control,
    orun_agent,
    pss_mb,
    settle,
    socket_path,
    title,
    worker_pid,
    workspace,
)
from tests.support import Orun

PAYLOAD = {"data": "x" * 190}
OBJECTS = 215_000
OWN = ("guard", "runtime", "forkserver", "gateway", "sentinel")


def run(report: Report, quick: bool) -> None:
    report.title("Memory: proportional set size")
    with orun_agent(programs.AGENT, "--http", "127.0.0.1:0") as orun:
        settle(orun)
        shares = _shares(orun)
        for name, size in shares.items():
            report.note(f"{name}: {size:.1f} MB")
        own = sum(size for name, size in shares.items() if name.partition(" ")[0] in OWN)
        report.add(Figure("guard, runtime, forkserver, gateway at rest", own, "MB", 60))
        report.add(Figure("everything at rest, worker, standby and template included", sum(shares.values()), "MB"))
    bare = _bare_heavy()
    source = programs.HEAVY_AGENT.replace("@COUNT@", str(OBJECTS))
    with orun_agent(source) as orun:
        settle(orun)
        caller = Caller(socket_path(orun), "add", PAYLOAD)
        for _ in range(20):
            caller.run(0, 50)
        caller.close()
        _heavy(report, orun, bare, "after 1,000 requests", 25)
        caller = Caller(socket_path(orun), "read", None)
        caller.once()
        caller.close()
        _heavy(report, orun, bare, "after every object was read", None)


def _heavy(report: Report, orun: Orun, bare: float, when: str, bound: float | None) -> None:
    shares = _shares(orun)
    pair = sum(size for name, size in shares.items() if name.partition(" ")[0] not in OWN)
    over = (pair / bare - 1) * 100
    report.add(Figure(f"worker, standby and template over the bare agent, {when}", over, "%", bound))
    report.note(f"{pair:.0f} MB against {bare:.0f} MB; worker alone {pss_mb(worker_pid(orun)):.0f} MB")


def _bare_heavy() -> float:
    source = programs.BARE_HEAVY.replace("@COUNT@", str(OBJECTS))
    with (
        workspace() as folder,
        bare_worker(folder, source, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        size = pss_mb(process.pid)
        process.stdin.close()
        process.stdout.close()
        return size


def _shares(orun: Orun) -> dict[str, float]:
    """The proportional set size of each process of the tree, under a name that says what it is."""
    status = control(orun, "status")
    (agent,) = status["agents"]
    named = {status["pid"]: "guard", status.get("runtime_pid"): "runtime", agent["pid"]: "worker"}
    named |= {agent["standby"]: "standby", agent["template"]: "template"}
    shares = {}
    for pid in orun.processes():
        shares[f"{named.get(pid) or _guess(pid)} {pid}"] = pss_mb(pid)
    return shares


def _guess(pid: int) -> str:
    text = title(pid)
    for name in ("gateway", "standby", "template", "worker", "forkserver", "runtime", "sentinel", "guard"):
        if name in text:
            return name
    return f"other({text[:60]})"
