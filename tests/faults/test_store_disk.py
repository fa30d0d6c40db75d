"""A disk that is full or read-only, and calls that fail: nothing is acknowledged after the first error."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orun.errors import StorageFailed, UsageError
from orun.store.backup import write_backup
from orun.store.layout import StateDir
from orun.store.verify import verify
from tests.unit.store.harness import SMALL, Desk

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="mounting a small file system needs root")

_SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* Which call of which function fails, how; set by the test through ctypes. */
static int wanted, countdown, how, seen;

void shim_arm(int function, int at, int error) { wanted = function; countdown = at; how = error; seen = 0; }
int shim_seen(void) { return seen; }

static int due(int function) {
    if (function != wanted) return 0;
    seen++;
    return countdown > 0 && --countdown == 0;
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    if (due(1)) { errno = how; return -1; }
    return real(fd);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) {
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    if (due(2)) {
        if (how == 0) return real(fd, data, size / 2, offset);
        errno = how;
        return -1;
    }
    return real(fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t offset) {
    static ssize_t (*real)(int, const struct iovec *, int, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwritev64");
    if (due(2)) {
        if (how == 0) return real(fd, parts, count > 1 ? count - 1 : 1, offset) - (count > 1 ? 0 : 1);
        errno = how;
        return -1;
    }
    return real(fd, parts, count, offset);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    return pwritev64(fd, parts, count, offset);
}
"""

# One process tries all calls: the shim is armed anew for each, in a state directory of its own.
_VICTIM = """
import ctypes, errno, json, shutil, sys
from pathlib import Path
from orun.errors import StorageFailed
from orun.store.verify import verify
from tests.unit.store.harness import Desk

shim = ctypes.CDLL(sys.argv[1])
root = Path(sys.argv[2])
function = int(sys.argv[3])
error = int(sys.argv[4])

def life(folder, at):
    desk = Desk(folder)
    told = 0
    failed = worker = None
    shim.shim_arm(function, at, error)
    try:
        for number in range(12):
            worker = desk.activate() if number % 5 == 0 else worker
            for part in range(6):
                worker.change({b"k%d" % part: b"%d" % number * 100}, key=b"id %d %d" % (number, part))
            desk.committer.commit()
            told = worker.writer.durable_lsn
            if number % 3 == 2:
                desk.checkpoint()
    except StorageFailed as problem:
        failed = problem.message
        # Later calls would succeed; nothing may be reported durable any more.
        try:
            desk.committer.commit()
        except StorageFailed:
            pass
        assert worker is None or worker.writer.durable_lsn == told, "reported durable after an error"
    calls = shim.shim_seen()
    shim.shim_arm(0, 0, 0)
    last = max(desk.history)
    desk.crash()
    desk.committer.recover()
    end = desk.committer.lanes["counter"].end.last_lsn if desk.committer.lanes else 0
    problems = [problem.describe() for problem in verify(desk.committer.environment).problems]
    # The ring holds what was not committed: no record is lost at all.
    assert told <= end <= last, (told, end, last)
    assert end == last or not desk.state.rings.exists(), (end, last)
    if end:
        assert desk.current() == desk.history[end]
        worker = desk.activate()
        worker.change({b"after": b"x"})
        desk.committer.commit()
        assert worker.writer.durable_lsn == end + 2
    desk.close()
    shutil.rmtree(folder)
    return {"at": at, "failed": failed, "calls": calls, "problems": problems}

total = life(root / "count", 0)["calls"]
step = max(1, total // int(sys.argv[5]))
print(json.dumps({"total": total, "lives": [life(root / f"at{at}", at) for at in range(1, total + 1, step)]}))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes calls fail."""
    folder = tmp_path_factory.mktemp("shim")
    source = folder / "shim.c"
    source.write_text(_SHIM)
    library = folder / "shim.so"
    command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert hasattr(ctypes.CDLL(str(library)), "shim_arm")
    return library


@pytest.mark.parametrize(
    ("function", "error", "lives"),
    [(1, 5, 20), (2, 5, 20), (2, 28, 20), (2, 0, 20)],
    ids=["fdatasync EIO", "pwrite EIO", "pwrite ENOSPC", "pwrite short"],
)
def test_no_acknowledgement_after_the_kth_call_failed(
    shim: Path, tmp_path: Path, function: int, error: int, lives: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _VICTIM, str(shim), str(tmp_path), str(function), str(error), str(lives)],
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["total"] > 20
    assert len(document["lives"]) >= lives
    for life in document["lives"]:
        assert life["failed"], life
        assert life["problems"] == []


@contextmanager
def _tmpfs(path: Path, size: str) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@needs_root
def test_full_disk_stops_acknowledging_and_space_mends_it(tmp_path: Path) -> None:
    with _tmpfs(tmp_path / "small", "1m") as mount:
        ballast = mount / "ballast"
        ballast.write_bytes(bytes(400 << 10))
        desk = Desk(mount / "state")
        worker = desk.activate()
        told = 0

        def fill() -> None:
            nonlocal told
            for _ in range(2000):
                for part in range(10):
                    worker.change({b"k%d" % part: os.urandom(400)})
                desk.committer.commit()
                told = worker.writer.durable_lsn

        with pytest.raises(StorageFailed) as raised:
            fill()
        assert "the disk is full" in raised.value.message
        assert told > 0
        assert worker.writer.durable_lsn == told
        with pytest.raises(StorageFailed):
            desk.committer.commit(lambda txn: None)
        ballast.unlink()
        desk.crash()
        desk.committer.recover()
        last = max(desk.history)
        assert desk.committer.lane("counter").end.last_lsn == last
        assert desk.current() == desk.history[last]
        assert verify(desk.committer.environment).problems == []
        desk.close()


@needs_root
def test_full_disk_refuses_a_ring_and_the_rest_goes_on(tmp_path: Path) -> None:
    """A ring is reserved whole when it is made: an append cannot meet a full disk (it would be a SIGBUS)."""
    with _tmpfs(tmp_path / "small", "1m") as mount:
        desk = Desk(mount / "state", dataclasses.replace(SMALL, ring_bytes=512 << 10))
        worker = desk.activate()
        with pytest.raises(StorageFailed, match=r"second\.1\.ring"):
            desk.committer.activate("second", durability="disk", version="", reason="")
        assert [path.name for path in desk.state.rings.iterdir()] == ["counter.1.ring"]
        lsn = worker.change({b"k": b"v"})
        desk.committer.commit()
        assert worker.writer.durable_lsn == lsn
        desk.close()


@needs_root
def test_backup_onto_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state")
    worker = desk.activate()
    for _ in range(20):
        worker.change({b"k": os.urandom(1000)})
        desk.committer.commit()
    with _tmpfs(tmp_path / "small", "8k") as mount:
        with pytest.raises(StorageFailed, match="No space left"):
            write_backup(desk.committer.environment, mount / "backup.orun")
        assert list(mount.iterdir()) == []
    desk.close()


@needs_root
def test_read_only_disk_is_refused_by_name(tmp_path: Path) -> None:
    with _tmpfs(tmp_path / "small", "1m") as mount:
        Desk(mount / "state").close()
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        with pytest.raises(UsageError, match="Read-only file system"):
            StateDir(mount / "state").create()
        with pytest.raises(UsageError, match="Read-only file system"):
            StateDir(mount / "another").create()
