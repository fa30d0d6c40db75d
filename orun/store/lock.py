"""The lock of a state directory: one process writes, and everybody can see which.

A POSIX record lock: the kernel frees it when its holder dies, and a forked child does not inherit
it. (With flock() an orphan kept the directory locked.) So a free lock means that its holder is
dead, whatever the file says; the file is never deleted. The price: the lock is lost when the
process that holds it closes any descriptor of the file. Hence ``holder()`` is for other processes.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any, final

from orun.errors import InUse, UsageError
from orun.store.layout import StateDir

# struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK = struct.Struct("hhqqi4x")


@final
class StateLock:
    """Holds the lock of a state directory until ``release`` or the death of the process."""

    def __init__(self, state: StateDir) -> None:
        self.state = state
        try:
            # Close-on-exec: a program we start must not be able to drop the lock by closing it.
            self._fd = os.open(state.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(
                f"cannot lock the state directory: {state.lock_file}: {error.strerror}",
                hint="choose a directory you can write to: --state-dir DIR",
            ) from error
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            found = _read_holder(self._fd)
            os.close(self._fd)
            raise in_use(state, found) from error
        self._describe()

    def _describe(self) -> None:
        content = json.dumps(
            {
                "pid": os.getpid(),
                "started": round(process_started(os.getpid()), 2),
                "boot_id": boot_id(),
                "host": socket.gethostname(),
            }
        ).encode()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, content, 0)

    def release(self) -> None:
        """Let the next one in."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> StateLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def holder(state: StateDir) -> dict[str, Any] | None:
    """Who holds the lock, or None; for processes that do not hold it themselves."""
    try:
        fd = os.open(state.lock_file, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"cannot read {state.lock_file}: {error.strerror}") from error
    try:
        return _read_holder(fd)
    finally:
        os.close(fd)


def _read_holder(fd: int) -> dict[str, Any] | None:
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, question))
    if kind == fcntl.F_UNLCK:
        return None
    try:
        found = json.loads(os.pread(fd, 4096, 0))
    except ValueError:
        found = None
    # The holder may not have written its name yet; the kernel knows the process in any case
    # (it says 0 when the process is in another PID namespace).
    if not isinstance(found, dict) or (pid > 0 and found.get("pid") != pid):
        found = {"pid": pid, "started": process_started(pid) if pid > 0 else None}
    return found


def in_use(state: StateDir, found: dict[str, Any] | None) -> InUse:
    """The error that says who holds the state directory."""
    found = found or {}
    started = found.get("started")
    since = ""
    if isinstance(started, (int, float)) and started > 0:
        since = time.strftime(", started %Y-%m-%d %H:%M:%S", time.localtime(started))
    return InUse(
        f"{state.path} is in use by another orun (pid {found.get('pid') or 'unknown'}{since})",
        hint=f"stop it with `orun stop --state-dir {state.path}`, or use another state directory",
    )


def boot_id() -> str:
    """Differs after every start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def process_started(pid: int) -> float:
    """When a process was started, in seconds since 1970; 0 when there is no such process."""
    try:
        # The name, in brackets, may hold anything; the start time is the 20th field behind it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + ticks
