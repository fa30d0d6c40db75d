"""A deterministic simulator of a worker, its ring, the log and a disk that loses, tears and reorders writes.

Everything that decides is the real code: the engine's ring, frames, and the rule which records of a
ring are taken over (orun.store.recovery). Simulated are time, the disk and the order of events, all
of them from one seed, so that a seed that fails can be run again.

The disk: a ring is a mapped file that is never synced, so after a power cut each of its sectors is
any version that it ever had, independently of the others. The log's commits are durable in order
(LMDB, sync=True); one that is under way at the cut may be there or not. After `kill -9` the page
cache survives: the ring is as it was.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from orun.engine.journal import BlankJournal, Drained, JournalFull, JournalReader, JournalWriter
from orun.errors import Damaged
from orun.store.frames import FrameCodec
from orun.store.records import Kind
from orun.store.recovery import continuation

SECTOR = 512
CAPACITY = 4096
_COMMIT_S = 0.02


class Violation(AssertionError):
    """The store broke a promise; the message has the seed."""


@dataclass(slots=True)
class Outcome:
    """What happened under one seed."""

    lives: int = 0
    appended: int = 0
    committed: int = 0
    recovered: int = 0
    lost: int = 0
    """Records that a power cut took, none of them reported durable."""
    refused: int = 0
    """Rings of which something was refused."""


@dataclass(slots=True)
class _Disk:
    """The versions of a ring file's sectors."""

    path: Path
    versions: list[bytes] = field(default_factory=list)

    def remember(self) -> None:
        """Any sector may be written back as it is at this moment."""
        content = self.path.read_bytes()
        if not self.versions or self.versions[-1] != content:
            self.versions.append(content)

    def after_power_cut(self, rng: random.Random) -> bytes:
        """One legal content: each sector in a version of its own."""
        newest = len(self.versions) - 1
        # How far the write-back lags, per cut: from nothing lost to everything mixed.
        lag = rng.choice((0, 1, 3, newest))
        size = len(self.versions[-1])
        image = bytearray()
        for start in range(0, size, SECTOR):
            chosen = max(0, newest - rng.randint(0, lag))
            image += self.versions[chosen][start : start + SECTOR]
        if rng.random() < 0.05:
            at = rng.randrange(size)
            image[at] ^= 1 << rng.randrange(8)  # a sector that rotted
        return bytes(image)


class Simulation:
    """One seed."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.folder = folder
        self.outcome = Outcome()
        self.now = 0.0
        self.codec = FrameCodec()
        self.history: dict[int, bytes] = {}
        """Payload of each record of the line of history that the log continues."""
        self.log: list[bytes] = []
        self.last_lsn = 0
        self.last_crc = 0
        self.position = 0
        self.durable_told = 0

    def run(self) -> Outcome:
        """A few lives, each ended by a kill or a power cut; then the whole log is checked."""
        for epoch in range(1, self.rng.randint(2, 4)):
            self._live(epoch)
        self._check_log()
        return self.outcome

    def _live(self, epoch: int) -> None:
        path = self.folder / f"{self.seed}.{epoch}.ring"
        reader = JournalReader.create(
            path, capacity=CAPACITY, epoch=epoch, first_lsn=self.last_lsn + 1, prev_crc=self.last_crc
        )
        writer = JournalWriter.open(str(path))
        disk = _Disk(path)
        disk.remember()
        self.outcome.lives += 1
        due = 0.0
        for _ in range(self.rng.randint(0, 40)):
            self.now += self.rng.expovariate(1 / 0.005)
            self._append(writer)
            if self.rng.random() < 0.7:
                disk.remember()
            if self.now >= due:
                due = self.now + _COMMIT_S
                self._commit(reader, release=True)
                disk.remember()
        self._end(reader, disk)
        appended = writer.next_lsn - 1
        writer.close()
        reader.close()
        self._recover(path, disk, epoch, appended)
        path.unlink()

    def _append(self, writer: JournalWriter) -> None:
        payload = self.rng.randbytes(self.rng.choice((0, 5, 60, 400, 900)))
        try:
            lsn = writer.append(Kind.REQUEST, payload, ref=self.rng.randrange(9))
        except JournalFull:
            return
        self.history[lsn] = payload
        self.outcome.appended += 1

    def _commit(self, reader: JournalReader, *, release: bool) -> None:
        drained = reader.drain()
        if drained is None:
            return
        self._store(drained)
        if release:
            reader.release()
            self.durable_told = self.last_lsn
            reader.publish(self.last_lsn, 0)

    def _store(self, drained: Drained) -> None:
        if drained.first_lsn != self.last_lsn + 1:
            raise Violation(f"seed {self.seed}: {drained.first_lsn} follows {self.last_lsn}")
        frame = self.codec.encode(drained, self.last_crc, self.position)
        self.log.append(frame)
        self.last_lsn, self.last_crc = drained.last_lsn, drained.last_crc
        self.position += len(frame)
        self.outcome.committed += drained.count

    def _end(self, reader: JournalReader, disk: _Disk) -> None:
        # Anywhere in a commit: before it, after the drain, after the transaction, after the release.
        moment = self.rng.randrange(4)
        if moment == 1:
            reader.drain()
        elif moment == 2:
            self._commit(reader, release=False)
        elif moment == 3:
            self._commit(reader, release=True)
        disk.remember()

    def _recover(self, path: Path, disk: _Disk, epoch: int, appended: int) -> None:
        power = self.rng.random() < 0.7
        if power:
            image = disk.after_power_cut(self.rng)
            path.write_bytes(bytes(len(image)) if self.rng.random() < 0.03 else image)
        before = self.last_lsn
        try:
            reader = JournalReader.open(path)
        except BlankJournal:
            found = None
        except Damaged:
            self.outcome.refused += 1
            found = None
        else:
            if reader.epoch != epoch:
                raise Violation(f"seed {self.seed}: epoch {reader.epoch} instead of {epoch}")
            reader.seal()
            found = continuation(reader, self.last_lsn, self.last_crc)
            reader.close()
        if found is not None:
            self.outcome.refused += bool(found.problem)
            for batch in found.batches:
                self._store(batch)
            self.outcome.recovered += found.count
        if self.last_lsn < max(before, self.durable_told):
            raise Violation(f"seed {self.seed}: {self.durable_told} was durable, {self.last_lsn} is left")
        if not power and self.last_lsn != max(appended, before):
            raise Violation(f"seed {self.seed}: {appended} survived the kill, {self.last_lsn} was taken over")
        if self.last_lsn > max(appended, before):
            raise Violation(f"seed {self.seed}: {self.last_lsn} taken over, {appended} appended")
        for lsn in [lsn for lsn in self.history if lsn > self.last_lsn]:
            del self.history[lsn]
            self.outcome.lost += 1

    def _check_log(self) -> None:
        lsn = 0
        prev_crc = position = 0
        for value in self.log:
            header = self.codec.header(value)
            if (header.first_lsn, header.prev_crc, header.position) != (lsn + 1, prev_crc, position):
                raise Violation(f"seed {self.seed}: the frame of LSN {header.first_lsn} does not fit")
            for record in self.codec.records(header, value):
                lsn += 1
                if record.lsn != lsn or bytes(record.payload) != self.history[lsn]:
                    raise Violation(f"seed {self.seed}: LSN {lsn} is not what was appended")
            prev_crc, position = header.last_crc, header.end
        if lsn != self.last_lsn:
            raise Violation(f"seed {self.seed}: the log ends at {lsn}, not at {self.last_lsn}")


def run_seed(seed: int, folder: Path) -> Outcome:
    """One simulation; raises Violation."""
    return Simulation(seed, folder).run()
