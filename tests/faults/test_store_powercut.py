"""Simulated power cuts: ext4 in a file, pages written back out of order, the file system shut down without its log.

An adversary process writes random pages of the database and the rings back (legal: the kernel may
write any dirty page at any time) and makes the file system commit its journal; then the file system
is shut down as by a power cut, mounted again, and everything is checked. The control arm runs the
same store with ``sync=False`` and must show damage or loss: it proves that the harness can see any.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import wait_until

CUTS = 10
_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
_NO_LOG_FLUSH = 2


def _unusable() -> str:
    if os.geteuid() != 0:
        return "simulated power cuts need root"
    if not Path("/dev/loop-control").exists():
        return "simulated power cuts need loop devices"
    if shutil.which("mkfs.ext4") is None:
        return "simulated power cuts need mkfs.ext4"
    return ""


pytestmark = pytest.mark.skipif(bool(_unusable()), reason=_unusable() or "-")

# A recorder and its worker in one process. The shared words tell what was acknowledged, and how.
_WORKLOAD = """
import mmap, os, random, sys, time
import lmdb
from pathlib import Path
from orun.settings import StoreSettings
from orun.store.layout import StateDir
from orun.store.recorder import Recorder
from orun.engine.journal import JournalFull, JournalWriter
from orun.store.records import Kind, encode_effect

folder, shared, synced = sys.argv[1], sys.argv[2], sys.argv[3] == "sync"
if not synced:
    opened = lmdb.open
    lmdb.open = lambda *args, **fields: opened(*args, **{**fields, "sync": False})
with open(shared, "r+b") as file:
    words = mmap.mmap(file.fileno(), 4096)
state = StateDir(folder)
state.create()
settings = StoreSettings(
    ring_bytes=256 << 10, map_bytes=64 << 20, segment_bytes=64 << 10, log_bytes_kept=0,
    checkpoint_bytes=48 << 10, checkpoints_kept=3, export_every=0, commit_interval=0.005,
)
recorder = Recorder(state, settings, on_failure=lambda error: os._exit(3), on_event=lambda *_: None)
recorder.start()
recorder.recover()
activation = recorder.activate("counter", durability="disk", version="", reason="").result()
os.sync()
writer = JournalWriter.open(activation.ring_path)
count = 0
while True:
    for _ in range(10):
        count += 1
        value = b"%d " % count * 20
        payload = encode_effect(b"%d" % count, True, [(b"k%d" % (count % 300), value)])
        try:
            lsn = writer.append(Kind.EFFECT, payload, ref=1)
        except JournalFull:
            count -= 1
            break
    if writer.wake_needed(True):
        os.eventfd_write(recorder.wake_fd, 1)
    words[8:16] = lsn.to_bytes(8, "little")
    words[0:8] = writer.durable_lsn.to_bytes(8, "little")
    time.sleep(0.0005)
"""

# What is left is checked in a process of its own: damaged databases have ended it by a signal.
_CHECK = """
import sys
from orun.errors import OrunError
from orun.settings import StoreSettings
from orun.store.layout import StateDir
from orun.store.recorder import Recorder
from orun.store.planning import Planner

def main():
    state = StateDir(sys.argv[1])
    recorder = Recorder(state, StoreSettings(map_bytes=64 << 20), on_failure=lambda error: print("FAILED", error),
                        on_event=lambda *_: None)
    recorder.start()
    recovered = recorder.recover()
    problems = recorder.verify().result().problems
    if problems:
        return f"problem {problems[0].describe()}"
    last = recorder.position("counter")["last_lsn"]
    found = recorder.view(lambda environment: Planner(environment, "counter", print).state()).result()
    expected = {b"k%d" % (n % 300): b"%d " % n * 20 for n in range(1, last + 1)}
    if found != expected:
        return "the state is not that of the last LSN"
    recorder.activate("counter", durability="disk", version="", reason="").result()
    recorder.checkpoint("counter", "after").result()
    recorder.stop()
    return f"ok {last} {sum(entry['records'] for entry in recovered)}"

try:
    print(main())
except OrunError as error:
    print("error", type(error).__name__, error.message)
"""


@dataclass
class Cut:
    """What a power cut left."""

    verdict: str
    durable: int
    """LSNs up to here had been reported durable."""
    appended: int

    @property
    def last_lsn(self) -> int:
        return int(self.verdict.split()[1]) if self.verdict.startswith("ok") else 0

    @property
    def sound(self) -> bool:
        return self.verdict.startswith("ok") and self.last_lsn >= self.durable


@contextmanager
def _mounted(image: Path, mount: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    try:
        yield
    finally:
        command = ["umount", str(mount)]
        wait_until(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0, 20, "umount")


def _adversary(mount: Path, rng: random.Random) -> None:
    """Write random pages back, and now and then have the file system commit its journal."""
    libc = ctypes.CDLL(None, use_errno=True)
    marker = os.open(mount / "marker", os.O_CREAT | os.O_RDWR)
    state = mount / "state"
    pause = struct.pack("qq", 0, 2_000_000)
    for number in range(1_000_000):
        for path in (state / "journal" / "data.mdb", *(state / "rings").glob("*.ring")):
            try:
                fd = os.open(path, os.O_RDWR)
            except OSError:
                continue
            size = max(os.fstat(fd).st_size, 4096)
            for _ in range(20):
                start, length = rng.randrange(0, size, 4096), 4096 * rng.choice((1, 1, 1, 4, 16))
                libc.sync_file_range(fd, ctypes.c_long(start), ctypes.c_long(length), 7)
            os.close(fd)
        if number % 15 == 14:
            os.pwrite(marker, b"x", number)
            os.fsync(marker)
        libc.nanosleep(pause, None)


def _cut(folder: Path, arm: str, seed: int) -> Cut:
    rng = random.Random(seed)
    image, mount, shared = folder / "image", folder / "mount", folder / "shared"
    with image.open("wb") as file:
        file.truncate(96 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    mount.mkdir(exist_ok=True)
    shared.write_bytes(bytes(4096))
    with _mounted(image, mount):
        worker = subprocess.Popen(
            [sys.executable, "-c", _WORKLOAD, str(mount / "state"), str(shared), arm], cwd=os.getcwd()
        )
        adversary = 0
        with shared.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as words:
            try:
                wait_until(lambda: int.from_bytes(words[0:8], "little") > 200, 30, "the workload")
                adversary = os.fork()
                if adversary == 0:
                    try:
                        _adversary(mount, rng)
                    finally:
                        os._exit(1)
                enough = int.from_bytes(words[0:8], "little") + rng.randrange(500, 6000)
                wait_until(lambda: int.from_bytes(words[0:8], "little") > enough, 30, "the workload")
                os.kill(worker.pid, signal.SIGSTOP)
                durable, appended = struct.unpack_from("<QQ", words)
                fd = os.open(mount, os.O_RDONLY)
                fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
                os.close(fd)
            finally:
                worker.kill()
                worker.wait()
                if adversary:
                    os.kill(adversary, signal.SIGKILL)
                    os.waitpid(adversary, 0)
    with _mounted(image, mount):
        done = subprocess.run(
            [sys.executable, "-c", _CHECK, str(mount / "state")], capture_output=True, text=True, check=False
        )
    verdict = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else f"ended by {done.returncode}"
    return Cut(verdict, durable, appended)


@pytest.mark.timeout(240)
def test_power_cut_loses_nothing_that_was_reported_durable(tmp_path: Path) -> None:
    for seed in range(CUTS):
        cut = _cut(tmp_path, "sync", seed)
        assert cut.sound, f"cut {seed}: {cut}"
        assert cut.last_lsn <= cut.appended + 10


@pytest.mark.timeout(240)
def test_control_arm_without_sync_is_seen_to_fail(tmp_path: Path) -> None:
    cuts: list[Cut] = []
    for seed in range(CUTS):
        cuts.append(_cut(tmp_path, "nosync", seed))
        if not cuts[-1].sound:
            return
    raise AssertionError(f"no damage and no loss in {CUTS} power cuts: the harness is blind: {cuts}")
