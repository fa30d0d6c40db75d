from __future__ import annotations

from pathlib import Path

import pytest

from orun.engine.journal import CorruptRecord, JournalReader, JournalWriter
from orun.errors import Damaged
from orun.store.records import Kind
from orun.store.recovery import behind, continuation
from orun.store.verify import verify
from tests.unit.store.harness import Desk
from tests.unit.store.test_frames import drained_of


def test_journal_left_behind_is_taken_over(desk: Desk) -> None:
    worker = desk.activate()
    worker.change({b"a": b"1"}, key=b"key")
    desk.committer.commit()
    worker.change({b"a": b"2"})
    last = worker.change({b"b": b"3"}, key=b"key 2")
    state = worker.state
    desk.crash()
    (found,) = desk.committer.recover()
    assert (found["records"], found["last_lsn"], found["problem"]) == (4, last, "")
    assert desk.current() == state
    assert list(desk.state.rings.iterdir()) == []
    assert len(desk.rows("idem/counter")) == 4
    assert desk.committer.recover() == []
    assert verify(desk.committer.environment).problems == []


def test_commit_that_was_not_released_is_not_applied_twice(desk: Desk) -> None:
    """The process died between the commit and the release of the ring's room."""
    worker = desk.activate()
    worker.change({b"a": b"1"})
    lane = desk.committer.lane("counter")
    ring = desk.state.ring("counter", 1).read_bytes()
    desk.committer.commit()
    worker.change({b"a": b"2"})
    with desk.state.ring("counter", 1).open("r+b") as file:
        after = bytearray(file.read())
        after[128:192] = ring[128:192]  # the consumer's cursors as they were
        file.seek(0)
        file.write(after)
    desk.crash()
    (found,) = desk.committer.recover()
    assert found["records"] == 2
    assert desk.committer.lane("counter").end.last_lsn == 4
    assert lane.end.last_lsn == 2
    assert verify(desk.committer.environment).problems == []


def test_journal_of_another_epoch_is_not_listened_to(desk: Desk) -> None:
    worker = desk.activate()
    worker.change({b"a": b"1"})
    ring = desk.state.ring("counter", 1).read_bytes()
    desk.activate().change({b"a": b"2"})
    desk.state.ring("counter", 1).write_bytes(ring)
    desk.state.ring("nobody", 1).write_bytes(ring)
    (desk.state.rings / "counter.9.ring.new").write_bytes(b"unfinished")
    desk.crash()
    (found,) = desk.committer.recover()
    assert found["epoch"] == 2
    assert desk.current() == {b"a": b"2"}
    assert list(desk.state.rings.iterdir()) == []


@pytest.mark.parametrize("content", [b"", bytes(64 << 10)])
def test_blank_ring_is_ignored(desk: Desk, content: bytes) -> None:
    """After a power cut the ring's name may be there without its content."""
    desk.activate()
    desk.crash()
    desk.state.ring("counter", 1).write_bytes(content)
    (found,) = desk.committer.recover()
    assert (found["records"], found["problem"]) == (0, "")
    assert list(desk.state.rings.iterdir()) == []


def test_ring_with_a_damaged_header_is_kept_and_told(desk: Desk) -> None:
    desk.activate().change({b"a": b"1"})
    desk.crash()
    with desk.state.ring("counter", 1).open("r+b") as ring:
        ring.write(b"\xff")
    (found,) = desk.committer.recover()
    assert "header" in found["problem"]
    assert [path.name for path in desk.state.dumps.iterdir()] == ["counter.1.ring.damaged"]
    assert desk.events[-1][0] == "journal_damaged"


def test_what_is_before_damage_is_taken_and_the_rest_told(desk: Desk) -> None:
    worker = desk.activate()
    for number in range(10):
        worker.change({b"a": b"%d" % number})
    desk.crash()
    with desk.state.ring("counter", 1).open("r+b") as ring:
        ring.seek(4096 + 700)
        byte = ring.read(1)
        ring.seek(4096 + 700)
        ring.write(bytes([byte[0] ^ 8]))
    (found,) = desk.committer.recover()
    assert 0 < found["records"] < 20
    assert "damaged" in found["problem"]
    assert desk.current() == desk.history[found["records"]]
    assert [path.name for path in desk.state.dumps.iterdir()] == ["counter.1.ring.damaged"]


def test_torn_end_after_a_power_cut_is_no_damage(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk never had is missing at the end; nothing needs to be kept for inspection."""
    worker = desk.activate()
    for number in range(10):
        worker.change({b"a": b"%d" % number})
    desk.crash()
    with desk.state.ring("counter", 1).open("r+b") as ring:
        ring.seek(4096 + 512)
        ring.write(bytes(512))
    monkeypatch.setattr("orun.store.committer.boot_id", lambda: "after the cut")
    (found,) = desk.committer.recover()
    assert 0 < found["records"] < 20
    assert desk.current() == desk.history[found["records"]]
    assert [kind for kind, _ in desk.events] == ["recovered", "journal_cut"]
    assert list(desk.state.dumps.iterdir()) == []
    assert list(desk.state.rings.iterdir()) == []


def test_part_behind_the_log_is_cut_out() -> None:
    drained = drained_of([b"%d" % number for number in range(10)], first_lsn=5, prev_crc=3)
    assert behind(drained, 4, 3) == drained
    assert behind(drained, 14, drained.last_crc) is None
    assert behind(drained, 20, 0) is None
    first = drained_of([b"0", b"1", b"2"], first_lsn=5, prev_crc=3)
    rest = behind(drained, 7, first.last_crc)
    assert rest is not None
    assert (rest.first_lsn, rest.last_lsn, rest.count, rest.last_crc) == (8, 14, 7, drained.last_crc)
    assert rest.kinds == 1 << Kind.REQUEST
    assert drained.data.endswith(rest.data)


def test_gap_and_foreign_history_are_refused() -> None:
    drained = drained_of([b"x", b"y"], first_lsn=5, prev_crc=3)
    with pytest.raises(Damaged, match="LSN 4 is missing"):
        behind(drained, 3, 0)
    with pytest.raises(CorruptRecord):
        behind(drained, 4, 99)
    with pytest.raises(Damaged, match="not the one in the log"):
        behind(drained, 5, 99)


def test_every_flipped_byte_of_a_ring_is_found(tmp_path: Path) -> None:
    """Sound records before the damage are taken, nothing at or behind it, and it is said."""
    path = tmp_path / "ring"
    reader = JournalReader.create(path, capacity=4096, epoch=3, first_lsn=1, prev_crc=0)
    writer = JournalWriter.open(path)
    ends = []
    for number in range(8):
        writer.append(Kind.REQUEST, b"payload" * number, ref=number)
        reader.drain()
        ends.append(sum(48 + (7 * n + 7 & ~7) for n in range(number + 1)))
    writer.close()
    reader.close()
    good = path.read_bytes()
    for offset in range(ends[-1]):
        damaged = bytearray(good)
        damaged[4096 + offset] ^= 0x20
        path.write_bytes(damaged)
        left = JournalReader.open(path)
        found = continuation(left, 0, 0)
        left.close()
        assert found.count == sum(end <= offset for end in ends)
        assert "damaged" in found.problem
