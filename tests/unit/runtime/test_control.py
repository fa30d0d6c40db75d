"""The control socket answers whoever may ask, and survives whatever is sent to it."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from orun.errors import NotFound
from orun.runtime import control
from orun.runtime.control import DEPTH_MAX, FRAME_BYTES_MAX, ControlServer
from orun.store.layout import socket_address


class Client:
    """A connection that may also send nonsense."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, body: bytes) -> None:
        self.writer.write(struct.pack("<I", len(body)) + body)

    async def receive(self) -> Any:
        (size,) = struct.unpack("<I", await self.reader.readexactly(4))
        return msgpack.unpackb(await self.reader.readexactly(size))

    async def ask(self, op: str, args: dict[str, Any] | None = None, seq: int = 1) -> Any:
        self.send(msgpack.packb([seq, op, args or {}]))
        return await self.receive()

    async def ended(self) -> bool:
        return await self.reader.read(1) == b""


class Bench:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.gate = asyncio.Event()
        self.clients: list[Client] = []
        self.server = ControlServer(
            path,
            {"echo": self.echo, "wait": self.wait, "missing": self.missing, "broken": self.broken, "big": self.big},
        )

    async def echo(self, args: dict[str, Any]) -> Any:
        return args

    async def wait(self, args: dict[str, Any]) -> Any:
        await self.gate.wait()
        return "waited"

    async def missing(self, args: dict[str, Any]) -> Any:
        raise NotFound("no checkpoint 7", hint="orun checkpoint list")

    async def broken(self, args: dict[str, Any]) -> Any:
        raise ZeroDivisionError("oops")

    async def big(self, args: dict[str, Any]) -> Any:
        return b"x" * (32 << 20)

    async def connect(self) -> Client:
        with socket_address(self.path) as address:
            client = Client(*await asyncio.open_unix_connection(address))
        self.clients.append(client)
        return client


def serve(path: Path, main: Callable[[Bench], Awaitable[None]]) -> None:
    async def run() -> None:
        bench = Bench(path)
        await bench.server.open()
        try:
            async with asyncio.timeout(20):
                await main(bench)
        finally:
            for client in bench.clients:
                client.writer.close()
            await bench.server.close()
        assert not path.exists()

    asyncio.run(run())


def test_operation_is_answered(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        client = await bench.connect()
        assert await client.ask("echo", {"a": [1, None, "é"]}, 5) == [5, True, {"a": [1, None, "é"]}]
        assert await client.ask("echo", {}, 6) == [6, True, {}]

    serve(tmp_path / "control.sock", main)


def test_only_the_owner_can_open_the_socket(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        assert bench.path.stat().st_mode & 0o777 == 0o600

    serve(tmp_path / "control.sock", main)


def test_other_users_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: Bench) -> None:
        monkeypatch.setattr(control, "_may_enter", lambda writer: False)
        client = await bench.connect()
        _, ok, body = await client.receive()
        assert not ok
        assert body["type"] == "forbidden"
        assert await client.ended()

    serve(tmp_path / "control.sock", main)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_peer_credentials_are_read_from_the_kernel(tmp_path: Path) -> None:
    left, right = socket.socketpair()

    class Writer:
        def get_extra_info(self, name: str) -> socket.socket:
            return left

    try:
        assert control._may_enter(Writer())  # type: ignore[arg-type]
        os.seteuid(65534)
        try:
            assert control._may_enter(Writer())  # type: ignore[arg-type]  # root may speak to any user's runtime
        finally:
            os.seteuid(0)
    finally:
        left.close()
        right.close()


def test_long_path_and_stale_socket_are_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    path = folder / "control.sock"
    stale = socket.socket(socket.AF_UNIX)
    with socket_address(path) as address:
        stale.bind(address)
    stale.close()

    async def main(bench: Bench) -> None:
        assert (await (await bench.connect()).ask("echo"))[1]

    serve(path, main)


def test_errors_carry_code_and_hint(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        client = await bench.connect()
        _, ok, body = await client.ask("missing")
        assert not ok
        assert body == {
            "type": "not_found",
            "message": "no checkpoint 7",
            "code": 10,
            "hint": "orun checkpoint list",
        }
        _, ok, body = await client.ask("ecko")
        assert not ok
        assert body["type"] == "unknown_op"
        assert body["hint"] == "Did you mean echo?"
        _, ok, body = await client.ask("broken")
        assert not ok
        assert body["type"] == "internal"
        assert (await client.ask("echo"))[1]

    serve(tmp_path / "control.sock", main)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


NONSENSE = [
    b"\xc1",
    b"",
    b"\x93\x01",
    msgpack.packb(7),
    msgpack.packb([1, "echo"]),
    msgpack.packb([1, 2, {}]),
    msgpack.packb([True, "echo", {}]),
    msgpack.packb([-1, "echo", {}]),
    msgpack.packb([1, "echo", []]),
    msgpack.packb([1, "echo", {"x": nested(DEPTH_MAX + 1)}]),
    b"\x91" * 5000,
    b"\xdd\xff\xff\xff\xff",
    b"\xa4\xff\xff\xff\xff",
]


@pytest.mark.parametrize("body", NONSENSE, ids=range(len(NONSENSE)))
def test_malformed_frame_is_answered_once_and_the_connection_closed(tmp_path: Path, body: bytes) -> None:
    async def main(bench: Bench) -> None:
        client = await bench.connect()
        client.send(body)
        seq, ok, error = await client.receive()
        assert (seq, ok, error["type"]) == (0, False, "bad_request")
        assert await client.ended()
        assert (await (await bench.connect()).ask("echo"))[1]

    serve(tmp_path / "control.sock", main)


def test_depth_up_to_the_limit_is_taken(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        value = {"x": nested(DEPTH_MAX - 2)}
        assert (await (await bench.connect()).ask("echo", value))[2] == value

    serve(tmp_path / "control.sock", main)


def test_too_large_frame_is_refused_unread(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        client = await bench.connect()
        client.writer.write(struct.pack("<I", FRAME_BYTES_MAX + 1))
        assert (await client.receive())[2]["type"] == "bad_request"
        assert await client.ended()

    serve(tmp_path / "control.sock", main)


def test_slow_clients_hold_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "FRAME_TIMEOUT_S", 0.2)

    async def main(bench: Bench) -> None:
        half = await bench.connect()
        half.writer.write(b"\x05\x00")
        silent = await bench.connect()
        unread = await bench.connect()
        unread.send(msgpack.packb([1, "big", {}]))
        waiting = await bench.connect()
        waiting.send(msgpack.packb([1, "wait", {}]))
        quick = await bench.connect()
        for seq in range(10):
            assert (await quick.ask("echo", seq=seq))[0] == seq
        bench.gate.set()
        assert (await waiting.receive())[2] == "waited"
        assert await half.ended()
        assert (await silent.ask("echo"))[1]
        # The one that does not read is cut off in the end; the others stay.
        while len(bench.server._clients) > 3:
            await asyncio.sleep(0.01)
        assert (await quick.ask("echo"))[1]

    serve(tmp_path / "control.sock", main)


def test_too_many_clients_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CLIENTS_MAX", 2)

    async def main(bench: Bench) -> None:
        for _ in range(2):
            assert (await (await bench.connect()).ask("echo"))[1]
        third = await bench.connect()
        _, ok, body = await third.receive()
        assert not ok
        assert body["type"] == "busy"
        assert body["retry_after"] == 1

    serve(tmp_path / "control.sock", main)
