"""Shared pages."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from orun.engine import _abi, pages
from orun.engine.pages import SLOTS, AgentPage
from orun.errors import Damaged
from tests.support import wait_until


@pytest.fixture
def page() -> Iterator[AgentPage]:
    made = AgentPage.create()
    yield made
    made.close()


def test_the_slots_are_those_of_the_engine() -> None:
    for name, index in SLOTS.items():
        assert _abi.ffi.offsetof("Page", name) == 64 + 8 * index
        assert name in vars(AgentPage)
    assert _abi.ffi.sizeof("Page") == pages.PAGE_BYTES
    assert _abi.ffi.offsetof("Page", "latency_buckets") == 1024


def test_another_process_sees_what_is_written(page: AgentPage) -> None:
    page.requests = 5
    child = os.fork()
    if child == 0:
        attached = AgentPage.attach(page.fd)
        attached.requests += 2
        attached.slots[SLOTS["phase"]] = 2**64 - 1
        attached.record_latency(1000)
        attached.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert page.requests == 7
    assert page.phase == 2**64 - 1
    assert page.latency_count == 1


def test_quantiles_are_at_most_three_per_cent_too_high(page: AgentPage) -> None:
    assert page.quantile(0.5) == 0
    for value in range(1, 1001):
        page.record_latency(value * 1000)
    for q in (0.01, 0.5, 0.9, 0.99, 1.0):
        exact = q * 1_000_000
        assert exact <= page.quantile(q) <= exact * 1.032
    assert page.latency_sum == 500_500_000
    assert page.latency_max == 1_000_000
    assert sum(count for _, count in page.buckets()) == 1000
    largest, _ = page.buckets()[-1]
    assert largest >= 1_000_000
    page.reset()
    assert (page.latency_count, page.buckets()) == (0, [])


def test_the_ticker_needs_no_gil_and_stops(page: AgentPage) -> None:
    worker = AgentPage.attach(page.fd)
    worker.start_ticker(interval_ms=1)
    first = wait_until(lambda: page.native_ns)
    assert abs(time.monotonic_ns() - first) < 10**9
    wait_until(lambda: page.native_ns > first)
    worker.close()
    last = page.native_ns
    successor = AgentPage.attach(page.fd)
    successor.start_ticker(interval_ms=1)
    wait_until(lambda: page.native_ns > last, what="a successor's tick on the same page")
    successor.close()


def test_a_page_cannot_be_made_smaller(page: AgentPage) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(page.fd, 0)


def test_a_descriptor_that_is_no_page() -> None:
    descriptor = os.memfd_create("other")
    with pytest.raises(Damaged):
        AgentPage.attach(descriptor)
    os.ftruncate(descriptor, pages.PAGE_BYTES)
    with pytest.raises(Damaged):
        AgentPage.attach(descriptor)
    os.close(descriptor)
