"""Where everything lives in the state directory, and whether this directory can be used at all.

format            JSON {"format": 1}; a greater number is refused
lock              held by the process that writes (see lock.py)
journal/          the LMDB environment
rings/            the workers' journals, NAME.EPOCH.ring
run/              sockets and runtime.json, only while something runs
logs/ exports/ dumps/ versions/
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import final

from orun.errors import Damaged, NotFound, UsageError

FORMAT = 1
"""The layout this orun reads and writes."""

SOCKET_PATH_MAX = 100
"""Longer socket paths go through /proc/self/fd: sun_path ends at 108 bytes."""

_FOLDERS = ("journal", "rings", "run", "logs", "exports", "dumps", "versions")

# Memory maps and record locks are not dependable on these: a worker on another host, or a daemon in
# between, sees writes late or never. From linux/magic.h.
_REFUSED = {
    0x6969: "NFS",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x517B: "SMB",
    0x01021997: "9p",
    0x65735546: "FUSE",
    0x5346414F: "AFS",
    0x00C36400: "Ceph",
    0x0BD00BD0: "Lustre",
    0x73757245: "Coda",
    0x7461636F: "OCFS2",
    0x01161970: "GFS2",
    0x786F4256: "VirtualBox shared folder",
}


@final
class StateDir:
    """A state directory: its paths and the checks before it is used."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(path))
        self.format_file = self.path / "format"
        self.lock_file = self.path / "lock"
        self.journal, self.rings, self.run, self.logs, self.exports, self.dumps, self.versions = (
            self.path / name for name in _FOLDERS
        )
        self.runtime_file = self.run / "runtime.json"
        self.control_socket = self.run / "control.sock"

    def __repr__(self) -> str:
        return f"StateDir({str(self.path)!r})"

    def agent_socket(self, agent: str) -> Path:
        """Where the agent's clients connect."""
        return self.run / f"{agent}.sock"

    def ring(self, agent: str, epoch: int) -> Path:
        """The journal of one worker's life."""
        return self.rings / f"{agent}.{epoch}.ring"

    def log_file(self, name: str) -> Path:
        """Where a child's output goes."""
        return self.logs / f"{name}.log"

    def exists(self) -> bool:
        """Whether this is a state directory (of any format)."""
        return self.format_file.exists()

    def create(self) -> None:
        """Make what is missing; refuse what cannot be used. Safe to repeat."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.check_filesystem()
            for name in _FOLDERS:
                (self.path / name).mkdir(exist_ok=True)
            if not self.exists():
                write_durably(self.format_file, json.dumps({"format": FORMAT}).encode())
        except OSError as error:
            raise self._unusable(error) from error
        self.check_format()
        self._check_writable()

    def require(self) -> None:
        """Refuse a directory without state, or with a state that we cannot read."""
        if not self.exists():
            raise NotFound(
                f"there is no orun state in {self.path}",
                hint="name the directory with --state-dir, or start an agent with `orun run`",
            )
        self.check_format()

    def check_format(self) -> None:
        """Refuse a newer layout: guessing at it could destroy it."""
        try:
            found = json.loads(self.format_file.read_bytes())["format"]
        except OSError as error:
            raise self._unusable(error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(
                f"{self.format_file} does not say which format the state directory has",
                hint=f'if this is a state directory of orun, restore the file: {{"format": {FORMAT}}}',
            ) from error
        if not isinstance(found, int) or found < 1:
            raise Damaged(f"{self.format_file} names format {found!r}, which never existed")
        if found > FORMAT:
            raise Damaged(
                f"{self.path} has format {found}, and this orun knows formats up to {FORMAT}",
                hint="use the orun that wrote it, or a newer one",
            )

    def check_filesystem(self) -> None:
        """Refuse network and user-space file systems."""
        name = _REFUSED.get(filesystem_magic(self.path))
        if name is not None:
            raise UsageError(
                f"{self.path} is on a {name} file system, where the journal would not be safe",
                hint="keep the state directory on a local disk: --state-dir DIR",
            )

    def _check_writable(self) -> None:
        # Permission bits do not tell: root passes them all, and a read-only mount none.
        probe = self.run / f".probe.{os.getpid()}"
        try:
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> UsageError:
        where = error.filename or self.path
        return UsageError(
            f"cannot use the state directory {self.path}: {where}: {error.strerror}",
            hint="choose a directory you can write to: --state-dir DIR",
        )


class _Statfs(ctypes.Structure):
    # Only the first word is of interest; the rest is room for what the kernel writes.
    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_byte * 256))


def filesystem_magic(path: Path) -> int:
    """The statfs(2) type of the file system that holds ``path``."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = _Statfs()
    if libc.statfs(os.fsencode(path), ctypes.byref(result)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return int(result.f_type) & 0xFFFFFFFF


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file so that a power cut leaves the old content or the new, nothing between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """The address to bind or connect a unix socket to, usable inside the ``with`` however long the path."""
    text = str(path)
    if len(os.fsencode(text)) <= SOCKET_PATH_MAX:
        yield text
        return
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)
