"""The supervisor does what Erlang/OTP's does, and what is added to it."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from orun.errors import IntensityExceeded, NotFound, UsageError
from orun.runtime.child import ChildSpec, Exit, StartFailed, failure_of
from orun.runtime.supervisor import Supervisor
from tests.unit.runtime.simulation import CLEAN, CRASH, KILLED, World, settle, simulate, states, supervisor


def test_children_start_in_order_each_when_the_one_before_is_ready() -> None:
    async def main() -> None:
        world = World()
        world.behaviour("a").starts_in = 2.0
        await supervisor(world, "abc").start()
        assert world.story[:3] == [("start", "a"), ("ready", "a"), ("start", "b")]
        assert world.told("ready") == "a b c"

    simulate(main())


def test_children_stop_in_reverse_order_one_after_the_other() -> None:
    async def main() -> None:
        world = World()
        world.behaviour("c").stops_in = 1.0
        top = supervisor(world, "abc")
        await top.start()
        world.forget()
        top.stop()
        exit = await top.wait()
        assert world.story[:3] == [("stop", "c"), ("end", "c"), ("stop", "b")]
        assert world.told("end") == "c b a"
        assert exit.reason == "stopped"
        assert set(states(top).values()) == {"stopped"}

    simulate(main())


def test_failed_first_start_ends_what_had_started_in_reverse_order() -> None:
    async def main() -> None:
        world = World()
        world.behaviour("c").fails = [Exit(code=7, stderr=("boom",))]
        top = supervisor(world, "abcd")
        with pytest.raises(StartFailed, match="c: ") as failure:
            await top.start()
        assert world.told("start") == "a b c"
        assert world.told("end") == "b a"
        assert failure.value.exit.root() == Exit(code=7, stderr=("boom",))
        assert "boom" in failure_of(failure.value.exit).message

    simulate(main())


RESTART_TYPES = [
    ("permanent", CRASH, 2),
    ("permanent", CLEAN, 2),
    ("permanent", KILLED, 2),
    ("transient", CRASH, 2),
    ("transient", CLEAN, 1),
    ("transient", KILLED, 2),
    ("temporary", CRASH, 1),
    ("temporary", CLEAN, 1),
]


@pytest.mark.parametrize(("restart", "exit", "starts"), RESTART_TYPES)
def test_restart_type_decides(restart: str, exit: Exit, starts: int) -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, world.specs("ab", restart=restart))
        await top.start()
        await world.die("a", exit)
        assert world.starts("a") == starts
        assert world.starts("b") == 1
        expected = {"permanent": "running", "transient": "running" if starts == 2 else "finished", "temporary": None}
        assert states(top).get("a") == expected[restart]

    simulate(main())


STRATEGIES = [
    ("one_for_one", "b", "b", ""),
    ("one_for_all", "a b c d", "d c a", "a b c d"),
    ("rest_for_one", "b c d", "d c", "b c d"),
]


@pytest.mark.parametrize(("strategy", "started", "stopped", "ready"), STRATEGIES)
def test_strategy_decides_who_goes_along(strategy: str, started: str, stopped: str, ready: str) -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, "abcd", strategy=strategy)
        await top.start()
        world.forget()
        await world.die("b")
        assert world.told("start") == started
        assert world.told("stop") == (stopped if ready else "")
        if ready:
            assert world.told("ready") == ready
        assert set(states(top).values()) == {"running"}
        assert top.restarts == 1

    simulate(main())


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
def test_fourth_restart_within_the_period_gives_up(strategy: str) -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, "abc", strategy=strategy, intensity=3, period=5.0)
        await top.start()
        for _ in range(3):
            await world.die("b")
            assert top.state == "running"
        world.forget()
        await world.die("b", Exit(code=3, stderr=("last words",)))
        exit = await top.wait()
        assert world.told("start") == ""
        assert world.told("end") == "b c a"
        assert exit.reason == "intensity"
        error = failure_of(exit)
        assert isinstance(error, IntensityExceeded)
        assert error.code == 14
        assert "b needs more than 3 restarts within 5 s" in error.message
        assert "exit code 3" in error.message
        assert "last words" in error.message

    simulate(main())


def test_restarts_outside_the_period_do_not_add_up() -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, "a", intensity=3, period=5.0)
        await top.start()
        for _ in range(20):
            await world.die("a")
            await asyncio.sleep(1.7)
        assert top.state == "running"
        assert world.starts("a") == 21

    simulate(main())


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
def test_failed_restarts_count_too(strategy: str) -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, "ab", strategy=strategy)
        await top.start()
        world.behaviour("a").fails = [CRASH] * 10
        world.lives["a"].die(CRASH)
        exit = await top.wait()
        assert exit.reason == "intensity"
        assert world.starts("a") == 4
        assert world.starts("b") == 1

    simulate(main())


def test_failed_start_in_a_group_goes_on_from_the_failed_child() -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, "abcd", strategy="rest_for_one")
        await top.start()
        world.forget()
        world.behaviour("c").fails = [CRASH]
        await world.die("b")
        assert world.told("start") == "b c c d"
        assert set(states(top).values()) == {"running"}
        assert top.restarts == 2

    simulate(main())


def test_failed_start_under_one_for_all_begins_again_with_all() -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, "abc", strategy="one_for_all")
        await top.start()
        world.forget()
        world.behaviour("b").fails = [CRASH]
        await world.die("c")
        assert world.told("start") == "a b a b c"
        assert set(states(top).values()) == {"running"}

    simulate(main())


def test_children_that_die_together_are_one_restart_of_the_group() -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, "abc", strategy="one_for_all")
        await top.start()
        world.forget()
        for id in "cab":
            world.lives[id].die(CRASH)
        await settle()
        assert world.told("start") == "a b c"
        assert top.restarts == 1

    simulate(main())


def test_earlier_child_that_dies_during_a_rest_for_one_restart_widens_it() -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, "abc", strategy="rest_for_one")
        await top.start()
        world.behaviour("b").starts_in = 1.0
        world.forget()
        await world.die("b")
        await world.die("a")
        await asyncio.sleep(5)
        assert world.told("start") == "b a b c"
        assert set(states(top).values()) == {"running"}

    simulate(main())


def test_temporary_sibling_is_not_started_again_with_its_group() -> None:
    async def main() -> None:
        world = World()
        specs = [world.spec("a"), world.spec("t", restart="temporary"), world.spec("c")]
        top = supervisor(world, specs, strategy="one_for_all")
        await top.start()
        world.forget()
        await world.die("a")
        assert world.told("start") == "a c"
        assert list(states(top)) == ["a", "c"]

    simulate(main())


def test_pauses_are_none_then_doubling_with_jitter_up_to_a_cap_and_reset_when_stable() -> None:
    async def main() -> None:
        world = World()
        top = Supervisor(
            "top", world.specs("a"), intensity=1000, period=5.0, backoff=0.1, backoff_max=1.0, rng=random.Random(7)
        )
        await top.start()
        loop = asyncio.get_running_loop()
        pauses = []
        for _ in range(7):
            before, starts = loop.time(), world.starts("a")
            await world.die("a")
            while world.starts("a") == starts:
                await asyncio.sleep(0.001)
            pauses.append(loop.time() - before)
        dice = random.Random(7)
        caps = [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
        expected = [0.0] + [dice.uniform(0, cap) for cap in caps]
        assert pauses == pytest.approx(expected, abs=0.003)
        await asyncio.sleep(50.0)
        before = loop.time()
        await world.die("a")
        assert states(top) == {"a": "running"}
        assert loop.time() == before

    simulate(main())


def test_one_slow_restart_does_not_delay_another() -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, "ab")
        await top.start()
        world.behaviour("a").starts_in = 60.0
        await world.die("a")
        await world.die("b")
        assert states(top) == {"a": "starting", "b": "running"}

    simulate(main())


def test_supervisor_answers_between_tries() -> None:
    async def main() -> None:
        world = World()
        top = Supervisor("top", world.specs("a"), intensity=9, backoff=100.0, backoff_max=100.0)
        await top.start()
        await world.die("a")
        await world.die("a")
        assert states(top) == {"a": "waiting"}
        await top.terminate_child("a")
        assert states(top) == {"a": "stopped"}
        await asyncio.sleep(500)
        assert world.starts("a") == 2
        await top.restart_child("a")
        assert states(top) == {"a": "running"}

    simulate(main())


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all"])
def test_stop_cuts_a_pause_short(strategy: str) -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, "ab", strategy=strategy, backoff=100.0, backoff_max=100.0)
        await top.start()
        await world.die("a")
        await world.die("a")
        before = asyncio.get_running_loop().time()
        top.stop()
        await top.wait()
        assert asyncio.get_running_loop().time() == before
        assert world.lives == {}

    simulate(main())


@pytest.mark.parametrize("first", [True, False])
def test_stop_reaches_a_child_that_is_still_starting(first: bool) -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, "abc")
        if not first:
            await top.start()
        world.behaviour("b").starts_in = 1000.0
        if first:
            started = asyncio.create_task(top.start())
            await settle()
            assert states(top) == {"a": "running", "b": "starting", "c": "stopped"}
        else:
            await world.die("b")
        top.stop()
        exit = await top.wait()
        assert exit.reason == "stopped"
        assert world.lives == {}
        assert asyncio.get_running_loop().time() == 1000.0
        if first:
            with pytest.raises(StartFailed):
                await started

    simulate(main())


def test_child_that_does_not_stop_in_time_is_killed() -> None:
    async def main() -> None:
        world = World()
        world.behaviour("a").stops_in = None
        top = supervisor(world, world.specs("a", shutdown=2.0))
        await top.start()
        world.forget()
        top.stop()
        await top.wait()
        assert world.story == [("stop", "a"), ("kill", "a"), ("end", "a")]
        assert world.times[1] - world.times[0] == 2.0

    simulate(main())


def test_brutal_kill_does_not_ask() -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, world.specs("a", shutdown="brutal_kill"))
        await top.start()
        world.forget()
        top.stop()
        await top.wait()
        assert world.story == [("kill", "a"), ("end", "a")]

    simulate(main())


def test_infinity_waits_however_long_it_takes() -> None:
    async def main() -> None:
        world = World()
        world.behaviour("a").stops_in = 86_400.0
        top = supervisor(world, world.specs("a", shutdown="infinity"))
        await top.start()
        top.stop()
        await top.wait()
        assert world.told("kill") == ""

    simulate(main())


def test_kill_ends_an_orderly_stop_that_hangs() -> None:
    async def main() -> None:
        world = World()
        for id in "ab":
            world.behaviour(id).stops_in = None
        top = supervisor(world, world.specs("ab", shutdown="infinity"))
        await top.start()
        top.stop()
        await settle()
        top.kill()
        await top.wait()
        assert world.lives == {}

    simulate(main())


SIGNIFICANT = [
    # auto_shutdown, restart types, deaths, whether it shuts down after them
    ("any_significant", "transient", [("a", CLEAN)], True),
    ("any_significant", "transient", [("a", CRASH)], False),
    ("any_significant", "temporary", [("a", CRASH)], True),
    ("all_significant", "transient", [("a", CLEAN)], False),
    ("all_significant", "transient", [("a", CLEAN), ("b", CLEAN)], True),
    ("all_significant", "temporary", [("a", CRASH), ("b", CLEAN)], True),
]


@pytest.mark.parametrize(("auto", "restart", "deaths", "ends"), SIGNIFICANT)
def test_significant_children_end_their_supervisor(
    auto: str, restart: str, deaths: list[tuple[str, Exit]], ends: bool
) -> None:
    async def main() -> None:
        world = World()
        specs = world.specs("ab", restart=restart, significant=True) + world.specs("c")
        top = supervisor(world, specs, auto_shutdown=auto)
        await top.start()
        for id, exit in deaths:
            await world.die(id, exit)
        if ends:
            exit = await top.wait()
            assert exit.reason == "shutdown"
            assert exit.root() == deaths[-1][1]
            assert world.lives == {}
        else:
            assert top.state == "running"

    simulate(main())


def test_terminating_a_significant_child_by_hand_ends_nothing_else() -> None:
    async def main() -> None:
        world = World()
        specs = world.specs("a", restart="transient", significant=True) + world.specs("b")
        top = supervisor(world, specs, auto_shutdown="any_significant")
        await top.start()
        await top.terminate_child("a")
        assert top.state == "running"

    simulate(main())


@pytest.mark.parametrize("options", [{"restart": "permanent"}, {"restart": "transient", "auto": "never"}])
def test_significant_is_refused_where_it_could_not_act(options: dict[str, Any]) -> None:
    auto = options.pop("auto", "any_significant")
    with pytest.raises(ValueError, match="significant"):
        Supervisor("top", [World().spec("a", significant=True, **options)], auto_shutdown=auto)


CODES = [(0, "normal"), (2, "normal"), (3, "fatal"), (1, "failure")]


@pytest.mark.parametrize(("code", "verdict"), CODES)
def test_exit_codes_are_judged_by_the_lists(code: int, verdict: str) -> None:
    spec = World().spec("a", success_codes=(0, 2), no_restart_codes=(3,))
    assert spec.judge(Exit(code=code)) == verdict


def test_code_that_forbids_a_restart_ends_everything_without_a_try() -> None:
    async def main() -> None:
        world = World()
        inner = Supervisor("inner", [world.spec("a", no_restart_codes=(3,)), world.spec("b")])
        top = Supervisor("top", [ChildSpec("inner", lambda: inner, type="supervisor"), world.spec("c")])
        await top.start()
        world.lives["a"].die(Exit(code=3))
        exit = await top.wait()
        assert exit.reason == "no_restart"
        assert world.starts("a") == 1
        assert world.lives == {}
        assert failure_of(exit).code == 1

    simulate(main())


def test_code_that_forbids_a_restart_counts_in_a_failed_start_too() -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, world.specs("a", no_restart_codes=(3,)))
        await top.start()
        world.behaviour("a").fails = [Exit(code=3, reason="start_failed")]
        world.lives["a"].die(CRASH)
        assert (await top.wait()).reason == "no_restart"
        assert world.starts("a") == 2

    simulate(main())


def nested(world: World, **options: Any) -> Supervisor:
    """top supervises x and inner; inner supervises a and b."""

    def inner() -> Supervisor:
        return Supervisor("inner", world.specs("ab"), backoff=0.0)

    spec = ChildSpec("inner", inner, type="supervisor", **options)
    return supervisor(world, [world.spec("x"), spec])


def test_nested_supervisor_that_gives_up_is_restarted_by_the_one_above() -> None:
    async def main() -> None:
        world = World()
        top = nested(world)
        await top.start()
        for _ in range(4):
            await world.die("a")
        assert states(top) == {"x": "running", "inner": "running"}
        assert top.restarts == 1
        assert world.starts("b") == 2
        (_, inner) = top.tree()["children"]
        assert inner["last_error"]["reason"] == "intensity"
        assert inner["last_error"]["cause"]["code"] == 1

    simulate(main())


def test_transient_supervisor_that_gives_up_is_a_failure() -> None:
    async def main() -> None:
        world = World()
        top = nested(world, restart="transient")
        await top.start()
        for _ in range(4):
            await world.die("a")
        assert states(top)["inner"] == "running"

    simulate(main())


def test_child_that_dies_again_and_again_ends_the_whole_tree_with_its_last_error() -> None:
    async def main() -> None:
        world = World()
        top = nested(world)
        await top.start()
        starts = 0
        while top.state == "running":
            await world.die("a", Exit(signal=11))
            starts += 1
        exit = await top.wait()
        assert starts == 16
        assert exit.reason == "intensity"
        assert exit.root().signal == 11
        assert "SIGSEGV" in exit.text()
        assert world.lives == {}

    simulate(main())


def test_nested_supervisors_stop_in_reverse_order_as_one() -> None:
    async def main() -> None:
        world = World()
        top = nested(world)
        await top.start()
        top.stop()
        await top.wait()
        assert world.told("end") == "b a x"

    simulate(main())


def test_pool_children_stop_together_within_one_shutdown_time() -> None:
    async def main() -> None:
        world = World()
        top = Supervisor("pool", strategy="simple_one_for_one")
        await top.start()
        for spec in world.specs("abc", shutdown=3.0):
            world.behaviour(spec.id).stops_in = None
            await top.start_child(spec)
        before = asyncio.get_running_loop().time()
        top.stop()
        await top.wait()
        assert asyncio.get_running_loop().time() - before == 3.0
        assert world.told("stop") == "a b c"

    simulate(main())


def test_children_come_and_go_at_run_time() -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, "a")
        await top.start()
        await top.start_child(world.spec("b"))
        with pytest.raises(UsageError, match="already"):
            await top.start_child(world.spec("b"))
        with pytest.raises(UsageError, match="running"):
            await top.delete_child("b")
        with pytest.raises(UsageError, match="running"):
            await top.restart_child("b")
        await top.terminate_child("b")
        assert states(top) == {"a": "running", "b": "stopped"}
        await top.delete_child("b")
        with pytest.raises(NotFound):
            await top.terminate_child("b")
        world.behaviour("z").fails = [CRASH]
        with pytest.raises(StartFailed):
            await top.start_child(world.spec("z"))
        assert states(top) == {"a": "running"}
        top.stop()
        await top.wait()
        with pytest.raises(UsageError, match="stopping"):
            await top.start_child(world.spec("c"))

    simulate(main())


def test_defect_in_a_child_is_a_failed_start_with_its_traceback() -> None:
    def broken() -> Any:
        raise ZeroDivisionError("oops")

    async def main() -> None:
        top = Supervisor("top", [ChildSpec("a", broken)])
        with pytest.raises(StartFailed, match="ZeroDivisionError"):
            await top.start()

    simulate(main())


def test_tree_shows_every_child_with_its_last_error() -> None:
    async def main() -> None:
        world = World()
        top = supervisor(world, "ab")
        await top.start()
        await world.die("a", Exit(code=9, stderr=("why",), dump="/dumps/1.txt"))
        tree = top.tree()
        assert (tree["id"], tree["type"], tree["state"], tree["restarts"]) == ("top", "supervisor", "running", 1)
        a, b = tree["children"]
        assert a["pid"] == 3
        assert a["restarts"] == 1
        assert a["last_error"]["code"] == 9
        assert a["last_error"]["stderr"] == ["why"]
        assert a["last_error"]["dump"] == "/dumps/1.txt"
        assert a["last_error"]["text"] == "exit code 9"
        assert b["last_error"] is None
        assert isinstance(b["since"], float)

    simulate(main())
