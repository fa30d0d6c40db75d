"""A follower reads the log as it grows, and ends where a fresh replay would, whatever happened in between."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orun.engine.journal import JournalWriter
from orun.settings import AgentSettings, StoreSettings
from orun.store.layout import StateDir
from orun.store.reader import AgentReader
from orun.store.recorder import Recorder
from orun.store.records import FLAG_READONLY, NO_ID, Kind, encode_effect
from orun.worker import wire
from orun.worker.replay import Follower
from orun.worker.state import View
from tests.support import wait_until


class Log:
    """A real recorder with one agent, and the journal of its worker."""

    def __init__(self, folder: Path) -> None:
        self.state = StateDir(folder)
        self.state.create()
        self.failures: list[Exception] = []
        self.recorder = Recorder(
            self.state, StoreSettings(), on_failure=self.failures.append, on_event=lambda kind, fields: None
        )
        self.recorder.start()
        self.recorder.recover()
        self.activate()

    def activate(self) -> None:
        activation = self.recorder.activate("a", durability="disk", version="v", reason="test").result()
        self.journal = JournalWriter.open(activation.ring_path)

    def append(self, kind: Kind, payload: bytes, *, ref: int = 0, flags: int = 0) -> int:
        lsn = self.journal.append(kind, payload, ref=ref, flags=flags)
        if self.journal.wake_needed(True):
            os.eventfd_write(self.recorder.wake_fd, 1)
        return lsn

    def request(self) -> int:
        return self.append(Kind.REQUEST, wire.pack([1, "h", None, {}]))

    def effect(self, ref: int, changes: dict[str, Any], request_id: bytes = NO_ID) -> int:
        encoded = [(key.encode(), None if value is None else wire.pack(value)) for key, value in changes.items()]
        return self.append(Kind.EFFECT, encode_effect(wire.pack("done"), True, encoded, request_id), ref=ref)

    def settle(self) -> None:
        wait_until(lambda: self.journal.durable_lsn >= self.journal.next_lsn - 1, what="the records to be stored")

    def checkpoint(self) -> None:
        self.settle()
        self.recorder.checkpoint("a", "test").result()

    def follower(self) -> Follower:
        environment = self.recorder.view(lambda found: found).result()
        return Follower(AgentReader(self.state, "a", environment=environment), AgentSettings())

    def fresh(self) -> Follower:
        follower = self.follower()
        assert follower.advance(math.inf)
        return follower


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path / "state")
    yield made
    made.recorder.stop()
    assert made.failures == []


def seen(follower: Follower) -> tuple[dict[str, Any], list[tuple[int, int]], int]:
    unanswered = [(request.first_lsn, request.attempts) for request in follower.unanswered]
    return dict(View(follower.blocks)), unanswered, follower.last_lsn


def test_a_follower_sees_what_is_appended_after_it_began(log: Log) -> None:
    log.effect(log.request(), {"x": 1})
    log.settle()
    follower = log.fresh()
    open_request = log.request()
    log.effect(log.request(), {"x": 2, "y": 1})
    log.settle()
    assert follower.advance(math.inf)
    assert seen(follower) == ({"x": 2, "y": 1}, [(open_request, 1)], log.journal.next_lsn - 1)


def test_a_checkpoint_that_it_has_passed_only_moves_its_base(log: Log) -> None:
    log.effect(log.request(), {"x": 1})
    log.settle()
    follower = log.fresh()
    log.checkpoint()
    log.effect(log.request(), {"y": 1})
    log.settle()
    records = follower.records
    assert follower.advance(math.inf)
    assert follower.records == records + 2
    assert seen(follower)[0] == {"x": 1, "y": 1}


def test_a_checkpoint_that_overtook_it_is_where_it_starts_again(log: Log) -> None:
    follower = log.fresh()
    for value in range(20):
        log.effect(log.request(), {"x": value})
    log.checkpoint()
    log.effect(log.request(), {"y": 1})
    log.settle()
    assert follower.advance(math.inf)
    assert follower.records == 2
    assert seen(follower)[0] == {"x": 19, "y": 1}


def test_a_request_that_was_open_at_the_checkpoint_is_found_with_its_steps_and_attempts(log: Log) -> None:
    first = log.request()
    log.append(Kind.STEP, wire.pack(["pay", 7]), ref=first)
    log.append(Kind.REQUEST, b"", ref=first)
    log.effect(log.request(), {"x": 1})
    log.checkpoint()
    (request,) = log.fresh().unanswered
    assert (request.first_lsn, request.attempts, request.steps) == (first, 2, {"pay": 7})
    assert wire.unpack(request.frame) == [1, "h", None, {}]


def test_a_read_only_request_is_never_delivered_again(log: Log) -> None:
    log.append(Kind.REQUEST, wire.pack([1, "h", None, {}]), flags=FLAG_READONLY)
    log.settle()
    assert log.fresh().unanswered == []


def test_replies_from_just_before_the_checkpoint_are_recalled(log: Log) -> None:
    log.effect(log.request(), {"x": 1}, request_id=b"i" * 16)
    log.checkpoint()
    follower = log.fresh()
    assert follower.answers.by_id(b"i" * 16) is None
    follower.recall()
    assert follower.answers.by_id(b"i" * 16) == (True, wire.pack("done"))


def test_a_slice_ends_in_time_and_the_next_goes_on(log: Log) -> None:
    for value in range(50):
        log.effect(log.request(), {"x": value})
        log.settle()
    follower = log.follower()
    slices = 1
    while not follower.advance(0):
        slices += 1
    assert slices > 10
    assert seen(follower) == seen(log.fresh())


actions = st.lists(st.sampled_from(["request", "effect", "open", "delete", "checkpoint", "look", "epoch"]), max_size=25)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=actions)
def test_following_ends_where_a_fresh_replay_does(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    log = Log(tmp_path_factory.mktemp("follow") / "state")
    log.request()  # an empty log has no checkpoint
    log.settle()
    follower = log.fresh()
    try:
        for number, step in enumerate(steps):
            if step == "request":
                log.effect(log.request(), {f"k{number % 3}": number})
            elif step == "delete":
                log.effect(log.request(), {f"k{number % 3}": None})
            elif step == "open":
                log.request()
            elif step == "checkpoint":
                log.checkpoint()
            elif step == "epoch":
                log.activate()
            elif step == "look":
                log.settle()
                follower.advance(math.inf)
        log.settle()
        assert follower.advance(math.inf)
        assert seen(follower) == seen(log.fresh())
    finally:
        log.recorder.stop()
