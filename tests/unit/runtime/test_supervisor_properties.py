"""Whatever happens to the children, in whatever order: what a supervisor must never do, it does not do."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from orun.errors import OrunError
from orun.runtime.child import Exit
from orun.runtime.supervisor import Strategy, Supervisor
from tests.unit.runtime.simulation import World, settle, simulate, supervisor

IDS = "abcd"
LIMIT, PERIOD = 3, 5.0

Event = tuple[Literal["die", "fail", "slow", "wait", "terminate", "restart"], str, float]

events = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["die", "fail", "terminate", "restart"]), st.sampled_from(IDS), st.just(0.0)),
        st.tuples(st.just("slow"), st.sampled_from(IDS), st.sampled_from([0.0, 0.3, 3.0])),
        st.tuples(st.just("wait"), st.just(""), st.sampled_from([0.0, 0.01, 1.0, 4.0, 6.0])),
    ),
    max_size=40,
)


async def play(top: Supervisor, world: World, events: list[Event], *, control: bool) -> None:
    calls = []
    for kind, id, amount in events:
        if kind == "die" and id in world.lives:
            world.lives[id].die(Exit(code=1))
        elif kind == "fail":
            world.behaviour(id).fails.append(Exit(code=1))
        elif kind == "slow":
            world.behaviour(id).starts_in = amount
        elif kind == "wait":
            await asyncio.sleep(amount)
            await settle()
        elif control and kind in ("terminate", "restart"):
            operation = top.terminate_child if kind == "terminate" else top.restart_child
            calls.append(asyncio.create_task(operation(id)))
    for result in await asyncio.gather(*calls, return_exceptions=True):
        assert result is None or isinstance(result, OrunError), result
    top.stop()
    await top.wait()


def check_order(world: World, *, group: bool) -> None:
    """Replay the story: one life at a time; in a group nobody starts before, or stops after, those it leans on."""
    alive: dict[str, bool] = dict.fromkeys(IDS, False)
    ready: dict[str, bool] = dict.fromkeys(IDS, False)
    for kind, id in world.story:
        earlier, later = IDS[: IDS.index(id)], IDS[IDS.index(id) + 1 :]
        if kind == "start":
            assert not alive[id], f"{id} has two lives"
            assert not group or all(ready[other] for other in earlier), f"{id} started before those above it"
            alive[id] = True
        elif kind == "ready":
            ready[id] = True
        elif kind in ("end", "failed"):
            alive[id] = ready[id] = False
        elif kind == "stop" and group:
            assert not any(alive[other] for other in later), f"{id} stopped before those below it"
    assert not any(alive.values()), "somebody outlived the supervisor"


@settings(max_examples=150, deadline=None)
@given(events=events, strategy=st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"]))
def test_order_and_single_life_hold(events: list[Event], strategy: Strategy) -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, IDS, strategy=strategy, intensity=LIMIT, period=PERIOD, backoff=0.2)
        await top.start()
        await play(top, world, events, control=False)
        check_order(world, group=strategy != "one_for_one")

    simulate(main())


@settings(max_examples=150, deadline=None)
@given(events=events, strategy=st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"]))
def test_control_requests_never_leave_two_lives_or_a_survivor(events: list[Event], strategy: Strategy) -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, IDS, strategy=strategy, intensity=LIMIT, period=PERIOD, backoff=0.2)
        await top.start()
        await play(top, world, events, control=True)
        check_order(world, group=False)

    simulate(main())


@settings(max_examples=150, deadline=None)
@given(events=events)
def test_never_more_restarts_within_a_period_than_allowed(events: list[Event]) -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, IDS, intensity=LIMIT, period=PERIOD)
        await top.start()
        world.forget()
        await play(top, world, events, control=False)
        window: deque[float] = deque()
        for (kind, _), at in zip(world.story, world.times, strict=True):
            if kind == "start":
                window.append(at)
                while at - window[0] > PERIOD:
                    window.popleft()
                assert len(window) <= LIMIT

    simulate(main())


@settings(max_examples=100, deadline=None)
@given(events=events)
def test_a_supervisor_that_did_not_give_up_has_all_its_children(events: list[Event]) -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, IDS, strategy="rest_for_one", intensity=1000, backoff=0.2)
        await top.start()
        playing = [event for event in events if event[0] in ("die", "wait", "slow")]
        for event in playing:
            await _one(world, event)
        await asyncio.sleep(3600)
        assert sorted(world.lives) == list(IDS)
        top.stop()
        await top.wait()

    async def _one(world: World, event: Event) -> None:
        kind, id, amount = event
        if kind == "die" and id in world.lives:
            world.lives[id].die(Exit(code=1))
        elif kind == "slow":
            world.behaviour(id).starts_in = amount
        await asyncio.sleep(amount)

    simulate(main())
