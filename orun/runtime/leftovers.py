"""What a tree that died as a whole has left behind, found when the next one starts.

Guard, sentinel and runtime see to it that nothing survives any of them. Only when all are killed within the
same moment can a process in a session of its own outlive them. Every process of a tree carries the tree's token
in its environment, and the state directory remembers the token of the last tree. The lock was free when
this runs, so whoever still carries that token belongs to nobody.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

TREE_VARIABLE = "ORUN_TREE"
FILE_NAME = "tree"

log = logging.getLogger("orun.leftovers")


def sweep(folder: Path) -> int:
    """Kill what is left of the tree that was here before, and write down this one's token; how many were killed."""
    path = folder / FILE_NAME
    token = os.environ.get(TREE_VARIABLE, "")
    try:
        before = path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        before = ""
    killed = 0
    if before and before != token:
        killed = sum(_kill(pid) for pid in _carriers(before))
        if killed:
            log.warning("killed %d process(es) that the last runtime had left behind", killed)
    path.write_text(token, encoding="ascii")
    return killed


def _carriers(token: str) -> list[int]:
    needle = f"{TREE_VARIABLE}={token}\0".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue  # gone meanwhile, or another user's
        if needle in environment and int(entry) != os.getpid():
            found.append(int(entry))
    return found


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True
