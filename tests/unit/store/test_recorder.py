"""The recorder with its thread, as the runtime uses it."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orun.engine.journal import JournalFenced, JournalWriter
from orun.errors import InUse, NotFound, OrunError, StorageFailed
from orun.settings import StoreSettings
from orun.store.backup import restore_backup, verify_backup
from orun.store.committer import Activation
from orun.store.layout import StateDir
from orun.store.planning import read_source
from orun.store.reader import AgentReader
from orun.store.recorder import Recorder
from orun.store.records import FLAG_KEYED, Kind, encode_effect
from orun.store.targets import Target
from tests.support import wait_until
from tests.unit.store.harness import state_dir

_SETTINGS = StoreSettings(ring_bytes=1 << 20, map_bytes=1 << 20)


class Bench:
    """A recorder, and workers in the same process that wake it as real ones do."""

    def __init__(self, path: Path, settings: StoreSettings = _SETTINGS) -> None:
        self.state = state_dir(path)
        self.settings = settings
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.failures: list[OrunError] = []
        self.writers: list[JournalWriter] = []
        self.recorder = self.open()

    def open(self) -> Recorder:
        """A new recorder on the same state."""
        recorder = Recorder(
            self.state,
            self.settings,
            on_failure=self.failures.append,
            on_event=lambda kind, fields: self.events.append((kind, fields)),
        )
        recorder.start()
        self.recovered = recorder.recover()
        self.recorder = recorder
        return recorder

    def activate(self, agent: str = "counter") -> tuple[Activation, JournalWriter]:
        """A new worker."""
        activation = self.recorder.activate(agent, durability="disk", version="v1", reason="test").result(10)
        writer = JournalWriter.open(activation.ring_path)
        self.writers.append(writer)
        return activation, writer

    def change(
        self, writer: JournalWriter, changes: dict[bytes, bytes | None], *, key: bytes = b"", wait: bool = True
    ) -> int:
        """One effect, waited for unless told otherwise."""
        payload = encode_effect(b"reply", True, changes.items(), key=key)
        lsn = writer.append(Kind.EFFECT, payload, ref=1, flags=FLAG_KEYED if key else 0)
        if writer.wake_needed(wait):
            os.eventfd_write(self.recorder.wake_fd, 1)
        if wait:
            wait_until(lambda: writer.durable_lsn >= lsn, 10)
        return lsn

    def close(self) -> None:
        """Stop and let go."""
        self.recorder.stop()
        for writer in self.writers:
            writer.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "state")
    yield bench
    bench.close()
    assert bench.failures == []


def test_what_is_waited_for_is_durable_at_once(bench: Bench) -> None:
    activation, writer = bench.activate()
    assert (activation.first_lsn, activation.epoch) == (1, 1)
    started = time.monotonic()
    for number in range(50):
        bench.change(writer, {b"k": b"%d" % number})
    assert time.monotonic() - started < 50 * _SETTINGS.commit_interval * 5
    assert bench.recorder.position("counter")["durable_lsn"] == 50


def test_what_nobody_waits_for_is_durable_soon(bench: Bench) -> None:
    _, writer = bench.activate()
    lsn = bench.change(writer, {b"k": b"v"}, wait=False)
    wait_until(lambda: writer.durable_lsn >= lsn, 10)


def test_recorder_sleeps_when_nothing_happens(bench: Bench) -> None:
    _, writer = bench.activate()
    bench.change(writer, {b"k": b"v"})
    before = time.process_time()
    assert not threading.Event().wait(0.3)
    assert time.process_time() - before < 0.05


def test_many_threads_may_ask(bench: Bench) -> None:
    names = [f"agent{number}" for number in range(8)]
    futures = [
        bench.recorder.activate(name, durability="disk", version="v", reason="test") for name in names for _ in range(3)
    ]
    epochs = sorted((future.result(10).agent, future.result().epoch) for future in futures)
    assert epochs == [(name, epoch) for name in names for epoch in (1, 2, 3)]
    assert bench.recorder.agents() == names


def test_reader_in_another_place_sees_what_is_durable(bench: Bench) -> None:
    _, writer = bench.activate()
    for number in range(10):
        bench.change(writer, {b"k%d" % number: b"v%d" % number}, key=b"key %d" % number)
    info = bench.recorder.checkpoint("counter", "by hand").result(10)
    bench.change(writer, {b"k1": None, b"x": b"y"})
    assert info.reason == "by hand"
    assert bench.recorder.checkpoints("counter") == [info]
    state = bench.state
    bench.recorder.stop()
    reader = AgentReader(state, "counter")
    assert (reader.base(), reader.last_lsn(), reader.pending()) == (10, 11, [])
    assert reader.count(10) == 10
    assert list(reader.keys(10)) == sorted(b"k%d" % number for number in range(10))
    assert reader.block(b"k1", 10) == b"v1"
    assert reader.block(b"none", 10) is None
    assert [[record.lsn for record in batch] for batch in reader.records(10)] == [[11]]
    assert [record.lsn for batch in reader.records(3) for record in batch] == list(range(4, 12))
    assert reader.reply_for(b"key 3") == (True, b"reply")
    assert reader.reply_for(b"none") is None
    reader.close()


def test_stop_commits_everything_and_fences(bench: Bench) -> None:
    _, writer = bench.activate()
    for number in range(100):
        bench.change(writer, {b"k": b"%d" % number}, wait=False)
    bench.recorder.stop()
    bench.recorder.stop()
    with pytest.raises(JournalFenced):
        writer.append(Kind.REQUEST, b"late")
    with pytest.raises(StorageFailed):
        bench.recorder.retire("counter").result(1)
    assert list(bench.state.rings.iterdir()) == []
    bench.open()
    assert bench.recovered == []
    assert bench.recorder.position("counter")["last_lsn"] == 100


def test_restore_is_refused_under_a_worker_and_works_without(bench: Bench) -> None:
    _, writer = bench.activate()
    for number in range(10):
        bench.change(writer, {b"k": b"%d" % number})
    with pytest.raises(InUse):
        bench.recorder.restore("counter", "4").result(10)
    assert bench.recorder.restore("counter", "4", dry_run=True).result(10).blocks_changed == 1
    assert bench.recorder.retire("counter").result(10) == 10
    plan = bench.recorder.restore("counter", Target(lsn=4)).result(10)
    assert (plan.applied, plan.lsn) == (True, 11)
    with pytest.raises(NotFound):
        bench.recorder.restore("counter", "99").result(10)
    with pytest.raises(NotFound):
        bench.recorder.restore("nobody", "1").result(10)
    activation, _ = bench.activate()
    assert activation.first_lsn == 12


def test_backup_beside_work_is_restored_elsewhere(bench: Bench, tmp_path: Path) -> None:
    _, writer = bench.activate()
    for number in range(50):
        bench.change(writer, {b"k%d" % number: b"v" * number}, key=b"key %d" % number)
        if number == 25:
            bench.recorder.checkpoint("counter", "test").result(10)
    path = tmp_path / "all.orun"
    info = bench.recorder.backup(path).result(10)
    assert info == dataclasses.replace(verify_backup(path), path=str(path))
    bench.change(writer, {b"later": b"x"})
    other = StateDir(tmp_path / "other")
    restore_backup(path, other, _SETTINGS)
    elsewhere = Bench(other.path)
    assert elsewhere.recorder.position("counter")["last_lsn"] == 50
    assert len(elsewhere.recorder.checkpoints("counter")) == 1
    assert elsewhere.recorder.verify().result(10).problems == []
    _, second = elsewhere.activate()
    elsewhere.change(second, {b"k1": b"new"})
    with pytest.raises(OrunError, match="already holds a state"):
        restore_backup(path, other, _SETTINGS)
    elsewhere.close()
    state, lsn = read_source(path, "counter")
    assert lsn == 50
    assert state == {b"k%d" % number: b"v" * number for number in range(50)}
    with pytest.raises(NotFound, match="no agent other"):
        read_source(path, "other")


def test_compaction_reports_what_it_freed(tmp_path: Path) -> None:
    generous = dataclasses.replace(_SETTINGS, segment_bytes=4096, checkpoints_kept=100)
    bench = Bench(tmp_path / "state", generous)
    _, writer = bench.activate()
    for number in range(12):
        for _ in range(20):
            bench.change(writer, {b"k": os.urandom(200)}, wait=False)
        bench.recorder.checkpoint("counter", f"{number}").result(10)
    bench.recorder.stop()
    bench.settings = dataclasses.replace(generous, checkpoints_kept=2, log_bytes_kept=0)
    bench.open()
    report = bench.recorder.compact().result(10)
    (entry,) = report["agents"]
    assert entry["checkpoints_dropped"] == 10
    assert entry["segments_dropped"] > 3
    assert entry["bytes_freed"] == entry["bytes_before"] - entry["bytes_after"] > 20_000
    assert len(bench.recorder.checkpoints("counter")) == 2
    again = bench.recorder.compact().result(10)["agents"][0]
    assert (again["bytes_freed"], again["segments_dropped"]) == (0, 0)
    bench.close()


def test_compaction_of_nothing(bench: Bench) -> None:
    assert bench.recorder.compact().result(10)["agents"] == []


def test_dead_letters_are_listed_and_dropped(bench: Bench) -> None:
    _, writer = bench.activate()
    first = writer.append(Kind.REQUEST, b"request")
    writer.append(Kind.DEAD, encode_effect(b"error", False), ref=first)
    bench.change(writer, {})
    (letter,) = bench.recorder.dead_letters("counter").result(10)
    assert (letter.lsn, letter.request, letter.attempts) == (first, b"request", 1)
    assert bench.recorder.drop_dead_letter("counter", first).result(10)
    assert not bench.recorder.drop_dead_letter("counter", first).result(10)
    assert bench.recorder.dead_letters("counter").result(10) == []


def test_first_failed_commit_ends_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path / "state")
    _, writer = bench.activate()
    good = bench.change(writer, {b"k": b"v"})
    environment = bench.recorder._environment()

    class Failing:
        """The transaction whose commit fails, and after which all seems well again."""

        def __init__(self, raw: Any) -> None:
            self.raw = raw
            self.failed = False

        def __getattr__(self, name: str) -> Any:
            return getattr(self.raw, name)

        def begin(self, **options: Any) -> Any:
            if options.get("write") and not self.failed:
                self.failed = True
                raise OSError(5, "Input/output error")
            return self.raw.begin(**options)

    environment._raw = Failing(environment._raw)
    lost = bench.change(writer, {b"k": b"w"}, wait=False)
    wait_until(lambda: bench.failures, 10)
    assert isinstance(bench.failures[0], StorageFailed)
    assert "Input/output error" in bench.failures[0].message
    assert bench.recorder.failure is bench.failures[0]
    for _ in range(3):
        with pytest.raises(StorageFailed):
            bench.recorder.checkpoint("counter", "test").result(10)
    with pytest.raises(StorageFailed):
        bench.recorder.verify().result(10)
    assert writer.durable_lsn == good
    bench.recorder.stop()
    # What was journaled is taken over by the next start.
    bench.open()
    assert bench.recovered[0]["records"] == 1
    assert bench.recorder.position("counter")["last_lsn"] == lost
    bench.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_error_of_its_own_is_no_silent_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "state")

    def fail(_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(StorageFailed):
        bench.recorder._ask(fail).result(10)
    wait_until(lambda: bench.failures, 10)
    with pytest.raises(StorageFailed):
        bench.recorder.retire("counter").result(10)
    bench.close()
