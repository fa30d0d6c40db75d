"""What a worker shows of itself in the shared page, while it serves.

Slots are written by their number: an attribute costs twice as much, and some are written twice a request.
"""

from __future__ import annotations

from typing import Protocol, final

from orun.engine.pages import SLOTS

_HANDLER_START, _HANDLER_LSN = SLOTS["handler_start_ns"], SLOTS["handler_lsn"]
_HANDLER_DEADLINE = SLOTS["handler_deadline_ns"]
_REQUESTS, _ERRORS, _BUSY = SLOTS["requests"], SLOTS["errors"], SLOTS["busy"]
_IN_FLIGHT, _QUEUE_DEPTH, _LAST_LSN = SLOTS["in_flight"], SLOTS["queue_depth"], SLOTS["last_lsn"]


class Slots(Protocol):
    """Numbers by index."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...


class Page(Protocol):
    """What is needed of the shared page."""

    @property
    def slots(self) -> Slots:
        """All slots, as ``SLOTS`` numbers them."""

    def record_latency(self, ns: int) -> None:
        """Count one request's time from arrival to reply."""


@final
class Gauges:
    """The figures of one agent; they go on from worker to worker."""

    def __init__(self, page: Page) -> None:
        self._slots = page.slots
        self.latency = page.record_latency
        self.requests = self._slots[_REQUESTS]
        self.errors = self._slots[_ERRORS]

    def handler(self, lsn: int, start_ns: int, deadline_ns: int) -> None:
        """The request that is being run, and until when it may be; the start comes last, for a reader goes by it."""
        slots = self._slots
        slots[_HANDLER_LSN] = lsn
        slots[_HANDLER_DEADLINE] = deadline_ns
        slots[_HANDLER_START] = start_ns

    def no_handler(self) -> None:
        """Nothing is being run."""
        self._slots[_HANDLER_START] = 0

    def busy(self) -> None:
        """A request was refused because too many wait."""
        self._slots[_BUSY] += 1

    def show(self, in_flight: int, queued: int, last_lsn: int) -> None:
        """Write the totals."""
        slots = self._slots
        slots[_REQUESTS] = self.requests
        slots[_ERRORS] = self.errors
        slots[_IN_FLIGHT] = in_flight
        slots[_QUEUE_DEPTH] = queued
        slots[_LAST_LSN] = last_lsn
