"""A supervisor's world in memory: an event loop whose clock jumps, and children that do as they are told."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from orun.runtime.child import Child, ChildSpec, Exit, StartFailed
from orun.runtime.supervisor import Supervisor

Result = TypeVar("Result")

CRASH = Exit(code=1)
KILLED = Exit(signal=9)
CLEAN = Exit(code=0)


class _JumpingSelector(selectors.DefaultSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("everything waits for something that will never happen")
        if not ready and timeout:
            self.loop.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only while nothing is left to do, and then at once."""

    def __init__(self) -> None:
        selector = _JumpingSelector()
        super().__init__(selector)
        selector.loop = self
        self.now = 1000.0

    def time(self) -> float:
        return self.now


def simulate(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end on a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


@dataclass
class Behaviour:
    """How the next lives of a child go."""

    starts_in: float = 0.0
    fails: list[Exit] = field(default_factory=list)
    """One failed start for each."""
    stops_in: float | None = 0.0
    """None: it does not heed stop."""


class FakeChild(Child):
    """A life that ends when the test says so."""

    def __init__(self, world: World, id: str) -> None:
        self._world = world
        self._id = id
        self._behaviour = world.behaviour(id)
        self._end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        self.pid = next(self._world.pids)
        self._world.note("start", self._id)
        self._world.lives[self._id] = self
        failure = self._behaviour.fails.pop(0) if self._behaviour.fails else None
        done, _ = await asyncio.wait([self._end], timeout=self._behaviour.starts_in)
        if done or failure:
            self._world.note("failed", self._id)
            self._world.lives.pop(self._id, None)
            exit = failure or self._end.result()
            raise StartFailed(f"{self._id}: {exit.text()}", exit)
        self._world.note("ready", self._id)

    async def wait(self) -> Exit:
        exit = await self._end
        self._world.note("end", self._id)
        self._world.lives.pop(self._id, None)
        return exit

    def stop(self) -> None:
        self._world.note("stop", self._id)
        if self._behaviour.stops_in is not None:
            asyncio.get_running_loop().call_later(self._behaviour.stops_in, self.die, Exit(reason="stopped"))

    def kill(self) -> None:
        self._world.note("kill", self._id)
        self.die(KILLED)

    def die(self, exit: Exit) -> None:
        if not self._end.done():
            self._end.set_result(exit)


class World:
    """The children's behaviour, and the story of what happened."""

    def __init__(self) -> None:
        self.story: list[tuple[str, str]] = []
        self.times: list[float] = []
        self.lives: dict[str, FakeChild] = {}
        self.pids = iter(range(1, 1_000_000))
        self._behaviours: dict[str, Behaviour] = {}

    def behaviour(self, id: str) -> Behaviour:
        return self._behaviours.setdefault(id, Behaviour())

    def note(self, what: str, id: str) -> None:
        self.story.append((what, id))
        self.times.append(asyncio.get_running_loop().time())

    def spec(self, id: str, **options: Any) -> ChildSpec:
        return ChildSpec(id, lambda: FakeChild(self, id), **options)

    def specs(self, ids: str, **options: Any) -> list[ChildSpec]:
        return [self.spec(id, **options) for id in ids]

    def told(self, *kinds: str) -> str:
        """The story so far, of these kinds of events: "a b" for a start of a and then of b."""
        return " ".join(id for what, id in self.story if what in kinds)

    def starts(self, id: str) -> int:
        return self.story.count(("start", id))

    def forget(self) -> None:
        self.story.clear()
        self.times.clear()

    async def die(self, id: str, exit: Exit = CRASH) -> None:
        """End a living child, and let what follows at once happen."""
        self.lives[id].die(exit)
        await settle()


async def settle() -> None:
    """Let everything happen that needs no time."""
    for _ in range(50):
        await asyncio.sleep(0)


def supervisor(world: World, ids: str | list[ChildSpec], **options: Any) -> Supervisor:
    """A supervisor of these children without pauses, unless told otherwise."""
    specs = world.specs(ids) if isinstance(ids, str) else ids
    options.setdefault("backoff", 0.0)
    return Supervisor("top", specs, rng=random.Random(1), **options)


def states(top: Supervisor) -> dict[str, str]:
    return {child["id"]: child["state"] for child in top.tree()["children"]}
