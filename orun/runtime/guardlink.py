"""The bond between the runtime and the guard, its parent: each ends the tree when the other is gone.

The runtime sends a byte each second from its event loop, so that the guard notices a loop that stands still.
In the other direction a pidfd tells at once when the guard has died: then nobody is left who would
clean up after this process, so it kills everything below it and ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, MutableMapping
from typing import Final

log = logging.getLogger("orun.guard")

VARIABLE: Final = "ORUN_GUARD_FD"
HEARTBEAT_S: Final = 1.0
_BEAT: Final = b"."


class GuardLink:
    """Heartbeats to the guard; ``gone`` is called, in the event loop, when the guard is dead."""

    def __init__(self, fd: int, guard: int, gone: Callable[[], None]) -> None:
        self.guard = guard
        self._fd = fd
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        os.set_inheritable(fd, False)
        os.set_blocking(fd, False)
        self._pidfd = os.pidfd_open(guard)
        self._loop.add_reader(self._pidfd, self._lost)
        if os.getppid() != guard:
            self._loop.call_soon(self._lost)
        self._beat()

    @classmethod
    def from_environment(
        cls, gone: Callable[[], None], environment: MutableMapping[str, str] = os.environ
    ) -> GuardLink | None:
        """The link when a guard started this process. The variable is removed: it is not meant for children."""
        fd = environment.pop(VARIABLE, "")
        return cls(int(fd), os.getppid(), gone) if fd else None

    def close(self) -> None:
        """Stop the heartbeat and the watch; the guard then goes by this process's exit code."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)

    def _beat(self) -> None:
        try:
            os.write(self._fd, _BEAT)
        except BlockingIOError:
            log.debug("the guard does not read its heartbeats")
        except OSError:
            # The other end is closed. Whether the guard is dead is told by its pidfd alone.
            log.debug("the guard has closed the heartbeat")
        self._timer = self._loop.call_later(HEARTBEAT_S, self._beat)

    def _lost(self) -> None:
        if self._timer is not None:
            self.close()
            self._gone()
