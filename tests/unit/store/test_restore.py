from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orun.errors import Damaged, NotFound, UsageError
from orun.store import idempotency, log, targets
from orun.store.exports import export_path
from orun.store.frames import FrameCodec
from orun.store.records import FLAG_MORE, Kind
from orun.store.targets import Target
from orun.store.verify import verify
from tests.unit.store.harness import SMALL, Desk


def test_restore_to_any_lsn_and_back(desk: Desk) -> None:
    worker = desk.activate()
    for number in range(30):
        worker.change({b"a": b"%d" % number, b"k%d" % (number % 7): b"x", b"k%d" % (number % 3): None})
        if number % 10 == 5:
            desk.checkpoint()
    desk.committer.commit()
    last = desk.committer.lane("counter").end.last_lsn
    for lsn in range(last + 1):
        assert desk.plan(Target(lsn=lsn)).target_lsn == lsn
    before = desk.current()
    plan = desk.restore(Target(lsn=21))
    assert plan.applied
    assert (plan.from_lsn, plan.lsn) == (last, last + 1)
    assert desk.current() == desk.history[21] != before
    undone = desk.restore(Target(lsn=plan.from_lsn))
    assert undone.blocks_changed == plan.blocks_changed
    assert desk.current() == before


def test_dry_plan_changes_nothing(desk: Desk) -> None:
    worker = desk.activate()
    worker.change({b"a": b"1"})
    worker.change({b"a": b"2"})
    desk.committer.commit()
    plan = desk.plan("2")
    assert plan.as_dict() == {
        "agent": "counter",
        "from_lsn": 4,
        "target_lsn": 2,
        "checkpoint": None,
        "source": None,
        "blocks_changed": 1,
        "replayed_records": 2,
        "rebase": False,
        "applied": False,
        "lsn": 0,
    }
    assert desk.current() == {b"a": b"2"}


def test_large_restore_is_one_commit_of_several_records(desk: Desk) -> None:
    big = Desk(desk.state.path.parent / "big", dataclasses.replace(SMALL, ring_bytes=8 << 20))
    worker = big.activate()
    for start in range(0, 600, 100):
        worker.change({b"%d" % number: b"%d" % number * 900 for number in range(start, start + 100)})
    plan = big.restore(Target(lsn=0))
    assert plan.blocks_changed == 600
    worker = big.activate()
    plan = big.restore(Target(lsn=plan.from_lsn))
    assert plan.lsn - plan.from_lsn > 3
    assert big.current() == big.history[12]
    with big.committer.environment.read() as txn:
        batches = log.read(txn, "counter", FrameCodec(), plan.from_lsn, upto_lsn=plan.lsn, bytes_max=1 << 30)
    records = [record for batch in batches for record in batch]
    assert {record.kind for record in records} == {Kind.RESTORE}
    assert [record.flags for record in records] == [FLAG_MORE] * (len(records) - 1) + [0]
    assert {record.ref for record in records} == {12}
    assert verify(big.committer.environment).problems == []
    big.close()


def test_restore_forgets_replies_of_effects_it_undoes(desk: Desk) -> None:
    worker = desk.activate()
    kept = worker.change({b"a": b"1"}, key=b"early")
    worker.change({b"a": b"2"}, key=b"late")
    worker.change({b"a": b"3"}, key=b"late again")
    desk.restore(Target(lsn=kept))
    with desk.committer.environment.read() as txn:
        found = [idempotency.get(txn, "counter", key, 0) for key in (b"early", b"late", b"late again")]
    assert [reply is not None for reply in found] == [True, False, False]


def test_restore_drops_requests_that_were_open(desk: Desk) -> None:
    worker = desk.activate()
    lsn = worker.change({b"a": b"1"})
    worker.request(b"unanswered")
    desk.restore(Target(lsn=lsn))
    assert desk.checkpoint().open == ()


def test_target_out_of_reach_is_not_found(desk: Desk) -> None:
    worker = desk.activate()
    for number in range(SMALL.checkpoints_kept + 3):
        for _ in range(30):
            worker.change({b"k": b"%d" % number * 100})
            desk.committer.commit()
        desk.checkpoint()
    infos = desk.committer.lane("counter").infos
    with pytest.raises(NotFound, match=f"no longer kept; the oldest is {infos[0].id}"):
        desk.plan("1")
    with pytest.raises(NotFound, match="no LSN 9999 yet"):
        desk.plan("9999")
    with pytest.raises(NotFound, match="no checkpoint counter-5x"):
        desk.plan("counter-5x")
    with pytest.raises(NotFound, match="could be any of"):
        desk.plan("counter-")
    assert desk.plan("latest").target_lsn == infos[-1].lsn
    assert desk.plan("previous").target_lsn == infos[-2].lsn
    assert desk.plan(infos[0].id).target_lsn == infos[0].lsn
    with pytest.raises(NotFound, match="does not reach back"):
        desk.plan("2001-01-01T00:00:00Z")


def test_time_target_is_the_last_record_of_that_time(desk: Desk) -> None:
    worker = desk.activate()
    for _ in range(20):
        worker.change({b"a": b"1"})
        desk.committer.commit()
    lane = desk.committer.lane("counter")
    with desk.committer.environment.read() as txn:
        batches = log.read(txn, "counter", FrameCodec(), 0, upto_lsn=99, bytes_max=1 << 30)
    times = [record.time_ms for batch in batches for record in batch]
    for time_ms in {*times, times[-1] + 5}:
        expected = max(lsn for lsn, other in enumerate(times, 1) if other <= time_ms)
        assert desk.plan(Target(time_ms=time_ms)).target_lsn == expected
    assert lane.end.last_lsn == 40


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("123", Target(lsn=123)),
        ("latest", Target(checkpoint="latest")),
        ("counter-12", Target(checkpoint="counter-12")),
        ("10m ago", Target(time_ms=400_000)),
        ("1.5h", Target(time_ms=-4_400_000)),
        ("250ms ago", Target(time_ms=999_750)),
        ("1970-01-01T00:10:00Z", Target(time_ms=600_000)),
        ("1970-01-01T02:10:00.5+02:00", Target(time_ms=600_500)),
    ],
)
def test_targets_are_read_as_people_type_them(text: str, expected: Target) -> None:
    assert Target.parse(text, now=1000.0) == expected


def test_target_must_be_one_thing() -> None:
    with pytest.raises(UsageError):
        Target()
    with pytest.raises(UsageError):
        Target(lsn=1, checkpoint="latest")
    assert targets.Target(lsn=0).lsn == 0


def test_restore_from_an_exported_checkpoint(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state", dataclasses.replace(SMALL, export_every=1))
    worker = desk.activate()
    worker.change({b"a": b"1", b"b": b"2"})
    info = desk.checkpoint()
    worker.change({b"a": b"9", b"b": None, b"c": b"3"})
    path = export_path(desk.state, info.id)
    plan = desk.restore(Target(source=path))
    assert (plan.blocks_changed, plan.target_lsn, plan.source) == (3, info.lsn, str(path))
    assert desk.current() == {b"a": b"1", b"b": b"2"}
    other = Desk(tmp_path / "other", agent="other")
    other.activate()
    with pytest.raises(NotFound, match="a checkpoint of counter, not of other"):
        other.plan(Target(source=path))
    other.close()
    fresh = Desk(tmp_path / "fresh")
    fresh.activate()
    fresh.restore(Target(source=path))
    assert fresh.current() == {b"a": b"1", b"b": b"2"}
    fresh.close()
    desk.close()


def test_file_that_is_no_archive_is_damage(desk: Desk, tmp_path: Path) -> None:
    desk.activate()
    path = tmp_path / "file"
    path.write_bytes(b"not an archive")
    with pytest.raises(Damaged, match="not an archive"):
        desk.plan(Target(source=path))
    with pytest.raises(NotFound):
        desk.plan(Target(source=tmp_path / "none"))


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("change"),
            st.dictionaries(
                st.sampled_from([b"a", b"b", b"c", b"\x00", b"d" * 40]), st.none() | st.binary(max_size=30), max_size=3
            ),
        ),
        st.tuples(st.just("checkpoint"), st.none()),
        st.tuples(st.just("crash"), st.none()),
        st.tuples(st.just("activate"), st.none()),
        st.tuples(st.just("commit"), st.none()),
        st.tuples(st.just("restore"), st.floats(0, 1)),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps, st.floats(0, 1))
def test_store_is_a_history_of_dicts(actions: list[tuple[str, object]], where: float) -> None:
    """Whatever is done in whatever order, each LSN in reach is the state that it was."""
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder), dataclasses.replace(SMALL, segment_bytes=600, ring_bytes=16 << 10))
        worker = desk.activate()
        for action, argument in actions:
            if action == "change":
                worker.change(argument)  # type: ignore[arg-type]
            elif action == "checkpoint":
                if desk.worker is not None and max(desk.history):
                    desk.checkpoint()
            elif action == "crash":
                desk.crash()
                desk.committer.recover()
                worker = desk.activate()
            elif action == "activate":
                worker = desk.activate()
            elif action == "commit":
                desk.committer.commit()
            elif action == "restore":
                desk.committer.commit()
                lsn = _lsn_in_reach(desk, float(argument))  # type: ignore[arg-type]
                desk.restore(Target(lsn=lsn))
                assert desk.current() == desk.history[lsn]
                worker = desk.activate()
        desk.committer.commit()
        assert desk.committer.lane("counter").end.last_lsn == max(desk.history)
        assert desk.current() == desk.history[max(desk.history)]
        assert verify(desk.committer.environment).problems == []
        lsn = _lsn_in_reach(desk, where)
        desk.restore(Target(lsn=lsn))
        assert desk.current() == desk.history[lsn]
        desk.close()


def _lsn_in_reach(desk: Desk, share: float) -> int:
    lane = desk.committer.lane("counter")
    with desk.committer.environment.read() as txn:
        whole = log.first_lsn(txn, "counter") <= 1
    oldest = 0 if whole else lane.infos[0].lsn
    return oldest + round(share * (lane.end.last_lsn - oldest))
