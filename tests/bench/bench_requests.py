"""Requests a second and the time of one request: unix socket, HTTP, journal on and off."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from orun.worker.client import Client
from tests.bench import programs
from tests.bench.figures import Figure, Report, median, quantile
from tests.bench.load import Caller, http_load, sync_ms
from tests.bench.processes import ROOT, bare_worker, control, orun_agent, socket_path, workspace

PAYLOAD = {"data": "x" * 190}
WINDOW = 64


def run(report: Report, quick: bool) -> None:
    seconds = 1.0 if quick else 4.0
    report.title("Requests: 200-byte payloads, 64 in flight, one agent, one caller process")
    with workspace() as folder:
        report.add(Figure("fdatasync of a 4 KB page, median", sync_ms(folder), "ms"))
        with bare_worker(folder, programs.BARE, str(folder / "bare.sock"), str(folder / "state")):
            bare = _throughput(folder / "bare.sock", seconds)
        off = _without_journal(folder, seconds)
        bare_http = _bare_http(folder, seconds)
    for durability, floor in (("process", 30_000.0), ("disk", 20_000.0)):
        with orun_agent(programs.AGENT, "--durability", durability, "--http", "127.0.0.1:0") as orun:
            path = socket_path(orun)
            rate, p50, p99 = _measure(path, seconds)
            report.add(Figure(f"unix socket, {durability}", rate, "/s", floor, False, {"bare asyncio worker": bare}))
            report.add(Figure(f"unix socket, {durability}: p50 in flight", p50 * 1000, "ms"))
            report.add(Figure(f"unix socket, {durability}: p99 in flight", p99 * 1000, "ms"))
            if durability == "process":
                report.add(Figure("journal on / off, same worker", rate / off, "", 0.90, False, {"off, /s": off}))
                report.add(Figure("unix socket, asyncio client", _client(path, seconds), "/s"))
            port = int(control(orun, "status")["http"].rpartition(":")[2])
            http = http_load(port, "/v1/call/add", PAYLOAD, seconds, WINDOW)
            report.add(Figure(f"HTTP, {durability}", http, "/s", 5_000.0, False, {"bare uvicorn": bare_http}))
            _one_caller(report, path, durability, 50 if quick else 300)


def _throughput(path: Path | str, seconds: float) -> float:
    return _measure(path, seconds)[0]


def _measure(path: Path | str, seconds: float) -> tuple[float, float, float]:
    """Requests a second, p50 and p99; and that every request was counted once."""
    before = _total(path)
    caller = Caller(path, "add", PAYLOAD)
    _, first = caller.run(seconds / 4, WINDOW)
    rate, latencies = caller.run(seconds, WINDOW)
    caller.close()
    assert _total(path) == before + len(first) + len(latencies)
    return rate, quantile(latencies, 0.5), quantile(latencies, 0.99)


def _total(path: Path | str) -> int:
    caller = Caller(path, "total", None)
    total = caller.once()["total"]
    caller.close()
    return int(total)


def _client(path: str, seconds: float) -> float:
    """The library that users have, with 64 calls under way."""

    async def scenario() -> float:
        async with Client(path) as client:
            end = time.perf_counter() + seconds
            counts = await asyncio.gather(*(_calls(client, end) for _ in range(WINDOW)))
            return sum(counts) / seconds

    return asyncio.run(scenario())


async def _calls(client: Client, end: float) -> int:
    count = 0
    while time.perf_counter() < end:
        await client.call("add", PAYLOAD)
        count += 1
    return count


def _without_journal(folder: Path, seconds: float) -> float:
    """The same worker code, with a journal that keeps nothing."""
    path = folder / "off.sock"
    script = Path(__file__).with_name("unjournaled.py")
    agent = folder / "agent.py"
    agent.write_text(programs.AGENT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(agent), str(path)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        return _throughput(path, seconds)
    finally:
        process.kill()
        process.wait()


def _bare_http(folder: Path, seconds: float) -> float:
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    port = listening.getsockname()[1]
    fd = listening.fileno()
    with bare_worker(folder, programs.BARE_HTTP, str(fd), pass_fds=(fd,)):
        listening.close()
        return http_load(port, "/", PAYLOAD, seconds, WINDOW)


def _one_caller(report: Report, path: str, durability: str, count: int) -> None:
    """A handler of 10 ms called in turn with the bare handler, so that both meet the same machine."""
    handlers: dict[str, Any] = {}
    exec(programs.AGENT.replace("from orun import Agent", "from orun.worker.agent import Agent"), handlers)
    state: dict[str, Any] = {}
    caller = Caller(path, "slow", PAYLOAD)
    bare, called = [], []
    for _ in range(count):
        begin = time.perf_counter()
        handlers["slow"](state, PAYLOAD)
        bare.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        caller.once()
        called.append(time.perf_counter() - begin)
    caller.close()
    report.add(
        Figure(
            f"one caller, handler of 10 ms, {durability}: p50 over the bare loop",
            (median(called) / median(bare) - 1) * 100,
            "%",
            5.0,
            True,
        )
    )
    report.note(f"p50 {median(called) * 1000:.3f} ms, bare loop {median(bare) * 1000:.3f} ms")
