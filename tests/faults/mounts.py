"""File systems made for one test: a small one, and one that can lose its power."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def tmpfs(path: Path, size: str) -> Iterator[Path]:
    """A file system in memory."""
    path.mkdir()
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no tmpfs can be mounted here: {error}")
    try:
        yield path
    finally:
        _unmount(path)


class Disk:
    """An ext4 in a file, mounted through a loop device."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.image = folder / "disk.img"
        self.path = folder / "disk"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(size_bytes)
        try:
            _run("mkfs.ext4", "-q", "-F", str(self.image))
            self.mount()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no ext4 can be mounted through a loop device here: {error}")

    def mount(self) -> None:
        """Mount it; after a power cut this replays the file system's own journal."""
        _run("mount", "-o", "loop", str(self.image), str(self.path))

    def cut_the_power(self) -> None:
        """Nothing that is in memory reaches the image from here on."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Unmount it, as soon as nobody has a file of it open."""
        _unmount(self.path)


@contextmanager
def disk(folder: Path, size_bytes: int) -> Iterator[Disk]:
    """A disk that is gone afterwards."""
    found = Disk(folder, size_bytes)
    try:
        yield found
    finally:
        with suppress(subprocess.CalledProcessError):
            found.unmount()
        found.image.unlink()


def _unmount(path: Path) -> None:
    deadline = time.monotonic() + 5
    while os.path.ismount(path):
        done = subprocess.run(["umount", str(path)], check=False, capture_output=True)
        if done.returncode != 0:
            if time.monotonic() > deadline:
                _run("umount", "-l", str(path))
                return
            time.sleep(0.01)
