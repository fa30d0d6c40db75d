"""A standby rehearses: it runs one made-up request through everything that the first real one will need.

A forked process shares its memory with its template until it writes to it, and in Python even
reading writes (reference counts). The first pass through any code therefore copies hundreds of pages, some
milliseconds that a worker would otherwise spend between its predecessor's death and its own first
reply. Nothing of a rehearsal is logged, stored or shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import final

from orun.engine.pages import SLOTS
from orun.settings import AgentSettings
from orun.worker import wire
from orun.worker.agent import Agent
from orun.worker.executor import Executor
from orun.worker.requests import Answers
from orun.worker.service import Connection, Service
from orun.worker.state import Blocks

ROUNDS = 20


async def rehearse(settings: AgentSettings) -> None:
    """Serve made-up requests of a made-up agent."""
    agent = Agent("rehearsal")

    @agent.handler
    def count(state: dict[str, int], request: dict[str, int]) -> dict[str, int]:
        state["count"] = state.get("count", 0) + request["by"]
        return {"count": state["count"]}

    journal = _Journal()
    service = Service(agent, settings, Answers())
    executor = Executor(
        agent,
        settings,
        Blocks(_NoBlocks(), 0, settings.cache_bytes),
        Answers(),
        journal,
        _Page(),
        wake_recorder=lambda waiting: None,
        answered=service.answered,
        abandon=lambda reason: None,
    )
    service.attach(executor, lambda key: None)
    connection = Connection(service, settings.request_bytes_max)
    for number in range(ROUNDS):
        options = {"id": number.to_bytes(16, "big"), "deadline_ms": 1 << 42}
        connection.data_received(wire.encode([number, "count", {"by": 1}, options]))
        await asyncio.sleep(0)
        journal.durable_lsn = journal.last_lsn
        executor.on_durable()


@final
class _Journal:
    """Takes records and forgets them."""

    def __init__(self) -> None:
        self.last_lsn = 0
        self.durable_lsn = 0
        self.append: Callable[..., int] = self._append

    def _append(self, kind: int, payload: bytes, *, ref: int = 0, flags: int = 0) -> int:
        self.last_lsn += 1
        return self.last_lsn


@final
class _Page:
    """A page that nobody looks at."""

    def __init__(self) -> None:
        self.slots = [0] * len(SLOTS)

    def record_latency(self, ns: int) -> None:
        """Counted nowhere."""


@final
class _NoBlocks:
    """A state without blocks."""

    def block(self, key: bytes, lsn: int) -> bytes | None:
        """None."""

    def keys(self, lsn: int) -> Iterator[bytes]:
        """None."""
        return iter(())
