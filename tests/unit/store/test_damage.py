"""Damage inside the database: found, with its place, and read past where that is possible."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from orun.errors import Damaged, NotFound
from orun.store import checkpoints, idempotency, log
from orun.store.archive import ArchiveWriter, read_archive
from orun.store.backup import write_backup
from orun.store.blocks import version_key
from orun.store.exports import export_path, read_export, verify_export
from orun.store.planning import Planner
from orun.store.reader import AgentReader
from orun.store.records import Kind, encode_effect
from orun.store.targets import Target
from orun.store.verify import Summary, verify, verify_agent, verify_checkpoint
from tests.unit.store.harness import SMALL, Desk


def _filled(desk: Desk) -> Desk:
    worker = desk.activate()
    for number in range(12):
        worker.change({b"k%d" % (number % 5): b"%d" % number * 30}, key=b"key %d" % number)
        if number % 4 == 0:
            first = worker.request(b"bad")
            worker.append(Kind.DEAD, encode_effect(b"error", False), ref=first)
        desk.committer.commit()
        if number % 5 == 4:
            desk.checkpoint()
    return desk


DATABASES = ("seg/", "blk/", "ckpt/", "idem/", "dead/", "meta")


@pytest.mark.parametrize("prefix", DATABASES)
def test_every_flipped_byte_in_the_database_is_found(desk: Desk, prefix: str) -> None:
    _filled(desk)
    environment = desk.committer.environment
    assert verify(environment).problems == []
    rng = random.Random(prefix)
    for database in desk.databases(prefix):
        for key, value in desk.rows(database):
            if key.startswith(b"l"):
                continue  # names a key; what it names is checked
            for offset in rng.sample(range(len(value)), min(len(value), 6)):
                desk.flip(database, key, offset, 1 << rng.randrange(8))
                problems = verify(environment).problems
                desk.environment_restore(database, key, value)
                assert problems, (database, key, offset)
                assert all(problem.agent == "counter" for problem in problems)


def test_problem_in_the_log_names_segment_lsn_and_byte(desk: Desk) -> None:
    _filled(desk)
    database = desk.databases("seg/")[-1]
    rows = desk.rows(database)
    before = sum(len(value) for _, value in rows[:1])
    desk.flip(database, rows[1][0], 100)
    (problem,) = verify(desk.committer.environment).problems
    lsn = int.from_bytes(rows[1][0])
    segment = int(database.rpartition("/")[2])
    assert (problem.where, problem.lsn, problem.segment, problem.offset) == ("log", lsn, segment, before)
    assert f"LSN {lsn} (segment {segment}, byte {before})" in problem.describe()


def test_problem_in_a_block_names_it(desk: Desk) -> None:
    _filled(desk)
    info = desk.committer.lane("counter").infos[0]
    desk.flip("blk/counter", version_key(b"k1", info.lsn), 12)
    with desk.committer.environment.read() as txn:
        (problem,) = verify_checkpoint(txn, info)
        assert list(verify_agent(txn, "counter", Summary())) == [problem]
    assert (problem.where, problem.lsn) == ("block", info.lsn)
    assert "'k1'" in problem.what


def test_missing_block_is_noticed(desk: Desk) -> None:
    _filled(desk)
    info = desk.committer.lane("counter").infos[0]
    desk.committer.environment.write(lambda txn: txn.delete("blk/counter", version_key(b"k1", info.lsn)))
    with desk.committer.environment.read() as txn:
        (problem,) = verify_checkpoint(txn, info)
    assert "4 blocks instead of 5" in problem.what


def test_damaged_block_is_read_from_the_log_and_said(desk: Desk) -> None:
    worker = desk.activate()
    worker.change({b"a": b"old", b"b": b"2"})
    desk.checkpoint()
    worker.change({b"a": b"right", b"c": b"3"})
    info = desk.checkpoint()
    worker.change({b"a": b"newer"})
    desk.committer.commit()
    desk.flip("blk/counter", version_key(b"a", info.lsn), 9)
    state = desk.state
    desk.close()
    warnings: list[str] = []
    reader = AgentReader(state, "counter", warnings.append)
    assert reader.block(b"a", info.lsn) == b"right"
    assert reader.block(b"b", info.lsn) == b"2"
    assert len(warnings) == 1
    assert "'a'" in warnings[0]
    assert "LSN 4" in warnings[0]
    reader.close()
    desk.committer = desk._open()
    assert desk.plan(info.id).changes == {b"a": b"right"}


def test_damaged_block_that_the_log_no_longer_holds_is_damage(desk: Desk) -> None:
    worker = desk.activate()
    worker.change({b"once": b"x"})
    for _ in range(SMALL.checkpoints_kept + 2):
        for number in range(20):
            worker.change({b"k": b"%d" % number * 200})
            desk.committer.commit()
        info = desk.checkpoint()
    stored = [key for key, _ in desk.rows("blk/counter") if key.startswith(b"once")]
    desk.flip("blk/counter", stored[0], 8)
    desk.committer.environment.close()
    reader = AgentReader(desk.state, "counter")
    with pytest.raises(Damaged, match=r"'once'.*no longer reaches"):
        reader.block(b"once", info.lsn)
    reader.close()
    desk.committer = desk._open()


def test_damaged_log_stops_a_replay_with_its_lsn(desk: Desk) -> None:
    _filled(desk)
    database = desk.databases("seg/")[-1]
    key = desk.rows(database)[-1][0]
    desk.flip(database, key, 80)
    state = desk.state
    desk.close()
    reader = AgentReader(state, "counter")
    with pytest.raises(Damaged, match=f"LSN {int.from_bytes(key)}"):
        list(reader.records(0))
    reader.close()
    desk.committer = desk._open()


def test_checkpoint_over_damaged_log_fails_and_the_rest_goes_on(desk: Desk) -> None:
    worker = desk.activate()
    worker.change({b"a": b"1"})
    desk.committer.commit()
    desk.flip(desk.databases("seg/")[0], (1).to_bytes(8), 80)
    with pytest.raises(Damaged, match="LSN 1"):
        desk.checkpoint()
    assert desk.events[-1][0] == "job_failed"
    lsn = worker.change({b"a": b"2"})
    desk.committer.commit()
    assert worker.writer.durable_lsn == lsn
    desk.committer.schedule.start_due()
    assert desk.committer.schedule.idle


def test_every_flipped_byte_of_an_export_is_found(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state", dataclasses.replace(SMALL, export_every=1))
    desk.activate().change({b"k%d" % number: b"v" * number for number in range(20)})
    info = desk.checkpoint()
    path = export_path(desk.state, info.id)
    good = path.read_bytes()
    assert verify_export(path) == 20
    assert dict(read_export(path)[1]) == desk.history[2]
    for offset in range(len(good)):
        damaged = bytearray(good)
        damaged[offset] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(Damaged, match="offset"):
            verify_export(path)
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(Damaged):
            verify_export(path)
    path.write_bytes(good + b"x")
    with pytest.raises(Damaged):
        verify_export(path)
    desk.close()


def test_archive_of_several_chunks_notices_a_missing_one(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    values = [random.Random(number).randbytes(100_000) for number in range(12)]
    with ArchiveWriter(path, {"kind": "test"}) as writer:
        for value in values:
            writer.add(value)
        size = writer.finish()
    assert path.stat().st_size == size
    assert list(read_archive(path))[1:] == values
    good = path.read_bytes()
    first = int.from_bytes(good[8:12], "little") + 8
    path.write_bytes(good[:8] + good[8 + first :])
    with pytest.raises(Damaged):
        list(read_archive(path))
    assert [child.name for child in tmp_path.iterdir()] == ["archive"]


def test_archive_that_was_given_up_leaves_nothing(tmp_path: Path) -> None:
    with ArchiveWriter(tmp_path / "archive", {"kind": "test"}) as writer:
        writer.add(b"x" * 1_000_000)
    assert list(tmp_path.iterdir()) == []


def test_damaged_marker_falls_back_to_the_one_before(desk: Desk) -> None:
    _filled(desk)
    before, info = desk.committer.lane("counter").infos
    worker = desk.activate()
    worker.change({b"k1": b"after"})
    desk.committer.commit()
    expected = desk.current()
    desk.flip("ckpt/counter", info.lsn.to_bytes(8), 6)
    state = desk.state
    desk.close()
    warnings: list[str] = []
    reader = AgentReader(state, "counter", warnings.append)
    assert reader.base() == before.lsn
    assert f"LSN {info.lsn}" in warnings[0]
    assert next(reader.records(before.lsn))[0].lsn == before.lsn + 1
    reader.close()
    desk.committer = desk._open()
    desk.committer.recover()
    assert ("checkpoint_damaged", {"agent": "counter", "lsn": info.lsn}) in desk.events
    assert desk.current() == expected
    worker = desk.activate()
    worker.change({b"k2": None})
    again = desk.checkpoint()
    assert desk.current() == worker.state
    with desk.committer.environment.read() as txn:
        assert verify_checkpoint(txn, again) == []
        assert [lsn for lsn, _ in checkpoints.verify_rows(txn, "counter")] == [info.lsn]
    for _ in range(SMALL.checkpoints_kept):
        worker.change({b"k2": b"x"})
        desk.checkpoint()
    assert verify(desk.committer.environment).problems == []


def test_damaged_list_of_changed_blocks_is_passed_over_and_said(desk: Desk) -> None:
    worker = desk.activate()
    for number in range(SMALL.checkpoints_kept):
        worker.change({b"k": b"%d" % number})
        desk.checkpoint()
    key, _ = desk.rows("dirty/counter")[0]
    desk.flip("dirty/counter", key, 5)
    for number in range(3):
        worker.change({b"k": b"later %d" % number})
        desk.checkpoint()
    assert any(kind == "job_failed" and fields["job"] == "retention" for kind, fields in desk.events)
    assert len(desk.committer.lane("counter").infos) == SMALL.checkpoints_kept
    assert verify(desk.committer.environment).problems == []
    assert desk.current() == worker.state


def test_damaged_reply_does_not_stop_the_sweep(desk: Desk) -> None:
    worker = desk.activate()
    worker.change({b"k": b"v"}, key=b"one")
    worker.change({b"k": b"v"}, key=b"two")
    desk.committer.commit()
    desk.flip("idem/counter", b"kone", 7)
    late = 2**62
    assert desk.committer.environment.write(lambda txn: idempotency.sweep(txn, "counter", late)) == 2
    with desk.committer.environment.read() as txn, pytest.raises(Damaged, match="one"):
        idempotency.get(txn, "counter", b"one", 0)


def test_damaged_entry_of_an_agent_does_not_bring_back_an_old_epoch(desk: Desk) -> None:
    desk.activate()
    desk.activate().change({b"k": b"v"})
    desk.committer.commit()
    desk.flip("meta", b"agent/counter", 5)
    desk.crash()
    desk.committer.recover()
    assert desk.committer.lane("counter").row.epoch > 2
    desk.activate().change({b"k": b"w"})
    desk.committer.commit()
    assert verify(desk.committer.environment).problems == []


@pytest.mark.parametrize("place", ["last", "middle", "first"])
def test_restore_goes_back_past_a_damaged_log(desk: Desk, place: str) -> None:
    """The damaged part lies behind the last checkpoint: nobody can replay it, and no worker can start."""
    worker = desk.activate()
    for number in range(20):
        worker.change({b"k%d" % (number % 5): b"%d" % number, b"gone %d" % number: None}, key=b"key %d" % number)
        desk.committer.commit()
        if number in (4, 9):
            desk.checkpoint()
    second = desk.committer.lane("counter").infos[-1]
    rows = [(database, key) for database in desk.databases("seg/") for key, _ in desk.rows(database)]
    behind = [(database, key) for database, key in rows if int.from_bytes(key) > second.lsn]
    database, key = {"last": behind[-1], "middle": behind[len(behind) // 2], "first": behind[0]}[place]
    desk.flip(database, key, 90)
    damaged_lsn = int.from_bytes(key)
    desk.crash()
    assert desk.committer.recover()[0]["agent"] == "counter"
    assert "log_damaged" in [kind for kind, _ in desk.events]
    with pytest.raises(Damaged, match=f"LSN {damaged_lsn}"):
        desk.activate()
    with pytest.raises(Damaged):
        desk.checkpoint()
    other = desk.committer.activate("other", durability="disk", version="", reason="")
    assert other.first_lsn == 1
    with pytest.raises(Damaged):
        desk.plan(Target(lsn=damaged_lsn))
    target = damaged_lsn - 1
    plan = desk.restore(Target(lsn=target))
    assert plan.rebase
    assert plan.from_lsn >= 40
    assert desk.current() == desk.history[target]
    assert verify(desk.committer.environment).problems == []
    assert [path.suffixes for path in desk.state.dumps.glob("*.log.orun")] == [[".log", ".orun"]]
    worker = desk.activate()
    worker.change({b"k0": b"new", b"k1": None})
    info = desk.checkpoint()
    assert desk.current() == worker.state
    with desk.committer.environment.read() as txn:
        assert verify_checkpoint(txn, info) == []
    # Checkpoints from before the gap can still be restored, and only they.
    with pytest.raises(NotFound):
        desk.plan(Target(lsn=second.lsn + 1))
    desk.restore(Target(checkpoint=second.id))
    assert desk.current() == desk.history[second.lsn]


def test_restore_from_a_file_past_a_damaged_log(desk: Desk, tmp_path: Path) -> None:
    worker = desk.activate()
    worker.change({b"a": b"1", b"b": b"2"})
    desk.committer.commit()
    path = tmp_path / "backup.orun"
    write_backup(desk.committer.environment, path)
    worker.change({b"a": b"9", b"c": b"3"})
    desk.committer.commit()
    desk.flip(desk.databases("seg/")[0], (3).to_bytes(8), 100)
    desk.crash()
    desk.committer.recover()
    plan = desk.restore(Target(source=path))
    assert plan.rebase
    assert desk.current() == {b"a": b"1", b"b": b"2"}
    desk.activate()


def test_current_state_is_read_past_damage(desk: Desk) -> None:
    _filled(desk)
    info = desk.committer.lane("counter").infos[-1]
    expected = desk.current()
    key = next(key for key, _ in desk.rows("blk/counter") if key.endswith(version_key(b"", info.lsn)[-8:]))
    desk.flip("blk/counter", key, 10)
    warnings: list[str] = []
    assert Planner(desk.committer.environment, "counter", warnings.append).state() == expected
    with desk.committer.environment.read() as txn:
        assert log.first_lsn(txn, "counter") > 0
