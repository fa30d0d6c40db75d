"""The control socket: status, stop, reload and the like, as frames of MessagePack on a unix socket.

A frame is a u32 little-endian length and one value: ``[seq, op, args]`` is answered by
``[seq, ok, body]``. Only the user who runs orun, and root, get an answer. Each connection is served by a task
of its own, one request after the other; nothing that a client sends or fails to read holds up another.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from orun.errors import OrunError
from orun.store.layout import socket_address
from orun.worker.wire import BadFrame, encode, unpack

log = logging.getLogger("orun.control")

Operation = Callable[[dict[str, Any]], Awaitable[Any]]

FRAME_BYTES_MAX: Final = 1 << 20
DEPTH_MAX: Final = 32
CLIENTS_MAX: Final = 64
IDLE_TIMEOUT_S: Final = 60.0
"""A client that asks nothing for so long is hung up on, so that it takes nobody's place."""
FRAME_TIMEOUT_S: Final = 10.0
"""A frame that has begun must arrive, and a reply must be taken, within this time."""

_LENGTH: Final = struct.Struct("<I")
_CREDENTIALS: Final = struct.Struct("3i")


class ControlServer:
    """Serves the operations in ``operations`` at ``path`` until it is closed."""

    def __init__(self, path: Path, operations: Mapping[str, Operation]) -> None:
        self.path = path
        self._operations = operations
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen. A socket file that is there already is a dead runtime's: whoever calls holds the lock."""
        listener = listen(self.path)
        self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=FRAME_BYTES_MAX)

    async def close(self) -> None:
        """Stop listening; requests under way are cut off."""
        if self._server is not None:
            self._server.close()
            self.path.unlink(missing_ok=True)
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if len(self._clients) > CLIENTS_MAX:
                await _reply(writer, 0, error("busy", f"{CLIENTS_MAX} clients are connected", retry_after=1))
            elif not _may_enter(writer):
                await _reply(writer, 0, error("forbidden", "this runtime belongs to another user"))
            else:
                await self._serve(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as trouble:
            log.debug("a client is gone: %r", trouble)
        finally:
            self._clients.discard(task)
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()
            else:
                writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while first := await _next_byte(reader):
            try:
                async with asyncio.timeout(FRAME_TIMEOUT_S):
                    seq, op, args = parse(await _read_body(reader, first))
            except BadFrame as bad:
                await _reply(writer, 0, error("bad_request", str(bad)))
                return
            await _reply(writer, seq, await self._perform(op, args))

    async def _perform(self, op: str, args: dict[str, Any]) -> tuple[bool, Any]:
        operation = self._operations.get(op)
        if operation is None:
            near = difflib.get_close_matches(op, self._operations, 1)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(sorted(self._operations))}."
            return error("unknown_op", f"there is no operation {op[:100]!r}", hint=hint, code=2)
        try:
            return True, await operation(args)
        except OrunError as trouble:
            name = re.sub(r"(?<=.)([A-Z])", r"_\1", type(trouble).__name__).lower()
            return error(name, trouble.message, hint=trouble.hint, code=trouble.code)
        except Exception as trouble:
            log.exception("operation %s", op)
            return error("internal", f"{op}: {type(trouble).__name__}: {trouble}", hint="See runtime.log.")


def error(
    type: str, message: str, *, hint: str | None = None, code: int = 1, retry_after: float | None = None
) -> tuple[bool, dict[str, Any]]:
    """A refusal as it goes over the wire."""
    body: dict[str, Any] = {"type": type, "message": message, "code": code}
    if hint is not None:
        body["hint"] = hint
    if retry_after is not None:
        body["retry_after"] = retry_after
    return False, body


def listen(path: Path, *, backlog: int = 128) -> socket.socket:
    """A listening unix socket that only its owner can open, from the first moment on."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # The file takes its mode from the socket's, so there is no moment in which others could connect.
        os.fchmod(listener.fileno(), 0o600)
        with socket_address(path) as address:
            listener.bind(address)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def parse(body: bytes) -> tuple[int, str, dict[str, Any]]:
    """A request's number, operation and arguments; BadFrame when it is none."""
    message = unpack(body)
    match message:
        case [int() as seq, str() as op, dict() as args] if not isinstance(seq, bool) and 0 <= seq < 1 << 63:
            if _too_deep(args):
                raise BadFrame(f"nested deeper than {DEPTH_MAX}")
            return seq, op, args
    raise BadFrame("a request is [seq, op, args]: a number, a text and a map")


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEPTH_MAX):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return False
        level = inner
    return True


async def _next_byte(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(IDLE_TIMEOUT_S):
        return await reader.read(1)


async def _read_body(reader: asyncio.StreamReader, first: bytes) -> bytes:
    (size,) = _LENGTH.unpack(first + await reader.readexactly(_LENGTH.size - 1))
    if size > FRAME_BYTES_MAX:
        raise BadFrame(f"a frame of {size} bytes; at most {FRAME_BYTES_MAX} are taken")
    return await reader.readexactly(size)


async def _reply(writer: asyncio.StreamWriter, seq: int, answer: tuple[bool, Any]) -> None:
    # The buffer is empty before the next request is read, so a client that does not read costs one reply.
    writer.transport.set_write_buffer_limits(0)
    writer.write(encode([seq, *answer]))
    async with asyncio.timeout(FRAME_TIMEOUT_S):
        await writer.drain()


def _may_enter(writer: asyncio.StreamWriter) -> bool:
    connection = writer.get_extra_info("socket")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(credentials)
    return uid in (0, os.geteuid())
