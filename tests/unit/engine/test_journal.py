"""The journal's Python faces."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orun.engine import journal
from orun.engine.journal import (
    WAKE_ASLEEP,
    WAKE_DRAINING,
    WAKE_PACING,
    BlankJournal,
    CorruptRecord,
    JournalFenced,
    JournalFull,
    JournalReader,
    JournalWriter,
    RecordTooLarge,
    crc32c,
    frame,
    scan,
)
from orun.errors import Damaged, StorageFailed

CAPACITY = 1 << 14
HEADER = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.7.ring"


@pytest.fixture
def reader(path: Path) -> Iterator[JournalReader]:
    made = JournalReader.create(path, capacity=CAPACITY, epoch=7, first_lsn=100, prev_crc=55)
    yield made
    made.close()


@pytest.fixture
def writer(path: Path, reader: JournalReader) -> Iterator[JournalWriter]:
    opened = JournalWriter.open(path)
    yield opened
    opened.close()


def records(count: int, *, prev_crc: int = 0, first_lsn: int = 1) -> bytes:
    parts = []
    for i in range(count):
        part = frame(
            1 + i % 6,
            first_lsn + i,
            b"payload %d" % i,
            ref=i,
            flags=i % 4,
            epoch=3,
            time_ms=1_700_000_000_000 + i,
            prev_crc=prev_crc,
        )
        (prev_crc,) = struct.unpack_from("<I", part, 4)
        parts.append(part)
    return b"".join(parts)


def test_what_is_appended_is_drained(reader: JournalReader, writer: JournalWriter) -> None:
    before = int(time.time() * 1000)
    assert (writer.epoch, reader.epoch, reader.capacity) == (7, 7, CAPACITY)
    assert writer.append(1, b"first") == 100
    assert writer.append(2, b"", ref=100, flags=5) == 101
    assert writer.append(6, b"x" * 1000, ref=2**63) == 102
    assert writer.next_lsn == 103
    drained = reader.drain()
    assert drained is not None
    assert (drained.first_lsn, drained.last_lsn, drained.count) == (100, 102, 3)
    assert (drained.flags, drained.kinds) == (5, 1 << 1 | 1 << 2 | 1 << 6)
    first, second, third = scan(drained.data, 55)
    assert (first.lsn, first.kind, first.flags, first.ref, first.epoch) == (100, 1, 0, 0, 7)
    assert bytes(first.payload) == b"first"
    assert (second.ref, second.flags, bytes(second.payload)) == (100, 5, b"")
    assert (third.ref, bytes(third.payload)) == (2**63, b"x" * 1000)
    assert third.crc == drained.last_crc == reader.last_crc
    assert before <= drained.first_ms <= drained.last_ms <= time.time() * 1000
    assert reader.drain() is None
    assert reader.next_lsn == 103


def test_the_layout_of_a_record() -> None:
    made = frame(2, 77, b"abc", ref=5, flags=4, epoch=9, time_ms=1234, prev_crc=0xAABBCCDD)
    size, crc, lsn, time_ms, ref, epoch, payload_size, prev, kind, flags, reserved = struct.unpack_from(
        "<IIQQQIIIBBH", made
    )
    assert (size, lsn, time_ms, ref, epoch, payload_size) == (56, 77, 1234, 5, 9, 3)
    assert (prev, kind, flags, reserved) == (0xAABBCCDD, 2, 4, 0)
    assert made[48:] == b"abc" + bytes(5)
    assert crc == crc32c(made[8:], crc32c(made[:4]))


def test_crc32c_of_every_kind_of_buffer() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytearray(b"56789"), crc32c(memoryview(b"1234"))) == 0xE3069283
    assert crc32c(b"") == 0


def test_a_full_journal_refuses_until_it_is_released(reader: JournalReader, writer: JournalWriter) -> None:
    count = CAPACITY // 552
    for _ in range(count):
        writer.append(1, b"x" * 500)
    with pytest.raises(JournalFull):
        writer.append(1, b"x" * 500)
    drained = reader.drain()
    assert drained is not None
    with pytest.raises(JournalFull):
        writer.append(1, b"x" * 500)
    reader.release()
    assert writer.append(1, b"x" * 500) == 100 + count
    assert drained.count == CAPACITY // 2 // 552, "one call drains half of the ring at most"


def test_records_of_up_to_half_the_ring(reader: JournalReader, writer: JournalWriter) -> None:
    largest = CAPACITY // 2 - 48
    for _ in range(5):
        writer.append(1, b"y" * largest)
        drained = reader.drain()
        assert drained is not None
        assert len(drained.data) == CAPACITY // 2
        reader.release()
    with pytest.raises(RecordTooLarge) as caught:
        writer.append(1, b"y" * (largest + 1))
    assert caught.value.hint == "raise store.ring_bytes in orun.toml"


def test_what_was_not_released_comes_again_after_a_crash(
    path: Path, reader: JournalReader, writer: JournalWriter
) -> None:
    writer.append(1, b"committed")
    reader.drain()
    reader.release()
    writer.append(1, b"drained, not committed")
    assert reader.drain() is not None
    successor = JournalReader.open(path)
    drained = successor.drain()
    assert drained is not None
    assert bytes(scan(drained.data, None)[0].payload) == b"drained, not committed"
    successor.close()


def test_a_sealed_zombie_cannot_append(path: Path, reader: JournalReader, writer: JournalWriter) -> None:
    writer.append(1, b"acknowledged")
    reader.seal()
    with pytest.raises(JournalFenced):
        writer.append(1, b"too late")
    drained = reader.drain()
    assert drained is not None
    assert drained.count == 1
    with pytest.raises(JournalFenced):
        JournalWriter.open(path)


def test_a_ring_has_one_writer(path: Path, writer: JournalWriter) -> None:
    with pytest.raises(JournalFenced, match="another worker"):
        JournalWriter.open(path)


def test_a_closed_writer_appends_nothing(path: Path, reader: JournalReader) -> None:
    writer = JournalWriter.open(path)
    append = writer.append
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        append(1, b"x")


def test_only_bytes_are_appended(writer: JournalWriter) -> None:
    with pytest.raises(TypeError):
        writer.append(1, memoryview(b"x"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="below 32"):
        writer.append(32, b"x")
    with pytest.raises(OverflowError):
        writer.append(1, b"x", flags=256)
    assert writer.next_lsn == 100


def test_any_flipped_byte_is_found_with_its_offset(path: Path, reader: JournalReader, writer: JournalWriter) -> None:
    ends = [0]
    for size in (0, 9, 100):
        writer.append(1, b"z" * size)
        ends.append(ends[-1] + 48 + (size + 7 & ~7))
    with open(path, "r+b") as file:
        for position in range(ends[-1]):
            record = next(i for i, end in enumerate(ends[1:]) if position < end)
            (byte,) = os.pread(file.fileno(), 1, HEADER + position)
            os.pwrite(file.fileno(), bytes([byte ^ 1]), HEADER + position)
            looking = JournalReader.open(path)
            if record > 0:
                drained = looking.drain()
                assert drained is not None
                assert drained.count == record
            with pytest.raises(CorruptRecord) as caught:
                looking.drain()
            assert caught.value.offset == HEADER + ends[record]
            assert caught.value.lsn == 100 + record
            looking.close()
            os.pwrite(file.fileno(), bytes([byte]), HEADER + position)
    drained = reader.drain()
    assert drained is not None
    assert drained.count == 3


def test_scan_says_where_and_why() -> None:
    data = bytearray(records(5, prev_crc=9))
    assert [view.lsn for view in scan(bytes(data), 9)] == [1, 2, 3, 4, 5]
    assert len(scan(memoryview(bytes(data)), None)) == 5
    assert scan(b"", 3) == []
    third = 2 * 64
    data[third + 50] ^= 1
    with pytest.raises(CorruptRecord, match=r"the segment: .*byte 128 \(LSN 3\) .*checksum") as caught:
        scan(bytes(data), 9, where="the segment")
    assert (caught.value.offset, caught.value.lsn) == (third, 3)
    with pytest.raises(CorruptRecord, match="ends inside"):
        scan(records(2)[:-1], None)
    with pytest.raises(CorruptRecord, match="does not continue"):
        scan(records(2, prev_crc=4), 5)
    with pytest.raises(CorruptRecord, match="does not follow"):
        scan(records(2) + records(1, first_lsn=9), None)


def test_files_that_are_no_journal(tmp_path: Path, path: Path, reader: JournalReader) -> None:
    other = tmp_path / "other.ring"
    other.write_bytes(b"")
    with pytest.raises(BlankJournal):
        JournalReader.open(other)
    other.write_bytes(bytes(CAPACITY))
    with pytest.raises(BlankJournal):
        JournalReader.open(other)
    other.write_bytes(b"text" * 5000)
    with pytest.raises(Damaged, match="header"):
        JournalReader.open(other)
    other.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Damaged, match="header"):
        JournalReader.open(other)
    newer = bytearray(path.read_bytes())
    newer[8] = 2
    other.write_bytes(newer)
    with pytest.raises(Damaged, match="newer orun"):
        JournalWriter.open(other)
    with pytest.raises(StorageFailed, match="No such file"):
        JournalReader.open(tmp_path / "missing")


def test_a_ring_is_not_made_twice_and_leaves_nothing_when_it_fails(tmp_path: Path, reader: JournalReader) -> None:
    with pytest.raises(StorageFailed, match="already"):
        JournalReader.create(tmp_path / "agent.7.ring", capacity=CAPACITY, epoch=8, first_lsn=1, prev_crc=0)
    with pytest.raises(StorageFailed, match="No such file"):
        JournalReader.create(tmp_path / "no" / "ring", capacity=CAPACITY, epoch=8, first_lsn=1, prev_crc=0)
    with pytest.raises(ValueError, match="cannot be made"):
        JournalReader.create(tmp_path / "odd", capacity=CAPACITY + 8, epoch=8, first_lsn=1, prev_crc=0)
    with pytest.raises(StorageFailed, match=r"No space left|File too large"):
        JournalReader.create(tmp_path / "huge", capacity=1 << 58, epoch=8, first_lsn=1, prev_crc=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["agent.7.ring"]


def test_what_the_recorder_publishes_reaches_the_worker(reader: JournalReader, writer: JournalWriter) -> None:
    assert (writer.durable_lsn, writer.checkpoint_lsn) == (0, 0)
    reader.publish(120, 90)
    assert (writer.durable_lsn, writer.checkpoint_lsn) == (120, 90)


def test_who_must_wake_the_recorder(reader: JournalReader, writer: JournalWriter) -> None:
    assert not reader.set_wake_mode(WAKE_ASLEEP)
    writer.append(1, b"")
    assert writer.wake_needed(False)
    assert not writer.wake_needed(False), "one wake-up for many appends"
    assert reader.set_wake_mode(WAKE_ASLEEP), "there is something to drain"
    reader.drain()
    assert not reader.set_wake_mode(WAKE_PACING)
    writer.append(1, b"")
    assert not writer.wake_needed(False)
    assert not reader.set_wake_mode(WAKE_PACING), "nobody waits for what is pending"
    assert writer.wake_needed(True)
    assert reader.set_wake_mode(WAKE_PACING), "somebody does"
    reader.drain()
    reader.set_wake_mode(WAKE_DRAINING)
    assert not writer.wake_needed(True)


PRODUCER = """
import os, sys
from orun.engine.journal import JournalFull, JournalWriter
writer = JournalWriter.open(sys.argv[1])
payload = os.urandom(200)
out = sys.stdout.buffer
while True:
    try:
        lsn = writer.append(1, payload[: writer.next_lsn % 200])
    except JournalFull:
        break
    os.write(1, lsn.to_bytes(8, "little"))
"""


def test_kill_9_of_the_producer_loses_no_acknowledged_record(tmp_path: Path) -> None:
    for round_number in range(30):
        path = tmp_path / f"{round_number}.ring"
        reader = JournalReader.create(path, capacity=1 << 20, epoch=1, first_lsn=1, prev_crc=0)
        producer = subprocess.Popen([sys.executable, "-c", PRODUCER, str(path)], stdout=subprocess.PIPE)
        assert producer.stdout is not None
        acknowledged = producer.stdout.read(8 * (1 + round_number * 7))
        producer.kill()
        acknowledged += producer.stdout.read()
        producer.stdout.close()
        producer.wait()
        acknowledged = acknowledged[: len(acknowledged) & ~7]
        last = int.from_bytes(acknowledged[-8:], "little")
        seen, crc = 0, 0
        successor = JournalReader.open(path)
        while (drained := successor.drain()) is not None:
            views = scan(drained.data, crc)
            assert [view.lsn for view in views] == list(range(seen + 1, seen + 1 + len(views)))
            seen, crc = views[-1].lsn, views[-1].crc
        assert seen in (last, last + 1), "all that was acknowledged, and one that was under way at most"
        successor.close()
        reader.close()
        path.unlink()


def test_ten_thousand_records_are_scanned_fast() -> None:
    data = records(10_000)
    best = min(_timed(data) for _ in range(5))
    assert best < 0.05, "a few ms on a quiet machine"


def _timed(data: bytes) -> float:
    before = time.perf_counter()
    journal.scan(data, None)
    return time.perf_counter() - before
