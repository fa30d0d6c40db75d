from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import msgpack
import pytest

from orun.engine.journal import JournalFenced
from orun.errors import InUse, NotFound, UsageError
from orun.store import checkpoints, deadletters, idempotency, log
from orun.store.records import FLAG_KEYED, FLAG_READONLY, Kind, encode_effect
from orun.store.verify import verify
from tests.unit.store.harness import SMALL, Desk, Worker, eventfd_count


def test_activation_fences_and_loses_nothing(desk: Desk) -> None:
    first = desk.activate()
    old = first.writer
    for _ in range(5):
        first.change({b"k": b"v"})
    activation = desk.committer.activate("counter", durability="disk", version="v2", reason="test")
    assert (activation.epoch, activation.first_lsn, activation.checkpoint_lsn) == (2, 11, 0)
    with pytest.raises(JournalFenced):
        old.append(Kind.REQUEST, b"zombie")
    lane = desk.committer.lane("counter")
    assert lane.end.last_lsn == 10
    assert lane.row.version == "v2"
    assert [path.name for path in desk.state.rings.iterdir()] == ["counter.2.ring"]


def test_commit_tells_the_worker(desk: Desk) -> None:
    worker = desk.activate()
    lsn = worker.change({b"k": b"v"})
    assert worker.writer.durable_lsn == 0
    fd = desk.committer.lane("counter").notify_fd
    eventfd_count(fd)
    desk.committer.commit()
    assert worker.writer.durable_lsn == lsn
    assert eventfd_count(fd) == 1
    desk.checkpoint()
    assert worker.writer.checkpoint_lsn == lsn


def test_commit_of_nothing_writes_nothing(desk: Desk) -> None:
    desk.activate()
    before = desk.committer.environment.file_bytes(), desk.databases("")
    desk.committer.commit()
    assert not desk.committer.wants_commit()
    assert (desk.committer.environment.file_bytes(), desk.databases("")) == before


def test_records_that_nobody_waits_for_are_paced(tmp_path: Path) -> None:
    clock = [100.0]
    desk = Desk(tmp_path / "state")
    desk.committer._monotonic = lambda: clock[0]
    worker = desk.activate()
    worker.request()
    assert not desk.committer.wants_commit()
    assert desk.committer.schedule.due() == pytest.approx(100.0 + SMALL.commit_interval)
    clock[0] += SMALL.commit_interval
    assert desk.committer.wants_commit()
    desk.committer.commit()
    assert not desk.committer.wants_commit()
    lsn = worker.request()
    assert not desk.committer.wants_commit()
    worker.writer.wake_needed(True)
    assert desk.committer.wants_commit()
    desk.committer.commit()
    assert worker.writer.durable_lsn == lsn
    desk.close()


def test_names_that_cannot_be_file_names_are_refused(desk: Desk) -> None:
    for name in ("", "a/b", "..", "-a", "a b", "x" * 65):
        with pytest.raises(UsageError):
            desk.committer.activate(name, durability="disk", version="", reason="")
    with pytest.raises(NotFound, match="known: none"):
        desk.committer.lane("nobody")


def test_checkpoint_holds_the_state_and_open_requests(desk: Desk) -> None:
    worker = desk.activate()
    worker.change({b"a": b"1", b"b": b"2"})
    answered = worker.request()
    waiting = worker.request(b"waiting")
    worker.request(b"reading", flags=FLAG_READONLY)
    step = worker.append(Kind.STEP, b"step", ref=waiting)
    worker.effect(answered, {b"b": None, b"c": b"x" * 3000})
    again = worker.request(b"waiting", ref=waiting)
    info = desk.checkpoint()
    assert (info.id, info.number, info.blocks, info.total) == (f"counter-{again}", 1, 3, 2)
    assert info.open == (waiting, step, again)
    assert info.needed_lsn == waiting
    assert desk.current() == {b"a": b"1", b"c": b"x" * 3000}
    done = worker.effect(waiting, {b"a": None})
    second = desk.checkpoint()
    assert (second.lsn, second.number, second.open, second.total) == (done, 2, (), 1)
    assert desk.checkpoint() == second
    with desk.committer.environment.read() as txn:
        assert checkpoints.load(txn, "counter") == [info, second]


def test_checkpoint_of_nothing_is_not_found(desk: Desk) -> None:
    desk.activate()
    with pytest.raises(NotFound, match="nothing"):
        desk.checkpoint()


def test_checkpoint_is_written_in_slices_between_commits(desk: Desk) -> None:
    worker = desk.activate()
    worker.change({b"%04d" % number: b"v" for number in range(500)})
    desk.committer.commit()
    future = desk.committer.schedule.checkpoint(desk.committer.lane("counter"), "test")
    commits = 0
    while not desk.committer.schedule.ready:
        desk.committer.schedule.advance(desk.committer.environment)
    while not future.done():
        lsn = worker.change({b"0000": b"newer %d" % commits})
        desk.committer.commit()
        assert worker.writer.durable_lsn == lsn
        commits += 1
        if not future.done():
            desk.committer.schedule.advance(desk.committer.environment)
    info = future.result()
    assert commits == 8
    assert (info.lsn, info.blocks) == (2, 500)
    assert desk.plan(info.id).changes == {b"0000": b"v"}


def test_checkpoints_are_made_by_log_size_and_by_interval(tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, checkpoint_bytes=2000, checkpoint_interval=50.0)
    desk = Desk(tmp_path / "state", settings)
    clock = [10.0]
    desk.committer.schedule._monotonic = lambda: clock[0]
    worker = desk.activate()
    worker.change({b"k": b"v"})
    desk.committer.commit()
    desk.committer.schedule.start_due()
    assert desk.committer.schedule.idle
    worker.change({b"k": b"v" * 2000})
    desk.committer.commit()
    desk.committer.schedule.start_due()
    assert not desk.committer.schedule.idle
    desk.run_jobs()
    lane = desk.committer.lane("counter")
    assert lane.infos[-1].reason == "log size"
    assert lane.log_bytes == 0
    desk.committer.schedule.start_due()
    assert desk.committer.schedule.idle
    worker.change({b"k": b"w"})
    desk.committer.commit()
    lane.checkpoint_at = clock[0]
    assert desk.committer.schedule.due() == clock[0] + 50.0
    clock[0] += 50.0
    desk.committer.schedule.start_due()
    desk.run_jobs()
    assert [info.reason for info in lane.infos] == ["log size", "interval"]
    desk.close()


def test_retention_keeps_what_checkpoints_need(desk: Desk) -> None:
    worker = desk.activate()
    for number in range(12):
        for part in range(10):
            worker.change({b"k%d" % part: b"%d" % number * 50, b"once %d" % number: b"x", b"gone": None})
            desk.committer.commit()
        desk.checkpoint()
    infos = desk.committer.lane("counter").infos
    assert len(infos) == SMALL.checkpoints_kept
    with desk.committer.environment.read() as txn:
        assert checkpoints.load(txn, "counter") == infos
        first = log.first_lsn(txn, "counter")
    assert 1 < first <= infos[0].lsn + 1
    # One version for each block at the oldest checkpoint, and those that changed since.
    assert len(desk.rows("blk/counter")) <= infos[0].total + sum(info.blocks for info in infos[1:])
    for info in infos:
        assert desk.plan(info.id).target_lsn == info.lsn
    assert verify(desk.committer.environment).problems == []
    assert desk.current() == desk.history[max(desk.history)]


def test_log_is_kept_for_open_requests(desk: Desk) -> None:
    worker = desk.activate()
    waiting = worker.request(b"long")
    for number in range(10):
        for _ in range(20):
            worker.change({b"k": b"%d" % number * 50})
            desk.committer.commit()
        desk.checkpoint()
    with desk.committer.environment.read() as txn:
        assert log.first_lsn(txn, "counter") <= waiting
    worker.effect(waiting)
    for _ in range(SMALL.checkpoints_kept + 1):
        worker.change({b"k": b"v"})
        desk.checkpoint()
    with desk.committer.environment.read() as txn:
        assert log.first_lsn(txn, "counter") > waiting


def test_crash_in_the_middle_of_a_checkpoint_leaves_no_trace(desk: Desk) -> None:
    worker = desk.activate()
    worker.change({b"%04d" % number: b"v" for number in range(300)})
    desk.committer.commit()
    desk.committer.schedule.checkpoint(desk.committer.lane("counter"), "test")
    for _ in range(2):
        while not desk.committer.schedule.ready:
            desk.committer.schedule.advance(desk.committer.environment)
        desk.committer.commit()
    assert len(desk.rows("blk/counter")) == 128
    desk.crash()
    desk.committer.recover()
    assert desk.rows("dirty/counter") == []
    assert desk.current() == desk.history[2]
    worker = desk.activate()
    worker.change({b"0000": None, b"new": b"n"})
    info = desk.checkpoint()
    assert (info.blocks, info.total) == (301, 300)
    assert desk.current() == desk.history[max(desk.history)]
    assert verify(desk.committer.environment).problems == []


def test_crash_in_the_middle_of_retention_is_taken_up_again(desk: Desk) -> None:
    worker = desk.activate()
    for number in range(SMALL.checkpoints_kept + 2):
        worker.change({b"%04d" % i: b"%d" % number for i in range(300)})
        desk.committer.commit()
        future = desk.committer.schedule.checkpoint(desk.committer.lane("counter"), "test")
        while not future.done():
            desk.committer.schedule.advance(desk.committer.environment)
            desk.committer.commit()
    desk.crash()
    desk.committer.recover()
    worker = desk.activate()
    worker.change({b"0000": b"last"})
    desk.checkpoint()
    infos = desk.committer.lane("counter").infos
    assert len(infos) == SMALL.checkpoints_kept
    assert len(desk.rows("blk/counter")) == 300 + sum(info.blocks for info in infos[1:])


def test_reply_is_filed_with_its_effect_and_expires(desk: Desk) -> None:
    worker = desk.activate()
    lsn = worker.change({b"k": b"v"}, key=b"pay-1")
    worker.change({b"k": b"w"})
    desk.committer.commit()
    with desk.committer.environment.read() as txn:
        stored = idempotency.get(txn, "counter", b"pay-1", 0)
        assert stored is not None
        assert (stored.ok, stored.reply, stored.lsn) == (True, b"r", lsn)
        assert idempotency.get(txn, "counter", b"pay-1", stored.expiry_ms) is None
        assert idempotency.get(txn, "counter", b"pay-2", 0) is None
        expiry = stored.expiry_ms
    environment = desk.committer.environment
    assert environment.write(lambda txn: idempotency.sweep(txn, "counter", expiry - 1)) == 0
    assert environment.write(lambda txn: idempotency.sweep(txn, "counter", expiry)) == 1
    assert desk.rows("idem/counter") == []


def test_sweep_spares_a_key_that_was_used_again(desk: Desk) -> None:
    worker = desk.activate()
    worker.change({}, key=b"k")
    newer = worker.change({}, key=b"k")
    desk.committer.commit()
    desk.committer.environment.write(lambda txn: idempotency.sweep(txn, "counter", 0))
    with desk.committer.environment.read() as txn:
        stored = idempotency.get(txn, "counter", b"k", 0)
    assert stored is not None
    assert stored.lsn == newer
    assert len(desk.rows("idem/counter")) == 2


@pytest.mark.parametrize("together", [True, False])
def test_dead_letter_keeps_the_request(desk: Desk, together: bool) -> None:
    worker = desk.activate()
    request = msgpack.packb([1, "add", {"amount": 1}, {}])
    first = worker.request(request)
    for _ in range(2):
        if not together:
            desk.committer.commit()
        worker = desk.activate() if not together else worker
        worker.request(request, ref=first)
    worker.request(b"another")
    error = encode_effect(b"error", False, key=b"key")
    dead = worker.append(Kind.DEAD, error, ref=first, flags=FLAG_KEYED)
    desk.committer.commit()
    with desk.committer.environment.read() as txn:
        (letter,) = deadletters.load(txn, "counter")
        assert deadletters.get(txn, "counter", first) == letter
        stored = idempotency.get(txn, "counter", b"key", 0)
        with pytest.raises(NotFound):
            deadletters.get(txn, "counter", dead)
    assert (letter.lsn, letter.dead_lsn, letter.attempts) == (first, dead, 3)
    assert (letter.request, letter.error) == (request, b"error")
    assert stored is not None
    assert not stored.ok
    assert ("dead_letter", {"agent": "counter", "lsn": first, "attempts": 3}) in desk.events


def test_every_nth_checkpoint_is_exported_and_old_exports_go(tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, export_every=2, exports_kept=2)
    desk = Desk(tmp_path / "state", settings)
    worker = desk.activate()
    for number in range(7):
        worker.change({b"k": b"%d" % number, b"gone": None})
        desk.checkpoint()
    names = sorted(path.name for path in desk.state.exports.iterdir())
    exported = [info.id for info in desk.committer.lane("counter").infos if info.exported]
    assert names == ["counter-12.orun", "counter-8.orun"]
    assert exported == ["counter-12"]
    desk.close()


def test_export_that_cannot_be_written_does_not_stop_the_rest(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state", dataclasses.replace(SMALL, export_every=1))
    shutil.rmtree(desk.state.exports)
    desk.activate().change({b"k": b"v"})
    info = desk.checkpoint()
    assert not info.exported
    assert any(kind == "job_failed" and fields["job"] == "export" for kind, fields in desk.events)
    desk.close()


def test_agent_is_not_activated_while_it_is_restored(desk: Desk) -> None:
    desk.activate()
    with pytest.raises(InUse):
        desk.committer.begin_restore("counter")
    desk.retire()
    desk.committer.begin_restore("counter")
    with pytest.raises(InUse):
        desk.activate()
    desk.committer.end_restore("counter")
    desk.activate()


def test_several_agents_share_a_commit(desk: Desk) -> None:
    worker = desk.activate()
    other = desk.committer.activate("other", durability="process", version="v", reason="test")
    worker.change({b"k": b"v"})
    second = Worker(other, {0: {}})
    second.change({b"k": b"w"})
    desk.committer.commit()
    assert (worker.writer.durable_lsn, second.writer.durable_lsn) == (2, 2)
    assert desk.databases("seg/") == ["seg/counter/00000000000000000001", "seg/other/00000000000000000001"]
    second.close()


def test_damaged_ring_is_fenced_and_kept(desk: Desk) -> None:
    worker = desk.activate()
    good = worker.change({b"k": b"v"})
    worker.change({b"k": b"w"})
    path = desk.state.ring("counter", 1)
    with path.open("r+b") as ring:
        ring.seek(4096 + 250)
        ring.write(b"\xff")
    desk.committer.commit()
    desk.committer.commit()
    kinds = [kind for kind, _ in desk.events]
    assert kinds.count("journal_damaged") == 1
    with pytest.raises(JournalFenced):
        worker.writer.append(Kind.REQUEST, b"")
    assert not desk.committer.wants_commit()
    assert desk.committer.lane("counter").end.last_lsn >= good - 1
    worker = desk.activate()
    assert [path.name for path in desk.state.dumps.iterdir()] == ["counter.1.ring.damaged"]
    worker.request()
    desk.committer.commit()
    assert verify(desk.committer.environment).problems == []
