"""When to stop restarting, and how long to pause before the next restart."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

STABLE_PERIODS = 10
"""A child that ran for so many periods starts again without a pause."""

_DOUBLINGS_MAX = 62


class Intensity:
    """A sliding window of restarts: at most ``limit`` within ``period`` seconds."""

    def __init__(self, limit: int, period: float) -> None:
        if limit < 0 or period <= 0:
            raise ValueError(f"restart intensity {limit} in {period} s: needs a count of 0 or more and a period")
        self.limit = limit
        self.period = period
        self._restarts: deque[float] = deque()

    def allows(self, now: float) -> bool:
        """Count one restart; False when it is one more than allowed, so that the supervisor gives up."""
        while self._restarts and now - self._restarts[0] > self.period:
            self._restarts.popleft()
        self._restarts.append(now)
        return len(self._restarts) <= self.limit

    def text(self) -> str:
        """What was exceeded."""
        return f"more than {self.limit} restarts within {self.period:g} s"


@dataclass(frozen=True, slots=True)
class BackoffRule:
    """The pauses of a supervisor's children: none, then ``base`` doubling up to ``cap``, with full jitter."""

    base: float
    cap: float
    stable: float
    rng: random.Random


class Backoff:
    """The pause before a child's next restart; it grows while the child keeps dying young."""

    def __init__(self, rule: BackoffRule) -> None:
        self._rule = rule
        self._streak = 0

    def pause(self, uptime: float) -> float:
        """Seconds to wait, given how long the child had been ready before it died."""
        if uptime >= self._rule.stable:
            self._streak = 0
        self._streak += 1
        if self._streak == 1:
            return 0.0
        doublings = min(self._streak - 2, _DOUBLINGS_MAX)
        return self._rule.rng.uniform(0.0, min(self._rule.cap, self._rule.base * 2**doublings))
