"""Clients that misbehave: garbage, floods, silence, greed. None of them keeps the agent from the others."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orun.worker import wire
from orun.worker.client import connect
from tests.support import Orun, orun_in, wait_until

ECHO = """
from orun import Agent
agent = Agent("echo")

@agent.handler(readonly=True)
def echo(state, request):
    return request

@agent.handler(readonly=True)
def big(state, request):
    return "x" * request["bytes"]

@agent.handler
def add(state, request):
    state["n"] = state.get("n", 0) + 1
    return state["n"]
"""
FUZZED = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orun]:
    with orun_in(tmp_path_factory.mktemp("echo")) as orun:
        orun.start(str(orun.write(ECHO)), "--http", "127.0.0.1:0")
        yield orun


@pytest.fixture(scope="module")
def sockets(echo: Orun) -> dict[str, str]:
    return {"agent": echo.agent()["socket"], "control": str(echo.state_dir / "run" / "control.sock")}


def frame(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


def dial(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(path)
    return connection


def read_reply(connection: socket.socket) -> Any:
    data = b""
    while len(data) < 4 or len(data) < 4 + struct.unpack_from("<I", data)[0]:
        piece = connection.recv(1 << 20)
        if not piece:
            return None
        data += piece
    return wire.unpack(data[4 : 4 + struct.unpack_from("<I", data)[0]])


def is_well(orun: Orun, path: str) -> None:
    with dial(path) as connection:
        connection.sendall(frame(wire.pack([1, "echo", "well", {}])))
        assert read_reply(connection) == [1, True, "well"]


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(SCALARS, inner, max_size=5), max_leaves=20
)
NAMES = st.sampled_from(["echo", "add", "status", "stop_", "$describe", "$x", "", "wal_show", "checkpoint_show"])
OPTIONS = st.dictionaries(st.sampled_from(["id", "key", "deadline_ms", "x"]) | SCALARS, VALUES, max_size=4)
REQUESTS = st.one_of(
    VALUES,
    st.tuples(SCALARS, NAMES | SCALARS, VALUES, OPTIONS | VALUES).map(list),
    st.tuples(st.integers(0, 99), NAMES, VALUES, OPTIONS).map(list),
    st.tuples(st.integers(0, 99), NAMES, st.dictionaries(st.text(max_size=8), VALUES)).map(list),
)


@FUZZED
@given(REQUESTS, st.sampled_from(["agent", "control"]))
def test_any_value_gets_a_reply_or_an_error(sockets: dict[str, str], echo: Orun, request: Any, where: str) -> None:
    with dial(sockets[where]) as connection:
        with suppress(BrokenPipeError):
            connection.sendall(frame(wire.pack(request)))
        connection.shutdown(socket.SHUT_WR)
        reply = read_reply(connection)
        assert reply is None or (isinstance(reply, list) and len(reply) == 3), reply
        assert reply is None or reply[1] or {"type", "message"} <= set(reply[2]), reply


@FUZZED
@given(st.binary(max_size=200), st.sampled_from(["agent", "control"]), st.booleans())
def test_any_bytes_are_survived(sockets: dict[str, str], echo: Orun, data: bytes, where: str, framed: bool) -> None:
    with dial(sockets[where]) as connection, suppress(ConnectionError):
        connection.sendall(frame(data) if framed else data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass


def test_the_agent_is_well_after_all_that(sockets: dict[str, str], echo: Orun) -> None:
    """The same worker, no traceback in any log."""
    is_well(echo, sockets["agent"])
    agent = echo.agent()
    assert agent["restarts"] == 0
    for log in (echo.state_dir / "logs").iterdir():
        assert "Traceback" not in log.read_text(errors="replace"), log


def test_a_hundred_megabytes_on_the_socket_are_refused(sockets: dict[str, str], echo: Orun) -> None:
    size = 100_000_000
    for where in ("agent", "control"):
        with dial(sockets[where]) as connection:
            with suppress(ConnectionError):
                connection.sendall(struct.pack("<I", size))
                for _ in range(100):
                    connection.sendall(bytes(1_000_000))
            with suppress(ConnectionError):
                reply = read_reply(connection)
                assert reply is None or reply[2]["type"] in ("too_large", "bad_request")
    is_well(echo, sockets["agent"])


def test_a_thousand_idle_connections_harm_nobody(sockets: dict[str, str], echo: Orun) -> None:
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(dial(sockets["agent"]))
        # Half of them have said the beginning of something.
        is_well(echo, sockets["agent"])
        assert echo.call("add") >= 1
        for _ in range(100):
            stack.enter_context(dial(sockets["control"]))
        refused = echo.run("status")
        assert refused.returncode == 1
        assert "64 clients are connected" in refused.stderr
    wait_until(lambda: echo.run("status").returncode == 0, what="the control socket to be free")
    is_well(echo, sockets["agent"])


def test_a_client_that_never_reads_is_not_read_from_either(sockets: dict[str, str], echo: Orun) -> None:
    """Its replies would fill the memory; the others are served meanwhile."""
    before = memory(echo)
    with dial(sockets["agent"]) as greedy:
        greedy.settimeout(0.3)
        sent = 0
        with suppress(TimeoutError):
            while sent < 2000:
                greedy.sendall(frame(wire.pack([sent, "big", {"bytes": 500_000}, {}])))
                sent += 1
        assert sent < 2000
        is_well(echo, sockets["agent"])
        assert memory(echo) - before < 200 << 20
    wait_until(lambda: memory(echo) - before < 64 << 20, what="its memory to be free again")


def memory(orun: Orun) -> int:
    with open(f"/proc/{orun.agent()['pid']}/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_client_that_sends_byte_by_byte_is_served(sockets: dict[str, str], echo: Orun) -> None:
    message = frame(wire.pack([3, "echo", {"slow": True}, {}]))
    with dial(sockets["agent"]) as connection:
        for byte in message:
            connection.sendall(bytes([byte]))
            time.sleep(0.001)
        assert read_reply(connection) == [3, True, {"slow": True}]


def test_clients_that_vanish_leave_nothing_behind(sockets: dict[str, str], echo: Orun) -> None:
    for _ in range(200):
        with dial(sockets["agent"]) as connection:
            connection.sendall(frame(wire.pack([1, "big", {"bytes": 100_000}, {}])))

    async def after() -> Any:
        async with connect(str(echo.state_dir)) as client:
            return await client.call("echo", 1)

    assert asyncio.run(after()) == 1
    assert echo.agent()["restarts"] == 0
