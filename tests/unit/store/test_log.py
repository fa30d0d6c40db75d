from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orun.errors import Damaged
from orun.store import log
from orun.store.environment import Environment, Txn
from orun.store.frames import FrameCodec
from orun.store.log import LogEnd
from tests.unit.store.test_frames import drained_of

CODEC = FrameCodec()


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    environment = Environment.for_writer(tmp_path, 1 << 20)
    yield environment
    environment.close()


def _fill(environment: Environment, frames: int, *, segment_bytes: int = 500) -> LogEnd:
    """Frames of three records each."""
    end = LogEnd()

    def write(txn: Txn) -> None:
        nonlocal end
        for _ in range(frames):
            drained = drained_of([b"%d" % (end.last_lsn + 1 + i) for i in range(3)], end.last_lsn + 1, end.last_crc)
            end = log.append(txn, "a", end, drained, CODEC, segment_bytes=segment_bytes)

    environment.write(write)
    return end


def test_reading_on_from_an_end_inside_a_frame_gives_nothing(environment: Environment) -> None:
    """A worker that recalled replies up to such an end died of it, and so did every successor."""
    _fill(environment, 2)
    with environment.read() as txn:
        assert log.read(txn, "a", CODEC, 5, upto_lsn=5, bytes_max=1 << 20, whole=True) == []


def test_log_is_read_from_any_lsn_to_any_other(environment: Environment) -> None:
    end = _fill(environment, 10)
    assert end.last_lsn == 30
    with environment.read() as txn:
        assert len(log.segments(txn, "a")) > 3
        assert log.find_end(txn, "a", CODEC) == end
        for after in range(31):
            for upto in (after, after + 1, 17, 30, 99):
                found = log.read(txn, "a", CODEC, after, upto_lsn=upto, bytes_max=1 << 20)
                numbers = [int(bytes(record.payload)) for batch in found for record in batch]
                assert numbers == list(range(after + 1, min(upto, 30) + 1))
        for lsn in range(1, 31):
            record = log.record_at(txn, "a", CODEC, lsn)
            assert record is not None
            assert bytes(record.payload) == b"%d" % lsn
            backward = [frame.first_lsn for frame, _ in log.frames_backward(txn, "a", CODEC, lsn)]
            assert backward == list(range((lsn - 1) // 3 * 3 + 1, 0, -3))
        assert log.record_at(txn, "a", CODEC, 31) is None
        assert log.record_at(txn, "b", CODEC, 1) is None
        assert log.find_end(txn, "b", CODEC) == LogEnd()


def test_reading_stops_at_a_bound_of_bytes_and_goes_on_behind_it(environment: Environment) -> None:
    _fill(environment, 10)
    after = 0
    rounds = 0
    with environment.read() as txn:
        while batch := log.read(txn, "a", CODEC, after, upto_lsn=99, bytes_max=300):
            assert len(batch) <= 2
            after = batch[-1][-1].lsn
            rounds += 1
    assert (after, rounds) == (30, 5)


def test_whole_segments_before_what_is_needed_are_dropped(environment: Environment) -> None:
    _fill(environment, 20)
    with environment.read() as txn:
        segments = log.segments(txn, "a")
        assert log.droppable(txn, "a", CODEC, 1, 0) == []
        assert [first for first, _ in log.droppable(txn, "a", CODEC, 10**9, 0)] == segments[:-1]
        middle = segments[4]
        assert [first for first, _ in log.droppable(txn, "a", CODEC, middle, 0)] == segments[:4]
        assert [first for first, _ in log.droppable(txn, "a", CODEC, middle - 1, 0)] == segments[:3]
        sizes = [size for _, size in log.droppable(txn, "a", CODEC, middle, 0)]
        kept = sizes[-1]
        assert [first for first, _ in log.droppable(txn, "a", CODEC, middle, kept)] == segments[:3]
        assert log.droppable(txn, "a", CODEC, middle, sum(sizes)) == []
    environment.write(lambda txn: log.drop(txn, "a", segments[0]))
    with environment.read() as txn:
        assert log.first_lsn(txn, "a") == segments[1]
        assert log.read(txn, "a", CODEC, 0, upto_lsn=99, bytes_max=1 << 20)[0][0].lsn == segments[1]


def test_missing_segment_in_the_middle_is_damage(environment: Environment) -> None:
    _fill(environment, 20)
    with environment.read() as txn:
        second = log.segments(txn, "a")[1]
    environment.write(lambda txn: log.drop(txn, "a", second))
    with environment.read() as txn, pytest.raises(Damaged, match=f"LSN {second} is missing"):
        log.read(txn, "a", CODEC, 0, upto_lsn=99, bytes_max=1 << 20)


def test_frame_out_of_order_is_refused(environment: Environment) -> None:
    """LMDB drops an entry that is out of order and says so by False only."""
    end = _fill(environment, 1)
    behind = LogEnd(0, 0, 0, end.segment, end.segment_position)
    with pytest.raises(Damaged, match="not behind"):
        environment.write(lambda txn: log.append(txn, "a", behind, drained_of([b"x"]), CODEC, segment_bytes=1 << 20))
