"""The asyncio client against real sockets: what a caller sees when the worker is slow, busy, broken or gone."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from orun.errors import DeadlineExceeded, NotFound, NotRunning, OrunError, RequestFailed, UsageError
from orun.worker import wire
from orun.worker.client import Client, connect
from tests.unit.worker.far_end import Answer, FarEnd, Received, listen


def hold(request: Received) -> None:
    """Never answer."""


@asynccontextmanager
async def worker(folder: Path, **answers: Answer) -> AsyncIterator[tuple[FarEnd, str]]:
    listening = listen(folder / "a.sock")
    far_end = FarEnd(dict(answers))
    await far_end.start(listening)
    try:
        yield far_end, str(folder / "a.sock")
    finally:
        far_end.die()
        listening.close()
        await asyncio.sleep(0)


async def until(far_end: FarEnd, count: int) -> None:
    async with asyncio.timeout(5):
        while len(far_end.received) < count:
            await asyncio.sleep(0.001)


def test_replies_in_any_order_reach_their_callers(tmp_path: Path) -> None:
    waiting: list[Received] = []

    def backwards(request: Received) -> None:
        waiting.append(request)
        if len(waiting) == 200:
            for held in reversed(waiting):
                held.reply(held.payload * 10)

    async def scenario() -> None:
        async with worker(tmp_path, back=backwards) as (far_end, path), Client(path) as client:
            assert await asyncio.gather(*(client.call("back", n) for n in range(200))) == [n * 10 for n in range(200)]
            assert len(far_end.connections) == 1
            assert len({request.options["id"] for request in far_end.received}) == 200
            assert all(len(request.options["id"]) == 16 for request in far_end.received)

    asyncio.run(scenario())


def test_worker_restart_is_a_slow_reply_with_the_same_request_id(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path, add=hold) as (far_end, path), Client(path) as client:
            calls = [asyncio.ensure_future(client.call("add", n, key=f"k{n}")) for n in range(3)]
            await until(far_end, 3)
            far_end.answers.clear()
            far_end.connections[0].drop()
            assert await asyncio.gather(*calls) == [0, 1, 2]
            first, again = far_end.received[:3], far_end.received[3:]
            assert [(r.seq, r.payload, r.options) for r in first] == [(r.seq, r.payload, r.options) for r in again]
            assert first[1].options["key"] == "k1"

    asyncio.run(scenario())


def test_call_waits_in_the_backlog_while_no_worker_accepts(tmp_path: Path) -> None:
    async def scenario() -> None:
        listening = listen(tmp_path / "a.sock")
        far_end = FarEnd()
        async with Client(str(tmp_path / "a.sock")) as client:
            call = asyncio.ensure_future(client.call("add", 1))
            assert await asyncio.wait({call}, timeout=0.02) == (set(), {call})
            await far_end.start(listening)
            assert await call == 1
            far_end.die()
        listening.close()
        await asyncio.sleep(0)

    asyncio.run(scenario())


def test_restarting_runtime_is_waited_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Client(str(tmp_path / "a.sock"), alive=lambda: True) as client:
            call = asyncio.ensure_future(client.call("add", 1))
            assert await asyncio.wait({call}, timeout=0.02) == (set(), {call})
            async with worker(tmp_path):
                assert await call == 1

    asyncio.run(scenario())


def test_runtime_that_is_gone_ends_every_call(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path, add=hold) as (far_end, path), Client(path, alive=lambda: False) as client:
            calls = [asyncio.ensure_future(client.call("add", n)) for n in range(2)]
            await until(far_end, 2)
            os.unlink(path)
            far_end.connections[0].drop()
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(outcome, NotRunning)

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["busy", "unavailable"])
def test_busy_worker_is_asked_again_with_the_same_id(tmp_path: Path, kind: str) -> None:
    refusals = iter([True, True, False])

    def sometimes(request: Received) -> None:
        if next(refusals):
            request.reply({"type": kind, "message": "later", "retry_after": 0.002}, ok=False)
        else:
            request.reply("done")

    async def scenario() -> None:
        async with worker(tmp_path, add=sometimes) as (far_end, path), Client(path) as client:
            assert await client.call("add", 1) == "done"
            assert len({request.options["id"] for request in far_end.received}) == 1
            assert len(far_end.received) == 3

    asyncio.run(scenario())


@pytest.mark.parametrize(("retry_busy", "retry_after"), [(False, 0.001), (True, 60)])
def test_busy_is_reported_when_waiting_is_no_use(tmp_path: Path, retry_busy: bool, retry_after: float) -> None:
    error = {"type": "busy", "message": "full", "retry_after": retry_after}

    async def scenario() -> None:
        async with (
            worker(tmp_path, add=lambda request: request.reply(error, ok=False)) as (far_end, path),
            Client(path, retry_busy=retry_busy) as client,
        ):
            with pytest.raises(RequestFailed) as caught:
                await client.call("add", 1, timeout=5)
            assert caught.value.error == error
            assert len(far_end.received) == 1

    asyncio.run(scenario())


def test_unanswered_calls_end_at_their_own_deadlines(tmp_path: Path) -> None:
    async def timed(client: Client, seconds: float) -> float:
        start = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded):
            await client.call("add", 1, timeout=seconds)
        return asyncio.get_running_loop().time() - start

    async def scenario() -> None:
        async with worker(tmp_path, add=hold) as (_, path), Client(path) as client:
            later = asyncio.ensure_future(timed(client, 0.15))
            sooner = asyncio.ensure_future(timed(client, 0.03))
            assert 0.02 < await sooner < 0.14 < await later
            assert await client.call("other", 7) == 7

    asyncio.run(scenario())


def test_deadline_is_told_to_the_worker_and_may_come_back_from_it(tmp_path: Path) -> None:
    def refuse(request: Received) -> None:
        request.reply({"type": "deadline_exceeded", "message": "too late", "hint": "sooner"}, ok=False)

    async def scenario() -> None:
        async with worker(tmp_path, add=refuse) as (far_end, path), Client(path) as client:
            with pytest.raises(DeadlineExceeded, match="too late") as caught:
                await client.call("add", 1, timeout=2)
            assert caught.value.hint == "sooner"
            assert isinstance(far_end.received[0].options["deadline_ms"], int)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("payload", "complaint"), [(object(), "object"), (1 << 64, "64 bits"), ("\ud800", "surrogates")]
)
def test_payload_without_encoding_harms_nothing_else(tmp_path: Path, payload: Any, complaint: str) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as (_, path), Client(path) as client:
            with pytest.raises(RequestFailed, match=complaint) as caught:
                await client.call("add", payload)
            assert caught.value.error["type"] == "bad_request"
            assert await client.call("add", 1) == 1

    asyncio.run(scenario())


def test_error_of_the_worker_arrives_whole(tmp_path: Path) -> None:
    error = {"type": "handler_error", "message": "boom", "where": "agent.py:3", "hint": "mend it"}

    async def scenario() -> None:
        async with (
            worker(tmp_path, add=lambda request: request.reply(error, ok=False)) as (_, path),
            Client(path) as client,
        ):
            with pytest.raises(RequestFailed, match="boom") as caught:
                await client.call("add", 1)
            assert caught.value.error == error
            assert caught.value.hint == "mend it"

    asyncio.run(scenario())


def test_refused_frame_fails_the_largest_request_only(tmp_path: Path) -> None:
    def refuse(request: Received) -> None:
        error = {"type": "too_large", "message": "over the limit"}
        request.connection.send(wire.encode([0, False, error]))
        request.connection.drop_after_write()

    async def scenario() -> None:
        async with worker(tmp_path, small=hold, large=refuse) as (far_end, path), Client(path) as client:
            small = asyncio.ensure_future(client.call("small", 1))
            await until(far_end, 1)
            far_end.answers["small"] = lambda request: request.reply("served")
            with pytest.raises(RequestFailed, match="over the limit"):
                await client.call("large", "x" * 100_000)
            assert await small == "served"

    asyncio.run(scenario())


def test_large_payload_passes_a_slow_reader(tmp_path: Path) -> None:
    payload = os.urandom(8 << 20)

    async def scenario() -> None:
        async with worker(tmp_path) as (_, path), Client(path) as client:
            assert await asyncio.gather(client.call("add", payload), client.call("add", 1)) == [payload, 1]

    asyncio.run(scenario())


@pytest.mark.parametrize("data", [b"\x01\x00\x00\x00\xc1", wire.encode("text"), wire.encode([1]), b"\xff\xff\xff\xff"])
def test_reply_that_cannot_be_read_fails_the_call(tmp_path: Path, data: bytes) -> None:
    async def scenario() -> None:
        async with (
            worker(tmp_path, add=lambda request: request.connection.send(data)) as (_, path),
            Client(path) as client,
        ):
            with pytest.raises(OrunError, match="cannot be read"):
                await client.call("add", 1)
            assert await client.call("other", 1) == 1

    asyncio.run(scenario())


def test_cancelled_call_leaves_the_others_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path, add=hold) as (far_end, path), Client(path) as client:
            call = asyncio.ensure_future(client.call("add", 1))
            await until(far_end, 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            far_end.received[0].reply("too late")
            assert await client.call("other", 2) == 2

    asyncio.run(scenario())


def test_closing_fails_what_is_under_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path, add=hold) as (far_end, path):
            client = Client(path)
            call = asyncio.ensure_future(client.call("add", 1))
            await until(far_end, 1)
            await client.close()
            with pytest.raises(OrunError, match="closed"):
                await call
            with pytest.raises(OrunError, match="closed"):
                await client.call("add", 1)

    asyncio.run(scenario())


def test_control_requests_have_three_parts(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path) as (far_end, path), Client(path) as client:
            assert await client.control("status", {"a": 1}) == {"a": 1}
            assert far_end.received[0].options == {}

    asyncio.run(scenario())


def test_socket_path_longer_than_the_kernel_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("long-folder-name-" * 8)
    folder.mkdir()
    monkeypatch.chdir(folder)

    async def scenario() -> None:
        listening = listen(Path("a.sock"))
        far_end = FarEnd()
        await far_end.start(listening)
        async with Client(str(folder / "a.sock")) as client:
            assert await client.call("add", 1) == 1
        far_end.die()
        listening.close()
        await asyncio.sleep(0)

    asyncio.run(scenario())


def _describe(folder: Path, pid: int, *names: str) -> None:
    (folder / "run").mkdir()
    agents = [{"name": name, "socket": str(folder / "a.sock"), "handlers": ["add"]} for name in names]
    (folder / "run" / "runtime.json").write_text(json.dumps({"schema": 1, "pid": pid, "agents": agents}))


def test_connect_finds_the_agent_of_a_state_directory(tmp_path: Path) -> None:
    _describe(tmp_path, os.getpid(), "one")

    async def scenario() -> None:
        async with worker(tmp_path), connect(tmp_path) as client, connect(tmp_path, "one") as named:
            assert await client.call("add", 1) == await named.call("add", 1)

    asyncio.run(scenario())


def test_connect_says_why_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        connect(tmp_path / "nowhere")
    with pytest.raises(NotRunning):
        connect(tmp_path)
    _describe(tmp_path, os.getpid(), "one", "two")
    with pytest.raises(UsageError, match="must be named") as caught:
        connect(tmp_path)
    assert caught.value.hint == "agents: one, two"
    with pytest.raises(UsageError, match="'three'"):
        connect(tmp_path, "three")


def test_connect_notices_a_runtime_that_died_without_tidying_up(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    _describe(tmp_path, gone.pid, "one")
    with pytest.raises(NotRunning):
        connect(tmp_path)
