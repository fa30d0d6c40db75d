"""Tells what a silent worker is doing, from the counters in its shared page.

Three counters move for three different reasons. ``native_ns`` is written by a thread that needs no GIL: it
stands still only when the whole process does. ``loop_ns`` is written by the event loop. ``handler_*``
say which request is being run and until when it may be. Together they tell apart what one heartbeat
cannot, so that a busy handler is never killed for being busy:

    native  loop    handler               verdict
    stale   any     any                   frozen     SIGCONT once, then kill
    fresh   stale   none                  blocked    stack dump, kill
    fresh   stale   before its deadline   busy       leave it
    any     any     past its deadline     overdue    stack dump, kill
    fresh   any     replaying, moving     replaying  leave it

(The table of systemd's watchdog, gunicorn's and uvicorn's liveness checks have one row each.)
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import final

from orun.worker.phase import PHASE_DRAINING, PHASE_REPLAYING, PHASE_SERVING

OVERDUE_GRACE_NS = 250_000_000
"""A deadline is checked by another process: a handler that ends just in time is not killed for a late look."""


class Verdict(enum.Enum):
    """What a worker is doing."""

    WELL = "well"
    BUSY = "busy"
    REPLAYING = "replaying"
    FROZEN = "frozen"
    BLOCKED = "blocked"
    OVERDUE = "overdue"


FATAL = frozenset({Verdict.FROZEN, Verdict.BLOCKED, Verdict.OVERDUE})


@final
@dataclass(frozen=True, slots=True)
class Reading:
    """The page's counters at one moment, in nanoseconds of CLOCK_MONOTONIC."""

    now_ns: int
    native_ns: int
    loop_ns: int
    handler_start_ns: int
    handler_deadline_ns: int
    phase: int
    progress: int


@final
class Watch:
    """Follows one worker. Feed it a reading every so often; it remembers since when something stood still."""

    def __init__(self, stale_s: float, now_ns: int) -> None:
        self._stale_ns = int(stale_s * 1e9)
        self._awake_since_ns = now_ns
        self._last_look_ns = now_ns
        self._progress = -1
        self._progress_ns = now_ns
        self._paused_handler_ns = 0
        self._paused_ns = 0

    def judge(self, reading: Reading) -> Verdict:
        """What the worker is doing. A gap between two looks (a suspended machine) counts for nobody's silence."""
        now = reading.now_ns
        gap_ns = now - self._last_look_ns
        if gap_ns > 1_000_000_000:
            self._awake_since_ns = now
            self._pause(reading.handler_start_ns, gap_ns)
        self._last_look_ns = now
        if reading.progress != self._progress:
            self._progress = reading.progress
            self._progress_ns = now
        if reading.phase not in (PHASE_REPLAYING, PHASE_SERVING, PHASE_DRAINING):
            return Verdict.WELL
        if self._silent(reading.native_ns, now):
            return Verdict.FROZEN
        loop_silent = self._silent(reading.loop_ns, now)
        if reading.phase == PHASE_REPLAYING:
            return Verdict.BLOCKED if self._silent(self._progress_ns, now) else Verdict.REPLAYING
        if reading.handler_start_ns:
            deadline_ns = reading.handler_deadline_ns
            if reading.handler_start_ns == self._paused_handler_ns:
                deadline_ns += self._paused_ns
            overdue_ns = now - max(deadline_ns, self._awake_since_ns)
            loop_stood = reading.loop_ns <= deadline_ns
            if overdue_ns > (OVERDUE_GRACE_NS if loop_stood else self._stale_ns):
                return Verdict.OVERDUE
            return Verdict.BUSY if loop_silent else Verdict.WELL
        return Verdict.BLOCKED if loop_silent else Verdict.WELL

    def _pause(self, handler_start_ns: int, gap_ns: int) -> None:
        """A handler that was under way could not work in a gap: its deadline moves by so much."""
        if handler_start_ns != self._paused_handler_ns:
            self._paused_handler_ns, self._paused_ns = handler_start_ns, 0
        self._paused_ns += gap_ns

    def _silent(self, counter_ns: int, now_ns: int) -> bool:
        return now_ns - max(counter_ns, self._awake_since_ns) > self._stale_ns
