"""The supervisor: children started in order, restarted by strategy, stopped in reverse, as in Erlang/OTP.

What is taken from OTP as it is: the restart types, the strategies, intensity (every restart counts, and every
failed start is one), synchronous ordered start, reverse ordered stop, shutdown times, automatic shutdown
on significant children, and giving up upwards. What differs, and why:

- The first restart is immediate, the next ones wait (backoff with jitter). A child that dies at once uses
  up its intensity within a fraction of a second either way; one that dies slowly does not burn the machine.
- Under one_for_one each restart is a task of its own: a child that takes long to become ready does not
  delay the restart of another. Under the group strategies restarts are serialised, as in OTP.
- Giving up is a failure for a transient supervisor too (in OTP it counts as an orderly end, and the branch
  stays down unnoticed).
- A child may say by its exit code that a restart is of no use; the supervisor then gives up at once.

A supervisor is a child itself, so supervisors nest. Everything runs in one event loop; state changes happen
between awaits, and ``_lock`` is held where a change spans one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from orun.errors import NotFound, UsageError
from orun.runtime.child import Child, ChildSpec, Exit, StartFailed, failure_of
from orun.runtime.group import GroupRestart
from orun.runtime.intensity import STABLE_PERIODS, Backoff, BackoffRule, Intensity
from orun.runtime.slot import Slot, State
from orun.runtime.vital import vital

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one", "simple_one_for_one"]
AutoShutdown = Literal["never", "any_significant", "all_significant"]

log = logging.getLogger("orun.supervisor")


class Supervisor(Child):
    """Keeps its children alive by the rules above, and gives up when they die too often."""

    def __init__(
        self,
        id: str,
        specs: Sequence[ChildSpec] = (),
        *,
        strategy: Strategy = "one_for_one",
        intensity: int = 3,
        period: float = 5.0,
        backoff: float = 0.05,
        backoff_max: float = 5.0,
        auto_shutdown: AutoShutdown = "never",
        rng: random.Random | None = None,
    ) -> None:
        self.id = id
        self.strategy: Strategy = strategy
        self.auto_shutdown: AutoShutdown = auto_shutdown
        self.restarts = 0
        self._state: State = "stopped"
        self._since = time.time()
        self._intensity = Intensity(intensity, period)
        self._rule = BackoffRule(backoff, backoff_max, STABLE_PERIODS * period, rng or random.Random())
        self._slots: list[Slot] = []
        self._lock = asyncio.Lock()
        self._early: list[tuple[Slot, Exit]] = []
        self._group = GroupRestart(self._slots, self._lock, rest_only=strategy == "rest_for_one")
        self._exit: Exit | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self._brutal = False
        for spec in specs:
            self._add(spec)

    @property
    def state(self) -> State:
        """As in :meth:`tree`."""
        return self._state

    async def start(self) -> None:
        """Start the children in order, each when the one before is ready; all or none."""
        self._enter("starting")
        for slot in list(self._slots):
            failure = None
            try:
                await slot.start()
            except StartFailed as error:
                failure = error
                self._close(self._start_exit(slot, error.exit))
            if self._closing is not None:
                await self._refuse(failure)
        self._enter("running")
        early, self._early = self._early, []
        for slot, exit in early:
            if slot.child is None:
                self._settle(slot, exit)

    def _start_exit(self, slot: Slot, exit: Exit) -> Exit:
        fatal = slot.spec.judge(exit) == "fatal"
        message = f"{slot.spec.id} did not start"
        return Exit(reason="no_restart" if fatal else "start_failed", child=slot.spec.id, message=message, cause=exit)

    async def _refuse(self, failure: StartFailed | None) -> NoReturn:
        await self._closed.wait()
        assert self._exit is not None
        message = failure.message if failure else self._exit.text()
        if failure and not message.startswith(self._exit.child):
            message = f"{self._exit.child}: {message}"
        hint, code = (failure.hint, failure.code) if failure else (None, failure_of(self._exit).code)
        raise StartFailed(message, self._exit, hint=hint, code=code) from failure

    async def wait(self) -> Exit:
        """How it ended, once all children are down."""
        await self._closed.wait()
        assert self._exit is not None
        return self._exit

    def stop(self) -> None:
        """Stop the children in reverse order."""
        self._close(Exit(reason="stopped", child=self.id))

    def kill(self) -> None:
        """Kill the children, all at once."""
        self._brutal = True
        for slot in self._slots:
            slot.kill()
        self._close(Exit(reason="stopped", child=self.id))

    # What happens when a child ends

    def _child_ended(self, slot: Slot, exit: Exit) -> None:
        if self._closing is not None or slot.doomed:
            return
        if self._state == "starting" and self._is_group:
            self._early.append((slot, exit))  # as OTP does: start everything first, then see to it
        else:
            self._settle(slot, exit)

    def _settle(self, slot: Slot, exit: Exit) -> None:
        verdict = slot.spec.judge(exit)
        if slot.spec.restart == "temporary" or (slot.spec.restart == "transient" and verdict == "normal"):
            self._retire(slot, exit)
        elif verdict == "fatal":
            self._give_up_on(slot, exit)
        else:
            self._restart(slot, exit)

    def _retire(self, slot: Slot, exit: Exit) -> None:
        log.info("%s: %s ended and is not restarted: %s", self.id, slot.spec.id, exit.text())
        slot.enter("finished")
        if slot.spec.restart == "temporary" or self.strategy == "simple_one_for_one":
            self._slots.remove(slot)
        if not slot.spec.significant or self.auto_shutdown == "never":
            return
        others = any(other.active and other.spec.significant for other in self._slots)
        if self.auto_shutdown == "any_significant" or not others:
            message = f"{slot.spec.id} is done"
            self._close(Exit(reason="shutdown", child=slot.spec.id, message=message, cause=exit))

    def _restart(self, slot: Slot, exit: Exit) -> None:
        if not self._intensity.allows(asyncio.get_running_loop().time()):
            message = f"{slot.spec.id} needs {self._intensity.text()}"
            self._close(Exit(reason="intensity", child=slot.spec.id, message=message, cause=exit))
            return
        log.warning("%s: %s ended and is restarted: %s", self.id, slot.spec.id, exit.text())
        slot.restarts += 1
        self.restarts += 1
        slot.enter("waiting")
        if self._is_group:
            self._group.request(slot, self._start_failed)
        else:
            slot.plan = vital(self._restart_alone(slot), f"restart {slot.spec.id}")

    def _give_up_on(self, slot: Slot, exit: Exit) -> None:
        message = f"{slot.spec.id} cannot be helped by a restart"
        self._close(Exit(reason="no_restart", child=slot.spec.id, message=message, cause=exit))

    async def _restart_alone(self, slot: Slot) -> None:
        await asyncio.sleep(slot.pause())
        try:
            await slot.start()
        except StartFailed as failure:
            self._start_failed(slot, failure.exit)

    def _start_failed(self, slot: Slot, exit: Exit) -> None:
        if self._closing is not None or exit.reason == "stopped":
            return
        if slot.spec.judge(exit) == "fatal":
            self._give_up_on(slot, exit)
        else:
            self._restart(slot, exit)

    # The end

    def _close(self, exit: Exit) -> None:
        if self._closing is None:
            if exit.reason in ("intensity", "no_restart"):
                log.error("%s gives up: %s", self.id, exit.text())
            self._exit = exit
            self._enter("stopping")
            self._group.cancel()
            self._closing = vital(self._end_children(), f"stop {self.id}")

    async def _end_children(self) -> None:
        if self._brutal or self.strategy == "simple_one_for_one":
            # Clones have no order; they share one shutdown time.
            await asyncio.gather(*(slot.end(brutal=self._brutal) for slot in self._slots))
        else:
            for slot in reversed(self._slots):
                await slot.end(brutal=self._brutal)
        self._enter("stopped")
        self._closed.set()

    # Control

    async def start_child(self, spec: ChildSpec) -> None:
        """Add a child and start it; it is forgotten when it does not start."""
        async with self._lock:
            self._refuse_when_closing()
            slot = self._add(spec)
            try:
                await slot.start()
            except StartFailed:
                self._slots.remove(slot)
                raise

    async def terminate_child(self, id: str) -> None:
        """Stop a child and keep its specification, unless it is temporary."""
        slot = self._slot(id)
        async with self._lock:
            await slot.end()
            if slot.spec.restart == "temporary" or self.strategy == "simple_one_for_one":
                self._forget(slot)

    async def restart_child(self, id: str) -> None:
        """Start a child that was terminated or has finished."""
        slot = self._slot(id)
        async with self._lock:
            self._refuse_when_closing()
            self._refuse_when_active(slot)
            await slot.start()

    async def delete_child(self, id: str) -> None:
        """Forget a child that was terminated or has finished."""
        slot = self._slot(id)
        async with self._lock:
            self._refuse_when_active(slot)
            self._forget(slot)

    def child(self, id: str) -> Child | None:
        """The present life of a child, if it has one."""
        return self._slot(id).child

    def tree(self) -> dict[str, Any]:
        """This supervisor and everything below it, for ``orun status``."""
        return {
            "id": self.id,
            "type": "supervisor",
            "pid": None,
            "state": self._state,
            "restarts": self.restarts,
            "since": self._since,
            "last_error": None if self._exit is None else self._exit.document(),
            **self.status(),
        }

    def status(self) -> dict[str, Any]:
        """What its own supervisor shows of it."""
        return {
            "strategy": self.strategy,
            "intensity": {"limit": self._intensity.limit, "period": self._intensity.period},
            "children": [slot.document() for slot in self._slots],
        }

    @property
    def _is_group(self) -> bool:
        return self.strategy in ("one_for_all", "rest_for_one")

    def _enter(self, state: State) -> None:
        self._state = state
        self._since = time.time()

    def _add(self, spec: ChildSpec) -> Slot:
        if spec.significant and self.auto_shutdown == "never":
            raise ValueError(f"{spec.id} is significant, but {self.id} never shuts down by itself")
        if any(slot.spec.id == spec.id for slot in self._slots):
            raise UsageError(f"{self.id} has a child {spec.id} already")
        slot = Slot(spec, Backoff(self._rule), self._child_ended)
        self._slots.append(slot)
        return slot

    def _slot(self, id: str) -> Slot:
        for slot in self._slots:
            if slot.spec.id == id:
                return slot
        raise NotFound(f"{self.id} has no child {id}")

    def _forget(self, slot: Slot) -> None:
        if slot in self._slots:
            self._slots.remove(slot)

    def _refuse_when_closing(self) -> None:
        if self._closing is not None:
            raise UsageError(f"{self.id} is stopping")

    def _refuse_when_active(self, slot: Slot) -> None:
        if slot.active:
            raise UsageError(f"{slot.spec.id} is {slot.state}", hint="Terminate it first.")
