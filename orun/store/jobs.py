"""Long work of the recorder, cut into slices so that commits of requests are not delayed.

A job alternates between ``prepare`` (reads and computes, for about ``SLICE_S``) and, when that left
something to write, ``write`` inside the next group commit, whoever it is for. ``written`` follows
once that commit is durable; only then may the job move on. ``write`` may run twice, because a
transaction is repeated when the map had to grow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future
from typing import Any, ClassVar

from orun.errors import OrunError
from orun.store.environment import Txn

SLICE_S = 0.001
"""How long one ``prepare`` may take: a commit that becomes due meanwhile waits for it."""
SLICE_BLOCKS = 64
"""Blocks written in one commit: each touches a page of 4 KB of its own in a large state."""
HASTE_MAX = 16
"""How much larger slices may become when a job falls behind what it has to catch up with."""


class Job(ABC):
    """Work in slices. ``future`` is resolved when the work is durable."""

    name: ClassVar[str]
    """What people call it."""

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.future: Future[Any] = Future()
        self.ready = False
        """There is something to write."""
        self.finished = False
        self.haste = 1
        """By how much slices are enlarged."""

    @property
    def waits(self) -> bool:
        """There is nothing to do until another thread has finished."""
        return False

    @abstractmethod
    def prepare(self, txn: Txn) -> None:
        """Do the next part of the reading; sets ``ready`` when there is something to write."""

    @abstractmethod
    def write(self, txn: Txn) -> None:
        """Write what is ready."""

    @abstractmethod
    def written(self) -> None:
        """What ``write`` wrote is durable."""

    def fail(self, error: OrunError) -> None:
        """Give up."""
        self.finished = True
        if not self.future.done():
            self.future.set_exception(error)
