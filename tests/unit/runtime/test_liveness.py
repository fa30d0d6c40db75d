"""Silence is told apart: who is frozen, blocked, overdue, busy or replaying."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orun.runtime.liveness import Reading, Verdict, Watch
from orun.worker.phase import PHASE_REPLAYING, PHASE_SERVING, PHASE_STARTING

S = 1_000_000_000
STALE_S = 5.0

FRESH = Reading(
    now_ns=0, native_ns=0, loop_ns=0, handler_start_ns=0, handler_deadline_ns=0, phase=PHASE_SERVING, progress=0
)


def look(seconds: float, **still: int) -> list[Verdict]:
    """Look every 0.1 s for so long; what is not named in ``still`` moves with the clock."""
    watch = Watch(STALE_S, S)
    verdicts = []
    for step in range(int(seconds * 10) + 1):
        now = S + step * S // 10
        moving = {"native_ns": now, "loop_ns": now}
        verdicts.append(watch.judge(replace(FRESH, now_ns=now, **(moving | still))))
    return verdicts


def test_a_moving_worker_is_well() -> None:
    assert set(look(20)) == {Verdict.WELL}


def test_a_stopped_process_is_frozen_after_the_stale_time_and_not_before() -> None:
    verdicts = look(6, native_ns=S, loop_ns=S)
    assert verdicts.index(Verdict.FROZEN) == 51


def test_a_loop_that_stands_still_without_a_handler_is_blocked() -> None:
    verdicts = look(6, loop_ns=S)
    assert Verdict.FROZEN not in verdicts
    assert verdicts.index(Verdict.BLOCKED) == 51


def test_a_busy_handler_is_never_killed_before_its_deadline() -> None:
    verdicts = look(120, loop_ns=S, handler_start_ns=S, handler_deadline_ns=S + 120 * S)
    assert set(verdicts) == {Verdict.WELL, Verdict.BUSY}


def test_a_blocking_handler_is_overdue_soon_after_its_deadline() -> None:
    verdicts = look(4, loop_ns=S, handler_start_ns=S, handler_deadline_ns=S + 2 * S)
    assert verdicts.index(Verdict.OVERDUE) == 23


def test_an_async_handler_is_left_to_its_own_time_limit_while_the_loop_turns() -> None:
    verdicts = look(8, handler_start_ns=S, handler_deadline_ns=S + 2 * S)
    assert verdicts.index(Verdict.OVERDUE) == 71


def test_a_long_replay_that_moves_is_left_alone() -> None:
    watch = Watch(STALE_S, S)
    for step in range(600):
        now = S + step * S // 10
        reading = replace(FRESH, now_ns=now, native_ns=now, loop_ns=S, phase=PHASE_REPLAYING, progress=step // 20)
        assert watch.judge(reading) is Verdict.REPLAYING


def test_a_replay_that_stands_still_is_blocked() -> None:
    watch = Watch(STALE_S, S)
    verdicts = []
    for step in range(60):
        now = S + step * S // 10
        verdicts.append(watch.judge(replace(FRESH, now_ns=now, native_ns=now, phase=PHASE_REPLAYING, progress=7)))
    assert verdicts.index(Verdict.BLOCKED) == 51


@pytest.mark.parametrize("gap_s", [2, 60, 86400])
def test_a_suspended_machine_is_nobodys_silence(gap_s: int) -> None:
    watch = Watch(STALE_S, S)
    busy = replace(FRESH, native_ns=S, loop_ns=S, handler_start_ns=S, handler_deadline_ns=2 * S)
    assert watch.judge(replace(busy, now_ns=S)) is Verdict.WELL
    assert watch.judge(replace(busy, now_ns=S + gap_s * S)) is Verdict.WELL


def test_a_standby_is_not_judged() -> None:
    assert set(look(20, native_ns=0, loop_ns=0, phase=PHASE_STARTING)) == {Verdict.WELL}
