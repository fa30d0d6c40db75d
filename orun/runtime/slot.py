"""A child's place in its supervisor: one specification, one life after the other."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable
from typing import Any, Literal

from orun.errors import OrunError
from orun.runtime.child import Child, ChildSpec, Exit, StartFailed
from orun.runtime.intensity import Backoff
from orun.runtime.vital import vital

State = Literal["starting", "running", "waiting", "stopping", "stopped", "finished"]
"""``waiting``: dead, to be restarted. ``finished``: ended well, and not to be restarted."""

log = logging.getLogger("orun.supervisor")


class Slot:
    """Starts, watches and ends the lives of one child; says by ``ended`` when one ends by itself."""

    def __init__(self, spec: ChildSpec, backoff: Backoff, ended: Callable[[Slot, Exit], None]) -> None:
        self.spec = spec
        self.child: Child | None = None
        self.state: State = "stopped"
        self.since = time.time()
        self.restarts = 0
        self.last: Exit | None = None
        self.doomed = False
        """Its siblings' restart covers it, so its own death is no news."""
        self.plan: asyncio.Task[None] | None = None
        """The task that restarts it, when it is restarted alone."""
        self._backoff = backoff
        self._ended = ended
        self._gone = asyncio.Event()
        self._gone.set()
        self._ready_at: float | None = None
        self._watcher: asyncio.Task[None] | None = None

    def enter(self, state: State) -> None:
        """Change state and note when."""
        self.state = state
        self.since = time.time()

    @property
    def active(self) -> bool:
        """It lives, or will again."""
        return self.child is not None or self.state == "waiting"

    def pause(self) -> float:
        """Seconds to wait before the next start."""
        uptime = 0.0 if self._ready_at is None else asyncio.get_running_loop().time() - self._ready_at
        self._ready_at = None
        return self._backoff.pause(uptime)

    async def start(self) -> None:
        """Begin a life and return when it is ready; StartFailed when it is not going to be."""
        assert self.child is None, f"{self.spec.id} is started twice"
        self._gone.clear()
        self._ready_at = None
        self.enter("starting")
        try:
            child = self.child = self.spec.start()
            await child.start()
        except Exception as error:
            failure = _stopped(self.spec) if self.state == "stopping" else _failed_start(self.spec, error)
            self._lose(failure.exit)
            raise failure from error
        except BaseException:
            self._lose(Exit(reason="stopped"))
            raise
        self._ready_at = asyncio.get_running_loop().time()
        self._watcher = vital(self._watch(child), f"watch {self.spec.id}")
        if self.state == "stopping":
            await self._gone.wait()
            raise _stopped(self.spec)
        self.enter("running")

    async def _watch(self, child: Child) -> None:
        try:
            exit = await child.wait()
        except Exception as error:  # noqa: BLE001 - the child boundary; a child that cannot be watched is dead
            child.kill()
            exit = Exit(reason="lost", message=_trace(error))
        expected = self.state == "stopping"
        self._lose(exit)
        if not expected:
            self._ended(self, exit)

    def _lose(self, exit: Exit) -> None:
        if self.state != "stopping" and self.spec.judge(exit) != "normal":
            self.last = exit
        self.child = None
        self.enter("stopped")
        self._gone.set()

    async def end(self, *, brutal: bool = False) -> None:
        """Stop it in order, or kill it when it takes longer than its shutdown time."""
        self.cancel_restart()
        if self.child is None:
            if self.state != "finished":
                self.enter("stopped")
            return
        patience = "brutal_kill" if brutal else self.spec.patience
        if patience == "brutal_kill":
            self.kill()
        else:
            self.enter("stopping")
            self.child.stop()
            try:
                async with asyncio.timeout(None if patience == "infinity" else patience):
                    await self._gone.wait()
            except TimeoutError:
                log.warning("%s does not stop within %s s and is killed", self.spec.id, patience)
                self.kill()
        await self._gone.wait()

    def kill(self) -> None:
        """Kill it, with everything below it; its end is not awaited."""
        self.cancel_restart()
        if self.child is not None:
            self.enter("stopping")
            self.child.kill()

    def cancel_restart(self) -> None:
        """Give up a restart that is still waiting for its time."""
        if self.state == "waiting" and self.plan is not None:
            self.plan.cancel()
            self.plan = None

    def document(self) -> dict[str, Any]:
        """This child in ``orun status``."""
        shown: dict[str, Any] = {
            "id": self.spec.id,
            "type": self.spec.type,
            "pid": None if self.child is None else self.child.pid,
            "state": self.state,
            "restart": self.spec.restart,
            "restarts": self.restarts,
            "since": self.since,
            "last_error": None if self.last is None else self.last.document(),
        }
        return shown | (self.child.status() if self.child is not None else {})


def _stopped(spec: ChildSpec) -> StartFailed:
    return StartFailed(f"{spec.id} was stopped while it started", Exit(reason="stopped", child=spec.id))


def _failed_start(spec: ChildSpec, error: Exception) -> StartFailed:
    if isinstance(error, StartFailed):
        return error
    if isinstance(error, OrunError):
        exit = Exit(reason="start_failed", message=error.message, child=spec.id)
        return StartFailed(error.message, exit, hint=error.hint, code=error.code)
    message = str(error) if isinstance(error, OSError) else _trace(error)
    return StartFailed(message, Exit(reason="start_failed", message=message, child=spec.id))


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error)).rstrip()
