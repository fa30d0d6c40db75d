"""Restarts of several children together: one_for_all and rest_for_one.

One task works requests off. Each round stops the children concerned in reverse order, pauses, and starts
them in order. Deaths that come meanwhile are requests too: of a child that the round stops anyway they are no
news (``doomed``), of another they begin a new round, from the earliest child concerned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orun.runtime.child import Exit, StartFailed
from orun.runtime.slot import Slot
from orun.runtime.vital import vital


class GroupRestart:
    """Restarts a child together with its siblings, or with those that were started after it."""

    def __init__(self, slots: list[Slot], lock: asyncio.Lock, *, rest_only: bool) -> None:
        self._slots = slots
        self._lock = lock
        self._rest_only = rest_only
        self._pending: list[Slot] = []
        self._task: asyncio.Task[None] | None = None
        self._waits = False
        self._cancelled = False

    def request(self, slot: Slot, failed: Callable[[Slot, Exit], None]) -> None:
        """Restart ``slot`` and what goes with it; ``failed`` hears of a child that does not start."""
        self._pending.append(slot)
        for member in self._members(slot):
            member.doomed = True
        if self._task is None or self._task.done():
            self._task = vital(self._run(failed), f"restart {slot.spec.id} and siblings")

    def cancel(self) -> None:
        """Start nothing more: the supervisor ends its children itself."""
        self._cancelled = True
        if self._waits and self._task is not None:
            self._task.cancel()

    def _members(self, slot: Slot) -> list[Slot]:
        return self._slots[self._slots.index(slot) :] if self._rest_only else list(self._slots)

    async def _run(self, failed: Callable[[Slot, Exit], None]) -> None:
        while self._pending and not self._cancelled:
            first = min(self._pending, key=self._slots.index)
            self._pending.clear()
            members = self._members(first)
            async with self._lock:
                await self._stop(members)
            self._waits = True
            await asyncio.sleep(first.pause())
            self._waits = False
            async with self._lock:
                await self._start(members, failed)

    async def _stop(self, members: list[Slot]) -> None:
        for member in reversed(members):
            if self._cancelled:
                return
            await member.end()
            if member.spec.restart == "temporary":
                self._slots.remove(member)
            elif not self._cancelled:
                member.enter("waiting")

    async def _start(self, members: list[Slot], failed: Callable[[Slot, Exit], None]) -> None:
        for member in members:
            if self._cancelled or self._pending:
                return
            if member not in self._slots:
                continue
            try:
                await member.start()
            except StartFailed as failure:
                failed(member, failure.exit)
                return
            member.doomed = bool(self._pending)
