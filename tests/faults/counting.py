"""Clients that count, and so notice any acknowledged change that is lost or done twice.

Each client counts upwards in a block of its own, one request after the other. The handler refuses a gap and
a repetition, so a change that was lost or applied twice shows in the very next reply.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from orun.errors import OrunError
from orun.worker.client import Client, connect
from tests.support import Orun, wait_until

ROUNDS = int(os.environ.get("ORUN_FAULT_ROUNDS", "12"))
"""How often each fault strikes."""
SEED = int(os.environ.get("ORUN_FAULT_SEED", "1"))
CLIENTS = 4
PROGRESS_TIMEOUT_S = 30.0

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


class Clients:
    """Several callers that count, each in a connection of its own."""

    def __init__(self, orun: Orun) -> None:
        self.orun = orun
        self.acknowledged = dict.fromkeys((f"client{n}" for n in range(CLIENTS)), 0)
        self.problems: list[str] = []
        self.stop = False

    @property
    def total(self) -> int:
        """Everything that was acknowledged."""
        return sum(self.acknowledged.values())

    async def run(self, name: str) -> None:
        """Count until told to stop."""
        while not self.stop:
            try:
                async with connect(str(self.orun.state_dir)) as client:
                    await self._count(client, name)
            except OrunError:
                # The whole tree is down: until it is back there is nobody to count with.
                await asyncio.sleep(0.01)

    async def _count(self, client: Client, name: str) -> None:
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

    def check(self) -> None:
        """Nothing acknowledged is lost, nothing was done twice."""
        assert self.problems == []
        state = self.orun.call("look")
        assert {name: state.get(name, 0) for name in self.acknowledged} == self.acknowledged
        assert state["total"] == self.total


def shake(orun: Orun, rounds: int, strike: Callable[[random.Random], None]) -> Clients:
    """Let clients count while ``strike`` breaks something, round after round."""
    rng = random.Random(SEED)
    clients = Clients(orun)

    async def main() -> None:
        tasks = [asyncio.create_task(clients.run(name)) for name in clients.acknowledged]
        try:
            for number in range(rounds):
                await asyncio.sleep(rng.uniform(0.01, 0.15))
                await asyncio.to_thread(strike, rng)
                # One reply for each client may have been on its way when it struck.
                enough = clients.total + CLIENTS
                deadline = time.monotonic() + PROGRESS_TIMEOUT_S
                while clients.total <= enough and not clients.problems:
                    assert time.monotonic() < deadline, f"no progress after strike {number}"
                    await asyncio.sleep(0.002)
        finally:
            clients.stop = True
            await asyncio.gather(*tasks)

    asyncio.run(main())
    return clients


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            listed = task.read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in listed:
            found += [int(child), *descendants(int(child))]
    return found


def worker_pid(orun: Orun) -> int:
    """The worker, as soon as there is one."""
    pid: int = wait_until(lambda: orun.agent()["pid"], what="a worker")
    return pid
