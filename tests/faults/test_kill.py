"""kill -9 at random moments of every process, with clients that check every acknowledged reply.

Each client counts upwards in a block of its own, one request after the other. The handler refuses a gap and
a repetition, so a change that was lost or applied twice shows in the very next reply. The number of rounds is
`ORUN_FAULT_ROUNDS` (a short one by default), the seed `ORUN_FAULT_SEED`.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orun.errors import OrunError
from orun.worker.client import Client, connect
from tests.support import Orun, alive, wait_until

ROUNDS = int(os.environ.get("ORUN_FAULT_ROUNDS", "12"))
SEED = int(os.environ.get("ORUN_FAULT_SEED", "1"))
CLIENTS = 4

CHAIN = """
from orun import Agent
agent = Agent("chain")

@agent.handler
def next(state, request):
    name = request["client"]
    last = state.get(name, 0)
    if request["number"] != last + 1:
        return {"error": f"{name} sent {request['number']} after {last}"}
    state[name] = last + 1
    state["total"] = state.get("total", 0) + 1
    return {"number": last + 1}

@agent.handler(readonly=True)
def look(state, request):
    return dict(state)
"""


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *children(int(child))]
    return found


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


class Clients:
    """Several callers that count, each in a connection of its own."""

    def __init__(self, orun: Orun) -> None:
        self.orun = orun
        self.acknowledged = dict.fromkeys((f"client{n}" for n in range(CLIENTS)), 0)
        self.problems: list[str] = []
        self.stop = False

    async def run(self, name: str) -> None:
        while not self.stop:
            try:
                async with connect(str(self.orun.state_dir)) as client:
                    await self._count(client, name)
            except OrunError:
                # The whole tree is down: until it is back there is nobody to count with.
                await asyncio.sleep(0.01)

    async def _count(self, client: Client, name: str) -> None:
        if self.acknowledged[name] or not self.stop:
            # A request without a reply may or may not have been done: what the state says decides.
            state = await client.call("look", timeout=30)
            found = state.get(name, 0)
            if found not in (self.acknowledged[name], self.acknowledged[name] + 1):
                self.problems.append(f"{name}: acknowledged {self.acknowledged[name]}, found {found}")
            self.acknowledged[name] = found
        while not self.stop:
            number = self.acknowledged[name] + 1
            reply = await client.call("next", {"client": name, "number": number}, timeout=30)
            if reply.get("number") != number:
                self.problems.append(f"{name}: {reply}")
                return
            self.acknowledged[name] = number


def shake(orun: Orun, rounds: int, strike: Callable[[random.Random], None]) -> Clients:
    """Let clients count while ``strike`` kills something, round after round."""
    rng = random.Random(SEED)
    clients = Clients(orun)

    async def main() -> None:
        tasks = [asyncio.create_task(clients.run(name)) for name in clients.acknowledged]
        for _ in range(rounds):
            before = sum(clients.acknowledged.values())
            await asyncio.sleep(rng.uniform(0.01, 0.15))
            await asyncio.to_thread(strike, rng)
            deadline = time.monotonic() + 30
            while sum(clients.acknowledged.values()) <= before + CLIENTS and time.monotonic() < deadline:
                await asyncio.sleep(0.005)
            assert time.monotonic() < deadline, "no progress after a strike"
        clients.stop = True
        await asyncio.gather(*tasks)

    asyncio.run(main())
    return clients


def check(orun: Orun, clients: Clients) -> None:
    """Nothing acknowledged is lost, nothing was done twice."""
    assert clients.problems == []
    state = orun.call("look")
    assert {name: state.get(name, 0) for name in clients.acknowledged} == clients.acknowledged
    assert state["total"] == sum(clients.acknowledged.values())


@pytest.mark.parametrize("durability", ["disk", "process"])
def test_kill_of_the_worker_loses_nothing(orun: Orun, durability: str) -> None:
    orun.start(str(orun.write(CHAIN)), "--durability", durability, "--set", "runtime.intensity=1000")

    def strike(rng: random.Random) -> None:
        os.kill(orun.agent()["pid"], signal.SIGKILL)

    check(orun, shake(orun, ROUNDS, strike))


def test_kill_of_any_one_process_loses_nothing(orun: Orun) -> None:
    orun.start(str(orun.write(CHAIN)), "--durability", "process", "--set", "runtime.intensity=1000")

    def strike(rng: random.Random) -> None:
        status = orun.status()
        tree = children(status["pid"])
        if not tree:
            return
        victim = rng.choice(tree)
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            return
        if victim == status["runtime_pid"]:
            wait_until(lambda: orun.run("status", "--json").returncode == 0, what="the runtime to be back")

    check(orun, shake(orun, ROUNDS, strike))


def test_kill_of_everything_at_once_loses_nothing_and_leaves_nothing(orun: Orun) -> None:
    agent = str(orun.write(CHAIN))
    arguments = (agent, "--durability", "process")
    orun.start(*arguments)

    def strike(rng: random.Random) -> None:
        guard = orun.status()["pid"]
        tree = [guard, *children(guard)]
        rng.shuffle(tree)
        for pid in tree:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        wait_until(lambda: not any(map(alive, tree)), 1, "the tree to be gone")
        orun.start(*arguments)

    check(orun, shake(orun, max(3, ROUNDS // 3), strike))
