"""The far end of the wire protocol, for tests of what speaks to a worker: real sockets, scripted answers."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orun.worker import wire


@dataclass
class Received:
    seq: int
    handler: str
    payload: Any
    options: dict[str, Any]
    connection: Connection

    def reply(self, body: Any, ok: bool = True) -> None:
        self.connection.send(wire.encode([self.seq, ok, body]))


Answer = Callable[[Received], None]


def echo(request: Received) -> None:
    request.reply(request.payload)


class Connection(asyncio.Protocol):
    def __init__(self, far_end: FarEnd) -> None:
        self.far_end = far_end
        self.decoder = wire.Decoder(64 << 20)
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.far_end.connections.append(self)

    def data_received(self, data: bytes) -> None:
        for body in self.decoder.feed(data):
            seq, handler, payload, *options = wire.unpack(body)
            request = Received(seq, handler, payload, options[0] if options else {}, self)
            self.far_end.received.append(request)
            self.far_end.answers.get(handler, echo)(request)

    def send(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def drop(self) -> None:
        """What a caller sees when the worker dies."""
        if self.transport is not None:
            self.transport.abort()

    def drop_after_write(self) -> None:
        """Close once everything written has left."""
        if self.transport is not None:
            self.transport.close()


def listen(path: Path) -> socket.socket:
    """The listening socket as the runtime holds it: it outlives every worker."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    sock.listen(128)
    return sock


@dataclass
class FarEnd:
    """One worker's life. ``answers`` maps a handler to what is done with its requests; the others are echoed."""

    answers: dict[str, Answer] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    server: asyncio.Server | None = None

    async def start(self, listening: socket.socket) -> None:
        self.server = await asyncio.get_running_loop().create_unix_server(
            lambda: Connection(self), sock=listening.dup()
        )

    def die(self) -> None:
        """Drop every connection; the listening socket stays open."""
        assert self.server is not None
        self.server.close()
        for connection in self.connections:
            connection.drop()


class FarEndThread:
    """A far end on a loop of its own, for tests that block."""

    def __init__(self, path: Path, answers: dict[str, Answer]) -> None:
        self.path = path
        self.listening = listen(path)
        self.far_end = FarEnd(answers)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._do(self.far_end.start(self.listening))

    def restart(self, pause: Callable[[], None] = lambda: None) -> None:
        """Die as a worker does, let ``pause`` run, and come back."""
        self._do(self._die())
        pause()
        self._do(self.far_end.start(self.listening))

    def reply(self, request: Received, body: Any) -> None:
        self._loop.call_soon_threadsafe(request.reply, body)

    def stop(self) -> None:
        self._do(self._die())
        self._do(asyncio.sleep(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.listening.close()

    async def _die(self) -> None:
        self.far_end.die()
        await asyncio.sleep(0)

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)
