"""Checks of the machine and the state directory: what was found, what it costs, how to mend it.

``fail`` means that orun cannot keep its promises here, ``warn`` that it can at a price. Each check is one
function that reads and measures and changes nothing but a scratch file of its own in the state directory.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from orun import project
from orun.errors import OrunError
from orun.observe import mounts
from orun.units import format_duration, format_size

State = Literal["ok", "warn", "fail"]

PYTHON_MIN = (3, 11)
SYNC_ROUNDS = 20
SYNC_WARN_S = 0.005
FREE_WARN_BYTES = 1 << 30
FREE_FAIL_BYTES = 64 << 20
MEMORY_WARN_BYTES = 256 << 20
FILES_WARN = 1024
CLOCK_MIN = 1_760_000_000
"""No orun existed before: a clock behind this was never set."""
_PR_GET_CHILD_SUBREAPER = 37


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``cost`` is what it costs to leave it so, ``mend`` what to do."""

    name: str
    state: State
    found: str
    cost: str = ""
    mend: str = ""

    def document(self) -> dict[str, Any]:
        """Its JSON form."""
        return asdict(self)


def examine(state_dir: str) -> list[Check]:
    """Every check, in the order of their weight."""
    checks: list[Callable[[], Check]] = [
        check_python,
        check_kernel,
        check_proc,
        check_engine,
        lambda: check_state_dir(state_dir),
        lambda: check_file_system(state_dir),
        lambda: check_sync(state_dir),
        lambda: check_space(state_dir),
        check_memory,
        check_open_files,
        lambda: check_clock(state_dir),
    ]
    return [check() for check in checks]


def check_python() -> Check:
    """The interpreter."""
    found = f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}"
    if sys.version_info < PYTHON_MIN or platform.python_implementation() != "CPython":
        return Check("python", "fail", found, "orun does not start", "use CPython 3.11 or later")
    return Check("python", "ok", found)


def check_kernel() -> Check:
    """What supervision is built on: pidfd, subreaper, memfd."""
    found = f"{platform.system()} {platform.release()} {platform.machine()}"
    missing = [name for name, there in _kernel_features() if not there]
    if missing:
        return Check(
            "kernel", "fail", f"{found}, without {', '.join(missing)}",
            "children cannot be supervised", "use Linux 5.4 or later, and a sandbox that allows these calls",
        )  # fmt: skip
    return Check("kernel", "ok", f"{found}: pidfd, subreaper, memfd")


def _kernel_features() -> list[tuple[str, bool]]:
    def pidfd() -> None:
        os.close(os.pidfd_open(os.getpid()))

    def memfd() -> None:
        os.close(os.memfd_create("orun-doctor"))

    def subreaper() -> None:
        flag = ctypes.c_int()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(flag), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")

    features = []
    for name, attempt in (("pidfd", pidfd), ("subreaper", subreaper), ("memfd", memfd)):
        try:
            attempt()
        except (OSError, AttributeError):
            features.append((name, False))
        else:
            features.append((name, True))
    return features


def check_proc() -> Check:
    """/proc, where leftovers of a dead tree are found by their environment."""
    pid = os.getpid()
    for path in (f"/proc/{pid}/environ", f"/proc/{pid}/stat", f"/proc/{pid}/task/{pid}/children"):
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            return Check(
                "/proc",
                "fail",
                f"{path}: {error.strerror}",
                "processes of a dead tree cannot be found",
                "mount proc on /proc",
            )
    return Check("/proc", "ok", "mounted and readable")


def check_engine() -> Check:
    """The Zig engine: there, or buildable."""
    from orun.engine import build

    before = time.monotonic()
    try:
        build.ensure()
    except OrunError as error:
        return Check("engine", "fail", error.message, "nothing runs without it", error.hint or "")
    took_s = time.monotonic() - before
    found = f"ready after {format_duration(took_s)}"
    if took_s > 1:
        found = f"built in {format_duration(took_s)}; from here on it is loaded from the cache"
    return Check("engine", "ok", found)


def check_state_dir(state_dir: str) -> Check:
    """The state directory: there, ours, and of a format that we know."""
    name = "state directory"
    if not os.path.lexists(state_dir):
        parent = _existing(state_dir)
        if not os.access(parent, os.W_OK | os.X_OK):
            return Check(
                name,
                "fail",
                f"{state_dir} cannot be made: {parent} is not writable",
                "nothing can be started here",
                "choose another with --state-dir",
            )
        return Check(name, "ok", f"{state_dir}, made by the first `orun run`")
    if not os.path.isdir(state_dir) or not os.access(state_dir, os.R_OK | os.W_OK | os.X_OK):
        return Check(
            name,
            "fail",
            f"{state_dir} is no folder that we may write to",
            "nothing can be started here",
            "chown or chmod it, or choose another with --state-dir",
        )
    running = project.running(state_dir)
    found = f"{state_dir}, " + (f"in use by orun pid {running['pid']}" if running else "nothing running")
    if os.stat(state_dir).st_mode & 0o077:
        return Check(name, "warn", found, "other users of this machine can read it", f"chmod 700 {state_dir}")
    return Check(name, "ok", found)


def check_file_system(state_dir: str) -> Check:
    """The kind of file system below the state directory."""
    mount = mounts.mount_of(_existing(state_dir))
    found = f"{mount.kind} on {mount.point}"
    if mount.is_network:
        return Check(
            "file system",
            "fail",
            found,
            "locks and memory maps are not reliable over a network",
            "keep the state on a local disk: --state-dir",
        )
    if mount.is_volatile:
        return Check(
            "file system",
            "warn",
            found,
            "the state is gone after a restart of the machine",
            "keep the state on a disk: --state-dir",
        )
    if mount.kind == "overlay":
        return Check("file system", "warn", found, "the state is gone with the container", "mount a volume for it")
    return Check("file system", "ok", found)


def check_sync(state_dir: str) -> Check:
    """How long the disk takes until something is really on it: a reply with durability = "disk" waits for that."""
    try:
        times = sorted(_sync_times(_existing(state_dir)))
    except OSError as error:
        return Check(
            "disk sync", "fail", str(error.strerror), "nothing can be made durable", "make the state directory writable"
        )
    middle, worst = statistics.median(times), times[-1]
    found = f"median {format_duration(middle)}, worst {format_duration(worst)} of {SYNC_ROUNDS}"
    if middle > SYNC_WARN_S:
        return Check(
            "disk sync", "warn", found, f"a reply waits about {format_duration(middle)} for the disk",
            'use a faster disk, or durability = "process" where a power cut may cost 0.1 s',
        )  # fmt: skip
    return Check("disk sync", "ok", found)


def _sync_times(folder: str) -> list[float]:
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(SYNC_ROUNDS):
            os.write(file.fileno(), bytes(4096))
            before = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - before)
    return times


def check_space(state_dir: str) -> Check:
    """Room for the log and the checkpoints."""
    room = os.statvfs(_existing(state_dir))
    free = room.f_bavail * room.f_frsize
    found = f"{format_size(free)} free"
    cost, mend = (
        "when it is full, agents answer read-only until there is room",
        "make room, or lower store.log_bytes_kept and store.checkpoints_kept",
    )
    if free < FREE_FAIL_BYTES:
        return Check("free space", "fail", found, cost, mend)
    return Check("free space", "warn" if free < FREE_WARN_BYTES else "ok", found, cost, mend)


def check_memory() -> Check:
    """Memory that is available, the limit of a container included."""
    available = _available_memory()
    if available is None:
        return Check("memory", "warn", "cannot be read", "unknown", "mount proc on /proc")
    found = f"{format_size(available)} available"
    if available < MEMORY_WARN_BYTES:
        return Check(
            "memory", "warn", found, "a worker and its standby may not fit", "set runtime.standby = 0, or give it more"
        )
    return Check("memory", "ok", found)


def _available_memory() -> int | None:
    available = None
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    available = int(line.split()[1]) << 10
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            limit = file.read().strip()
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as file:
            used = int(file.read())
    except OSError:
        # No limit of a container: what the machine has is what counts.
        return available
    if limit == "max":
        return available
    left = max(0, int(limit) - used)
    return left if available is None else min(available, left)


def check_open_files() -> Check:
    """The limit on open files: each caller of an agent holds one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} allowed" + ("" if soft == hard else f", up to {'any number' if hard < 0 else hard} on request")
    if soft != resource.RLIM_INFINITY and soft < FILES_WARN:
        return Check(
            "open files",
            "warn",
            found,
            "few callers can be connected at once",
            f"ulimit -n {max(FILES_WARN, min(hard, 65536))}",
        )
    return Check("open files", "ok", found)


def check_clock(state_dir: str) -> Check:
    """The clock: checkpoints and deadlines carry its time."""
    now = time.time()
    found = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    if now < CLOCK_MIN:
        return Check(
            "clock",
            "warn",
            found,
            "`orun restore --at TIME` will not find the right moment",
            "set the clock, with NTP for example",
        )
    journal = os.path.join(state_dir, "journal")
    if os.path.isdir(journal) and os.stat(journal).st_mtime > now + 60:
        return Check(
            "clock",
            "warn",
            f"{found}, and the state is from later",
            "times in the log go backwards",
            "set the clock, with NTP for example",
        )
    return Check("clock", "ok", found)


def _existing(path: str) -> str:
    """The path, or its nearest parent that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
