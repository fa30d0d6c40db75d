"""Requests a second and the time of one request: unix socket, HTTP, journal on and off.

Everything that is compared runs at the same time and is measured in turn, slice by slice, so that all of it
meets the same machine; figures are medians over the slices.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orun.worker.client import Client
from tests.bench import programs
from tests.bench.figures import Figure, Report, median, quantile
from tests.bench.load import Caller, http_load, sync_ms
from tests.bench.processes import ROOT, bare_worker, control, orun_agent, socket_path, workspace
from tests.support import Orun

PAYLOAD = {"data": "x" * 190}
WINDOW = 64
FLOORS = {"process": 30_000.0, "disk": 20_000.0}
IN_A_ROW = 10
"""Calls before it is the next one's turn: one caller's calls follow each other."""
SYNC_MS_MAX = 0.2
"""On a slower disk the rate of `disk` says more about the disk than about orun: no bound then."""


def run(report: Report, quick: bool) -> None:
    rounds, seconds = (2, 0.5) if quick else (8, 1.0)
    report.title(f"Requests: 200-byte payloads, {WINDOW} in flight, one agent, one caller process")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(workspace())
        sync = sync_ms(folder)
        report.add(Figure("fdatasync of a 4 KB page, median", sync, "ms"))
        agents = {
            durability: stack.enter_context(
                orun_agent(programs.AGENT, "--durability", durability, "--http", "127.0.0.1:0")
            )
            for durability in FLOORS
        }
        paths = {durability: socket_path(orun) for durability, orun in agents.items()}
        paths["bare"] = str(folder / "bare.sock")
        paths["off"] = str(folder / "off.sock")
        stack.enter_context(bare_worker(folder, programs.BARE, paths["bare"], str(folder / "state")))
        stack.enter_context(_without_journal(folder, paths["off"]))
        _throughput(report, paths, rounds, seconds, sync)
        _library(report, paths["process"], seconds)
        _http(report, stack.enter_context(_bare_http(folder)), agents, rounds, seconds)
        _one_caller(report, paths, 30 if quick else 200)


@dataclass
class Slices:
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


def _throughput(report: Report, paths: dict[str, str], rounds: int, seconds: float, sync: float) -> None:
    found = {name: Slices() for name in paths}
    for _ in range(rounds):
        for name, path in paths.items():
            rate, latencies = _slice(path, seconds)
            found[name].rates.append(rate)
            found[name].latencies += latencies
    rates = {name: median(slices.rates) for name, slices in found.items()}
    for name, floor in FLOORS.items():
        latencies = found[name].latencies
        bound = floor if name == "process" or sync <= SYNC_MS_MAX else None
        report.add(Figure(f"unix socket, {name}", rates[name], "/s", bound, False, {"bare asyncio": rates["bare"]}))
        report.add(Figure(f"unix socket, {name}: p50 with {WINDOW} in flight", quantile(latencies, 0.5) * 1000, "ms"))
        report.add(Figure(f"unix socket, {name}: p99 with {WINDOW} in flight", quantile(latencies, 0.99) * 1000, "ms"))
    pairs = zip(found["process"].rates, found["off"].rates, strict=True)
    share = median([on / off for on, off in pairs]) * 100
    report.add(Figure("process: throughput with the journal on, of off", share, "%", 90, False))
    report.note(f"the same worker code without a journal and a recorder: {rates['off']:,.0f} /s")


def _slice(path: str, seconds: float) -> tuple[float, list[float]]:
    """One stretch of requests; and that every one of them was counted once."""
    before = _total(path)
    caller = Caller(path, "add", PAYLOAD)
    _, first = caller.run(seconds / 4, WINDOW)
    rate, latencies = caller.run(seconds, WINDOW)
    caller.close()
    assert _total(path) == before + len(first) + len(latencies)
    return rate, latencies


def _total(path: str) -> int:
    caller = Caller(path, "total", None)
    total = caller.once()["total"]
    caller.close()
    return int(total)


def _library(report: Report, path: str, seconds: float) -> None:
    """The client that users have, with so many calls under way."""

    async def calls(client: Client, end: float) -> int:
        count = 0
        while time.perf_counter() < end:
            await client.call("add", PAYLOAD)
            count += 1
        return count

    async def scenario() -> float:
        async with Client(path) as client:
            end = time.perf_counter() + seconds
            return sum(await asyncio.gather(*(calls(client, end) for _ in range(WINDOW)))) / seconds

    report.add(Figure("unix socket, process, through the asyncio client", asyncio.run(scenario()), "/s"))


def _http(report: Report, bare: int, agents: dict[str, Orun], rounds: int, seconds: float) -> None:
    found: dict[str, list[float]] = {name: [] for name in ("bare", *agents)}
    ports = {name: int(control(orun, "status")["http"].rpartition(":")[2]) for name, orun in agents.items()}
    for _ in range(rounds):
        found["bare"].append(http_load(bare, "/", PAYLOAD, seconds, WINDOW))
        for name, port in ports.items():
            found[name].append(http_load(port, "/v1/call/add", PAYLOAD, seconds, WINDOW))
    for name in agents:
        baseline = {"bare uvicorn": median(found["bare"])}
        report.add(Figure(f"HTTP, {name}, {WINDOW} connections", median(found[name]), "/s", 5_000, False, baseline))


def _one_caller(report: Report, paths: dict[str, str], count: int) -> None:
    """Handlers of 10 ms, called in turn with the bare handler."""
    handlers: dict[str, Any] = {}
    exec(programs.AGENT, handlers)
    state: dict[str, Any] = {}
    for kind in ("compute", "sleep"):
        callers = {name: Caller(paths[name], kind, PAYLOAD) for name in ("bare", "process", "disk")}
        actions: dict[str, Callable[[], Any]] = {name: caller.once for name, caller in callers.items()}
        actions["loop"] = lambda kind=kind: handlers[kind](state, PAYLOAD)  # type: ignore[misc]
        times: dict[str, list[float]] = {name: [] for name in actions}
        for _ in range(count // IN_A_ROW):
            for name, action in actions.items():
                for _ in range(IN_A_ROW):
                    begin = time.perf_counter()
                    action()
                    times[name].append(time.perf_counter() - begin)
        for caller in callers.values():
            caller.close()
        loop = median(times["loop"])
        over = {name: (median(taken) / loop - 1) * 100 for name, taken in times.items()}
        for name in ("process", "disk"):
            title = f"one caller, handler that {kind}s 10 ms, {name}: p50 over the loop"
            report.add(Figure(title, over[name], "%", 5.0, True, {"bare asyncio": over["bare"]}))


@contextlib.contextmanager
def _without_journal(folder: Path, path: str) -> Iterator[None]:
    """The same worker code, with a journal that keeps nothing."""
    script = Path(__file__).with_name("unjournaled.py")
    agent = folder / "agent.py"
    agent.write_text(programs.AGENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(script), str(agent), path], env=environment)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _bare_http(folder: Path) -> Iterator[int]:
    """A bare uvicorn application; gives its port."""
    folder = folder / "http"
    folder.mkdir()
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    fd = listening.fileno()
    with bare_worker(folder, programs.BARE_HTTP, str(fd), pass_fds=(fd,)):
        yield listening.getsockname()[1]
        listening.close()
