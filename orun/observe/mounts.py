"""Which file system a path lies on, as the kernel lists it."""

from __future__ import annotations

import os
from dataclasses import dataclass

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "afs", "ncpfs"})
VOLATILE = frozenset({"tmpfs", "ramfs", "devtmpfs"})
MOUNT_LIST = "/proc/self/mountinfo"


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system."""

    point: str
    kind: str

    @property
    def is_network(self) -> bool:
        """Whether another machine or a user's program stands behind it, so that locks and maps are doubtful."""
        return self.kind in NETWORK or self.kind.startswith("fuse")

    @property
    def is_volatile(self) -> bool:
        """Whether it lives in memory only."""
        return self.kind in VOLATILE


def mount_of(path: str, mount_list: str = MOUNT_LIST) -> Mount:
    """The mount that holds a path; of mounts on the same point the last one counts."""
    path = os.path.realpath(path)
    best = Mount("/", "unknown")
    try:
        with open(mount_list, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
    except OSError:
        return best
    for line in lines:
        before, _, after = line.partition(" - ")
        point = _unescape(before.split(" ")[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best.point):
            best = Mount(point, after.split(" ")[0])
    return best


def _unescape(text: str) -> str:
    """The kernel writes blanks and backslashes as octal numbers."""
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, letter)
    return text
