"""The journal: the ring that a worker appends to and the recorder drains, and records as such.

A worker holds a ``JournalWriter``, the recorder a ``JournalReader`` for each ring; zig/ring.zig has the
protocol between them. What concerns single records is in ``orun.engine.record`` and offered here too.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from dataclasses import dataclass
from typing import Any, Protocol, final

from orun.engine.load import Engine, engine
from orun.engine.record import RECORD_HEADER_BYTES, WHY, CorruptRecord, RecordView, crc32c, frame, scan
from orun.errors import Damaged, OrunError, StorageFailed

__all__ = [
    "RECORD_HEADER_BYTES",
    "WAKE_ASLEEP",
    "WAKE_DRAINING",
    "WAKE_PACING",
    "BlankJournal",
    "CorruptRecord",
    "Drained",
    "JournalFenced",
    "JournalFull",
    "JournalReader",
    "JournalWriter",
    "RecordTooLarge",
    "RecordView",
    "crc32c",
    "frame",
    "scan",
]

_RING_HEADER_BYTES = 4096

WAKE_DRAINING = 0
WAKE_ASLEEP = 1
WAKE_PACING = 2

_INVALID, _FULL, _FENCED, _TOO_LARGE = -1, -2, -3, -4


class JournalFull(OrunError):
    """The ring has no room until the recorder has released some."""


class JournalFenced(OrunError):
    """The ring was sealed, or another worker owns it: this worker has been replaced."""


class RecordTooLarge(OrunError):
    """A payload of more than half the ring."""


class BlankJournal(Damaged):
    """A ring file without any content: the machine stopped before the first of it reached the disk."""


@dataclass(frozen=True, slots=True)
class Drained:
    """Verified records out of a ring, as they are kept in the log."""

    data: bytes
    first_lsn: int
    last_lsn: int
    count: int
    flags: int
    kinds: int
    first_ms: int
    last_ms: int
    last_crc: int


class Append(Protocol):
    """Logs one record and returns its LSN. Raises JournalFull, JournalFenced or RecordTooLarge."""

    def __call__(self, kind: int, payload: bytes, *, ref: int = 0, flags: int = 0) -> int:
        """Log it."""
        ...


@final
class JournalWriter:
    """A worker's end of its ring. Open it once: a ring has one writer in its life."""

    __slots__ = ("_append", "_claim", "_header", "_mapping", "_path", "_producer", "append", "epoch")

    def __init__(self, path: str, mapping: _Mapping, loaded: Engine) -> None:
        self._path = path
        self._mapping = mapping
        self._header = mapping.header
        producer = loaded.ffi.new("Producer *")
        status = loaded.lib.orun_producer_open(mapping.header, mapping.size, producer)
        if status == _FENCED:
            raise JournalFenced(f"{path} belongs to another worker")
        if status:
            raise _refused(path, status)
        self._producer: Any = producer
        self._claim = loaded.lib.orun_claim_wake
        self.epoch: int = producer.epoch
        self.append: Append = _make_append(loaded.lib.orun_append, producer, path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> JournalWriter:
        """Take possession of a ring that a recorder has made."""
        text = os.fspath(path)
        mapping = _Mapping(text)
        try:
            return cls(text, mapping, engine())
        except OrunError:
            mapping.close()
            raise

    @property
    def next_lsn(self) -> int:
        """The LSN that the next record gets."""
        return self._producer.next_lsn  # type: ignore[no-any-return]

    @property
    def durable_lsn(self) -> int:
        """Up to here the disk has it."""
        return self._header.durable_lsn  # type: ignore[no-any-return]

    @property
    def checkpoint_lsn(self) -> int:
        """The last checkpoint."""
        return self._header.checkpoint_lsn  # type: ignore[no-any-return]

    def wake_needed(self, waiting: bool) -> bool:
        """Must the caller wake the recorder? Said once per sleep, so who is told so has to do it.

        ``waiting``: somebody waits until the last record is durable.
        """
        if not waiting and self._header.wake_mode != WAKE_ASLEEP:
            return False
        return self._claim(self._producer, waiting)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Unmap the ring; what was appended stays in its file."""
        self._producer.ring = self._mapping.null  # somebody may have kept ``append``
        self._header = None
        self._mapping.close()


def _make_append(native: Any, producer: Any, path: str) -> Append:
    """The hot path: a closure looks up nothing."""

    def append(kind: int, payload: bytes, *, ref: int = 0, flags: int = 0) -> int:
        lsn = native(producer, kind | flags << 8 if flags else kind, ref, payload, len(payload))
        if lsn > 0:
            return lsn  # type: ignore[no-any-return]
        raise _not_appended(lsn, path, len(payload))

    return append


def _not_appended(status: int, path: str, size: int) -> OrunError:
    if status == _FULL:
        return JournalFull(f"the journal {path} is full", hint="the disk does not keep up; try again soon")
    if status == _FENCED:
        return JournalFenced(f"the journal {path} is sealed: this worker has been replaced")
    if status == _TOO_LARGE:
        return RecordTooLarge(
            f"a record of {size} bytes does not fit into half of the journal {path}",
            hint="raise store.ring_bytes in orun.toml",
        )
    if status == _INVALID:
        raise ValueError("the journal is closed, or the kind of the record is not below 32")
    return _refused(path, status)


@final
class JournalReader:
    """The recorder's end of a ring: drain, commit, then release."""

    __slots__ = ("_consumer", "_data", "_engine", "_mapping", "_path", "_summary", "capacity", "epoch")

    def __init__(self, path: str, mapping: _Mapping, loaded: Engine) -> None:
        self._path = path
        self._mapping = mapping
        self._engine = loaded
        self._consumer: Any = loaded.ffi.new("Consumer *")
        status = loaded.lib.orun_consumer_open(mapping.header, mapping.size, self._consumer)
        if status:
            if mapping.is_blank():
                raise BlankJournal(f"{path} is empty: its content never reached the disk")
            raise _refused(path, status)
        self._summary = loaded.ffi.new("Summary *")
        self._data = mapping.view[_RING_HEADER_BYTES:]
        self.capacity: int = self._consumer.capacity
        self.epoch: int = self._consumer.epoch

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], *, capacity: int, epoch: int, first_lsn: int, prev_crc: int
    ) -> JournalReader:
        """Make a ring; its room is reserved on the disk, so an append cannot fail for lack of it.

        The file gets its name when it is complete: a ring that can be found can be opened.
        """
        text = os.fspath(path)
        unfinished = f"{text}.new"
        if os.path.lexists(text):
            raise StorageFailed(f"cannot make the journal {text}: there is one already")
        try:
            _reserve(unfinished, _RING_HEADER_BYTES + capacity)
            mapping = _Mapping(unfinished)
            try:
                lib = engine().lib
                if lib.orun_ring_create(mapping.header, mapping.size, epoch, first_lsn, prev_crc):
                    raise ValueError(f"a ring of {capacity} bytes from LSN {first_lsn} cannot be made")
                os.rename(unfinished, text)
                return cls(text, mapping, engine())
            except BaseException:
                mapping.close()
                raise
        except OSError as failure:
            hint = "free some space, then start orun again: nothing is lost" if failure.errno == errno.ENOSPC else None
            raise StorageFailed(f"cannot make the journal {text}: {failure.strerror}", hint=hint) from failure
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(unfinished)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> JournalReader:
        """Take over a ring after a crash. What was drained and not released comes again."""
        text = os.fspath(path)
        mapping = _Mapping(text)
        try:
            return cls(text, mapping, engine())
        except OrunError:
            mapping.close()
            raise

    @property
    def next_lsn(self) -> int:
        """The LSN that the next drained record has."""
        return self._consumer.next_lsn  # type: ignore[no-any-return]

    @property
    def last_crc(self) -> int:
        """The checksum of the last drained record: what the next ring continues."""
        return self._consumer.last_crc  # type: ignore[no-any-return]

    def drain(self) -> Drained | None:
        """Copy out what was appended since the last call, at most half of the ring.

        Stops before a bad record; when the first is bad, raises CorruptRecord.
        """
        lib, consumer, summary = self._engine.lib, self._consumer, self._summary
        pending = lib.orun_pending(consumer)
        if pending <= 0:
            if pending == 0:
                return None
            raise _refused(self._path, pending)
        size = min(pending, self.capacity // 2)
        start = consumer.read & (self.capacity - 1)
        end = start + size
        if end <= self.capacity:
            data = bytes(self._data[start:end])
        else:
            data = b"".join((self._data[start:], self._data[: end - self.capacity]))
        # Verified in the copy: what is committed is what was checked, whatever a zombie does meanwhile.
        expected = consumer.next_lsn
        status = lib.orun_accept(consumer, data, size, size == pending, summary)
        if summary.count == 0:
            raise CorruptRecord(self._path, _RING_HEADER_BYTES + start, expected, WHY[status])
        return Drained(
            data if summary.size == size else data[: summary.size],
            summary.first_lsn,
            summary.last_lsn,
            summary.count,
            summary.flags,
            summary.kinds,
            summary.first_ms,
            summary.last_ms,
            summary.last_crc,
        )

    def release(self) -> None:
        """What was drained is committed: its room may be used again."""
        self._engine.lib.orun_release(self._consumer)

    def publish(self, durable_lsn: int, checkpoint_lsn: int) -> None:
        """Tell the worker how far the disk is."""
        header = self._mapping.header
        header.durable_lsn = durable_lsn
        header.checkpoint_lsn = checkpoint_lsn

    def set_wake_mode(self, mode: int) -> bool:
        """Say when to be woken: WAKE_DRAINING never, WAKE_ASLEEP by any append, WAKE_PACING by a waiter.

        True: drain again before sleeping. While pacing, that is only said when somebody waits for a
        record that is not drained; otherwise whenever anything is pending.
        """
        return self._engine.lib.orun_set_wake_mode(self._consumer, mode)  # type: ignore[no-any-return]

    def seal(self) -> None:
        """Refuse further appends. A drain after this sees every append that was acknowledged."""
        self._engine.lib.orun_seal(self._consumer)

    def close(self) -> None:
        """Unmap the ring."""
        self._consumer = None
        self._data.release()
        self._mapping.close()


class _Mapping:
    """A ring file in memory."""

    __slots__ = ("_file", "header", "null", "size", "view")

    def __init__(self, path: str) -> None:
        loaded = engine()
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                self.size = os.fstat(descriptor).st_size
                if self.size < _RING_HEADER_BYTES:
                    if self.size == 0:
                        raise BlankJournal(f"{path} is empty: its content never reached the disk")
                    raise _refused(path, -12)
                self._file = mmap.mmap(descriptor, self.size)
            finally:
                os.close(descriptor)
        except OSError as failure:
            raise StorageFailed(f"cannot open the journal {path}: {failure.strerror}") from failure
        # Otherwise the first touch reads the whole file ahead: 2 ms of the way back after a crash.
        self._file.madvise(mmap.MADV_RANDOM)
        self.null = loaded.ffi.NULL
        self.view = memoryview(self._file)
        self.header: Any = loaded.ffi.from_buffer("Ring *", self._file, require_writable=True)

    def is_blank(self) -> bool:
        return not any(self.view[:_RING_HEADER_BYTES])

    def close(self) -> None:
        """Idempotent, because a failed opening and its caller may both do it."""
        if self.header is None:
            return
        engine().ffi.release(self.header)
        self.header = None
        self.view.release()
        self._file.close()


def _reserve(path: str, size: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


def _refused(path: str, status: int) -> Damaged:
    newer = status == -13
    hint = "use the orun that made it" if newer else "run `orun wal verify`, or restore a backup"
    return Damaged(f"{path} cannot be used as a journal: {WHY.get(status, f'status {status}')}", hint=hint)
