"""What a supervisor supervises: a child, the specification it is made from, and how it ended."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from orun.errors import IntensityExceeded, OrunError
from orun.settings import Restart

Shutdown = float | Literal["brutal_kill", "infinity"]
"""How long an orderly stop may take (seconds), or at once, or as long as it takes."""

Reason = Literal[
    "exited",  # by itself, with a code or by a signal
    "stopped",  # because it was told to
    "shutdown",  # a supervisor whose significant children were done
    "start_failed",  # before it was ready
    "hung",  # killed because it showed no life, or no keep-alive came
    "intensity",  # a supervisor that gave up restarting
    "no_restart",  # a supervisor whose child said that a restart is of no use
    "lost",  # its status could not be learned
]
Verdict = Literal["normal", "failure", "fatal"]

STDERR_LINES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended, with what helps to find out why. ``cause`` is the exit that led to this one."""

    code: int | None = None
    signal: int | None = None
    reason: Reason = "exited"
    message: str = ""
    stderr: tuple[str, ...] = ()
    dump: str | None = None
    child: str = ""
    cause: Exit | None = None

    def text(self) -> str:
        """One line for people."""
        what = self.message or self._outcome()
        if self.cause is not None:
            what = f"{what}; last: {self.cause.text()}" if what else self.cause.text()
        return what

    def _outcome(self) -> str:
        if self.signal is not None:
            return f"killed by {_signal_name(self.signal)}"
        if self.code is not None:
            return f"exit code {self.code}"
        return self.reason.replace("_", " ")

    def root(self) -> Exit:
        """The exit at the bottom of it all: that of a process."""
        return self if self.cause is None else self.cause.root()

    def document(self) -> dict[str, Any]:
        """As ``orun status --json`` shows it."""
        shown = asdict(self)
        shown["stderr"] = list(self.stderr[-STDERR_LINES_SHOWN:])
        shown["cause"] = None if self.cause is None else self.cause.document()
        shown["text"] = self.text()
        return shown


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal has no name of its own


class StartFailed(OrunError):
    """A child ended, failed or took too long before it was ready; ``exit`` says how."""

    def __init__(self, message: str, exit: Exit, *, hint: str | None = None, code: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.exit = exit
        self.code = code


def failure_of(exit: Exit) -> OrunError:
    """The error that the runtime ends with when its topmost supervisor ended like this."""
    root = exit.root()
    message = "\n  ".join((exit.text(), *root.stderr[-STDERR_LINES_SHOWN:]))
    hint = f"`orun logs {root.child}` has what it said" if root.child else None
    if root.dump:
        hint = f"its stacks are in {root.dump}"
    return (IntensityExceeded if exit.reason == "intensity" else OrunError)(message, hint=hint)


class Child(ABC):
    """One life of a supervised thing. A restart makes a new one.

    The supervisor calls ``start`` once, then awaits ``wait``. ``stop`` and ``kill`` may come at any
    time, also while ``start`` runs: it then returns or raises soon, and never hangs. A ``start`` that
    raises (``asyncio.CancelledError`` too) leaves no process behind.
    """

    pid: int | None = None

    @abstractmethod
    async def start(self) -> None:
        """Return when the child is ready; raise StartFailed (or any OrunError) when it will not be."""

    @abstractmethod
    async def wait(self) -> Exit:
        """How it ended; returns once it has. Called only after ``start`` returned."""

    @abstractmethod
    def stop(self) -> None:
        """Ask for an orderly end."""

    @abstractmethod
    def kill(self) -> None:
        """End it now, with everything below it."""

    def status(self) -> dict[str, Any]:
        """What ``orun status`` shows beside what the supervisor knows."""
        return {}


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How a child is made, restarted and stopped; ``start`` makes one life of it."""

    id: str
    start: Callable[..., Child]
    restart: Restart = "permanent"
    shutdown: Shutdown | None = None
    significant: bool = False
    type: Literal["worker", "supervisor"] = "worker"
    success_codes: tuple[int, ...] = (0,)
    no_restart_codes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.significant and self.restart == "permanent":
            raise ValueError(f"{self.id}: a permanent child never ends for good, so it cannot be significant")

    @property
    def patience(self) -> Shutdown:
        """The shutdown time: 5 s for a worker; as long as it takes for a supervisor, whose children have their own."""
        if self.shutdown is not None:
            return self.shutdown
        return "infinity" if self.type == "supervisor" else 5.0

    def judge(self, exit: Exit) -> Verdict:
        """Whether this was a good end, one that a restart may mend, or one that it cannot mend."""
        if exit.reason in ("stopped", "shutdown"):
            return "normal"
        if exit.reason == "no_restart" or exit.code in self.no_restart_codes:
            return "fatal"
        if exit.reason == "exited" and exit.code in self.success_codes:
            return "normal"
        return "failure"
