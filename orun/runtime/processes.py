"""The runtime's processes: each watched by its pidfd, and none left over.

The rule that keeps the tree clean: **a direct child that is not known here is a leftover, and is killed.**
Every child is a subreaper, so what it started stays below it while it lives and falls to the runtime when
it dies. The sweep after each death finds it there, in whatever session it hides. For the same reason nothing
in the runtime may start a process except through this module or a forkserver.

A death is noticed by pidfd: not by a closed pipe (a grandchild may hold it open), and not by SIGCHLD (signals
merge, and the handler would wait for children that are not its own).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from orun.runtime.child import Exit
from orun.runtime.sweep import child_pids, kill_children

log = logging.getLogger("orun.processes")

SWEEP_INTERVAL_S: Final = 1.0
"""A leftover can also fall to the runtime without the death of a known child; it is found this soon."""

_NOT_OURS_YET_S: Final = 0.001
_NOT_OURS_TRIES: Final = 500


class Process:
    """A child process of the runtime, known by number and pidfd. Made by :class:`Processes` only."""

    def __init__(self, pid: int, title: str, gone: Callable[[Process], None]) -> None:
        self.pid = pid
        self.title = title
        self.exit: Exit | None = None
        self._gone = gone
        self._pidfd = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Exit] = self._loop.create_future()
        self._tries = 0
        self._loop.add_reader(self._pidfd, self._ended)

    def __repr__(self) -> str:
        return f"<Process {self.pid} {self.title}>"

    async def wait(self) -> Exit:
        """How it ended; returns as soon as it has."""
        return await asyncio.shield(self._future)

    def send_signal(self, number: int) -> None:
        """Signal the process, unless it has ended."""
        if self.exit is None:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                return  # it is a zombie, whose status is read in a moment

    def signal_group(self, number: int) -> None:
        """Signal the process and what it started in its own process group."""
        if self.exit is None:
            try:
                os.killpg(self.pid, number)  # it is not reaped yet, so the number is still its own
            except ProcessLookupError:
                self.send_signal(number)  # it has not become the leader of its group yet

    def kill(self) -> None:
        """Kill it; what it leaves behind is killed by the sweep that its death starts."""
        self.send_signal(signal.SIGKILL)

    def forget(self) -> None:
        """Stop watching (when the event loop closes)."""
        if self.exit is None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._future.cancel()
            self.exit = Exit(reason="lost")

    def _ended(self) -> None:
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            self._loop.remove_reader(self._pidfd)
            self._wait_for_parent()
            return
        if result is None:
            return
        if result.si_code == os.CLD_EXITED:
            self._finish(Exit(code=result.si_status))
        else:
            self._finish(Exit(signal=result.si_status))

    def _wait_for_parent(self) -> None:
        # It died in the moment before the process between it and the forkserver was gone, so it is not this
        # process's child yet; or somebody else took its status, and it never will be.
        self._tries += 1
        if self._tries >= _NOT_OURS_TRIES:
            self._finish(Exit(reason="lost"))
        elif self.exit is None:
            self._loop.call_later(_NOT_OURS_YET_S, self._ended)

    def _finish(self, exit: Exit) -> None:
        if self.exit is not None:
            return
        self.exit = exit
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if not self._future.cancelled():
            self._future.set_result(exit)
        # Whoever waits goes on in the loop's next turn, so what is left behind is killed before that.
        self._gone(self)


class Processes:
    """All processes of the runtime; what is not among them is swept away.

    ``spare`` names children that were there before and are none of orun's business.
    """

    def __init__(self, *, spare: Iterable[int] = ()) -> None:
        self._known: dict[int, Process] = {}
        self._spare = frozenset(spare)
        self._announcements: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self.leftovers = 0
        """How many leftovers have been killed."""

    @property
    def known(self) -> Mapping[int, Process]:
        """Every process that lives, by its number."""
        return self._known

    def open(self) -> None:
        """Begin to sweep at intervals, besides the sweep after each death."""
        self._timer = asyncio.get_running_loop().call_later(SWEEP_INTERVAL_S, self._tick)

    def close(self) -> None:
        """Stop watching; the processes themselves are not touched."""
        if self._timer is not None:
            self._timer.cancel()
        for process in list(self._known.values()):
            process.forget()
        self._known.clear()

    def adopt(self, pid: int, title: str) -> Process:
        """Know a process that is, or is about to become, a child of this one."""
        process = self._known[pid] = Process(pid, title, self._gone)
        return process

    def spawn(self, command: Sequence[str], *, title: str, fds: Mapping[int, int]) -> Process:
        """Start a program in its own session; ``fds`` maps its descriptor numbers to this process's.

        The kernel ties the parent-death signal to the *thread* that starts a child, so only the main
        thread may call this; the program itself binds its life to the runtime's.
        """
        actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = []
        if 0 not in fds:
            actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
        # In rising order: a number is overwritten only after everything below it was placed.
        actions += [(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in sorted(fds.items())]
        pid = os.posix_spawn(
            command[0],
            list(command),
            os.environ,
            file_actions=actions,
            setsid=True,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
        return self.adopt(pid, title)

    def before_sweep(self, announce: Callable[[], None]) -> Callable[[], None]:
        """Call ``announce`` before each sweep, to adopt children just announced; returns the way to end this."""
        self._announcements.append(announce)
        return lambda: self._announcements.remove(announce)

    def sweep(self) -> int:
        """Kill the leftovers; returns how many there were. Their own leftovers follow when they are dead."""
        pids = child_pids()  # before the announcements: whoever is seen here was announced earlier
        for announce in list(self._announcements):
            announce()
        unknown = [pid for pid in pids if pid not in self._known and pid not in self._spare]
        for pid in unknown:
            try:
                self.adopt(pid, "leftover").kill()
            except ProcessLookupError:
                continue  # whoever started it took its status in this moment
        if unknown:
            self.leftovers += len(unknown)
            log.info("killed %d process(es) left behind", len(unknown))
        return len(unknown)

    def kill_everything(self) -> bool:
        """Kill all children and all that is below them, now, blocking; for the moment before the end."""
        return kill_children(self._spare)

    def _gone(self, process: Process) -> None:
        del self._known[process.pid]
        self.sweep()

    def _tick(self) -> None:
        self.sweep()
        self.open()
