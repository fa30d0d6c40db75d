"""The first forkserver, started before the runtime has even loaded its own modules.

Both take an interpreter's start and a hundred milliseconds of imports; side by side they take half of
that from the time until an agent answers. This module must therefore stay as light as it is.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

WORKER_MODULES = ("asyncio", "orun.worker.main")
"""What every worker needs; loaded once, in the forkserver."""
CONTROL_FD = 3


class Early:
    """A forkserver that nobody supervises yet."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self.control = control


def start() -> Early:
    """Start the first forkserver; what it has to say goes to this process's standard error."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        command = forkserver_command(WORKER_MODULES)
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, 2, 1),
            (os.POSIX_SPAWN_DUP2, theirs.fileno(), CONTROL_FD),
        ]
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=actions,
            setsid=True,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    finally:
        theirs.close()
    return Early(pid, ours)


def forkserver_command(modules: Sequence[str] = ()) -> list[str]:
    """The command line of a forkserver that has ``modules`` loaded.

    ``-P`` keeps the current folder out of its import path: a file named like a module of the standard
    library beside the user's agent would otherwise break it.
    """
    command = [sys.executable, "-P", "-m", "orun.worker.forkserver"]
    command += ["--control-fd", str(CONTROL_FD), "--parent", str(os.getpid())]
    for module in modules:
        command += ["--import", module]
    return command
