"""The processes directly below this one, as the kernel lists them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Container


def child_pids() -> list[int]:
    """PIDs of all direct children, zombies among them.

    The kernel keeps the list by thread. A child that ends during the reading can hide its neighbour for
    once; whoever must be sure reads again after each death, as the sweep does.
    """
    found: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/children", "rb") as children:
                found.extend(map(int, children.read().split()))
        except FileNotFoundError:
            continue  # the thread ended; its children went to another one
    return found


def kill_children(spare: Container[int] = (), timeout: float = 1.0) -> bool:
    """Kill every child, and whatever falls to this process then, until none is left; True when none is.

    Blocking, for the moments before this process ends. A process that the kernel cannot
    end (waiting for a dead disk) is left behind after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        pids = [pid for pid in child_pids() if pid not in spare]
        if not pids:
            return True
        for pid in pids:
            # Nobody else reaps these, so none of the numbers can belong to another process.
            os.kill(pid, signal.SIGKILL)
        if not sum(_reap(pid) for pid in pids):
            time.sleep(0.0002)
    return False


def _reap(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None
    except ChildProcessError:
        return True
