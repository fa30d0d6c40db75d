"""The asyncio client of an agent: many requests in flight over one unix socket.

The client speaks to the worker directly; the runtime only owns the listening socket. When the worker dies
the socket stays open and its backlog waits for the successor, so a broken connection is opened again and
every unanswered request is sent once more with the same request id. The worker recognises the id and
answers from its journal what was already done: to the caller a crash is a slow reply, nothing else.

A frame is encoded once and kept until it is answered, for its number stays valid on the next connection.
Deadlines share one timer, set for the nearest: a timer for each request would cost more than the request.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, final

from orun import project
from orun.errors import DeadlineExceeded, NotRunning, OrunError, RequestFailed, UsageError
from orun.worker import wire

TIMEOUT_S: Final = 30.0
REPLY_BYTES_MAX: Final = 64 << 20
_PATH_BYTES_MAX: Final = 100
_PAUSE_S_MIN: Final = 0.002
_PAUSE_S_MAX: Final = 0.1


def connect(state_dir: str | os.PathLike[str] = ".orun", agent: str | None = None) -> Client:
    """A client for the agent that runs in this state directory; the connection is made by the first call."""
    folder = os.path.abspath(state_dir)
    agents = {entry["name"]: entry["socket"] for entry in project.read_runtime(folder)["agents"]}
    known = f"agents: {', '.join(sorted(agents)) or 'none'}"
    if agent is None:
        if len(agents) != 1:
            raise UsageError(f"{folder} runs {len(agents)} agents, so one must be named", hint=known)
        (agent,) = agents
    if agent not in agents:
        raise UsageError(f"no agent named {agent!r} in {folder}", hint=known)
    return Client(agents[agent], alive=lambda: project.running(folder) is not None)


def open_socket(path: str) -> socket.socket:
    """A connected, non-blocking unix socket. A path too long for the kernel is reached through its folder."""
    folder = -1
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if len(os.fsencode(path)) > _PATH_BYTES_MAX:
            folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            path = f"/proc/self/fd/{folder}/{os.path.basename(path)}"
        sock.setblocking(False)
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)
    return sock


class _Pending:
    """A request that waits for its reply."""

    __slots__ = ("deadline", "frame", "future")

    def __init__(self, frame: bytes, future: asyncio.Future[Any], deadline: float) -> None:
        self.frame = frame
        self.future = future
        self.deadline = deadline


class _Link(asyncio.Protocol):
    """One connection. Frames of one turn of the loop leave in one write."""

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop, limit_bytes: int) -> None:
        self._client = client
        self._loop = loop
        self._decoder = wire.Decoder(limit_bytes)
        self._out: list[bytes] = []
        self._scheduled = False
        self._paused = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._client._replied([wire.unpack(body) for body in self._decoder.feed(data)])
        except wire.BadFrame as error:
            self._client._fail(OrunError, f"the worker's reply cannot be read: {error}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._client._lost(self)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def send(self, frame: bytes) -> None:
        self._out.append(frame)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self._out and not self._paused and self.transport is not None:
            self.transport.write(b"".join(self._out))
            self._out.clear()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


@final
class Client:
    """Calls the handlers of one agent. Belongs to the event loop of its first call."""

    def __init__(
        self,
        socket_path: str,
        *,
        alive: Callable[[], bool] = lambda: True,
        retry_busy: bool = True,
        reply_bytes_max: int = REPLY_BYTES_MAX,
    ) -> None:
        self._path = socket_path
        self._runtime_alive = alive
        self._retry_busy = retry_busy
        self._reply_bytes_max = reply_bytes_max
        self._pending: dict[int, _Pending] = {}
        self._seq = 0
        self._nonce = os.urandom(8)
        self._link: _Link | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fruitless = 0
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def call(
        self, handler: str, payload: Any = None, *, key: str | None = None, timeout: float | None = None
    ) -> Any:
        """Ask a handler and return its reply.

        Raises DeadlineExceeded when there is none in time, NotRunning when the runtime is gone, and
        RequestFailed with the structured error of anything else. A repeated ``key`` gets the reply of its
        first request.
        """
        seconds = TIMEOUT_S if timeout is None else timeout
        options = {"id": self._new_id(), "deadline_ms": int((time.time() + seconds) * 1000)}
        if key is not None:
            options["key"] = key
        return await self._request([handler, payload, options], handler, seconds)

    async def control(self, op: str, args: dict[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        """Ask for an operation, on a client whose socket is the runtime's control socket."""
        return await self._request([op, args or {}], op, TIMEOUT_S if timeout is None else timeout)

    async def close(self) -> None:
        """Close the connection; requests under way fail."""
        self._closed = True
        self._fail(OrunError, "the client was closed")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._link is not None:
            self._link.close()
            self._link = None
            await asyncio.sleep(0)  # The transport lets go of its socket in the next turn of the loop.

    async def _request(self, parts: list[Any], name: str, seconds: float) -> Any:
        if self._closed:
            raise OrunError("the client was closed")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            ok, body = await self._exchange(loop, parts, name, deadline)
            if ok:
                return body
            error = body if isinstance(body, dict) else {"type": "handler_error", "message": str(body)}
            if error.get("type") == "deadline_exceeded":
                raise DeadlineExceeded(str(error.get("message")), hint=error.get("hint"))
            pause = self._pause(error)
            if pause is None or loop.time() + pause >= deadline:
                raise RequestFailed(error)
            await asyncio.sleep(pause)

    async def _exchange(
        self, loop: asyncio.AbstractEventLoop, parts: list[Any], name: str, deadline: float
    ) -> tuple[bool, Any]:
        self._seq = seq = self._seq + 1
        try:
            frame = wire.encode([seq, *parts])
        except (TypeError, ValueError, OverflowError) as error:
            why = "an integer has more than 64 bits" if isinstance(error, OverflowError) else error
            message = f"the payload for {name!r} cannot be encoded: {why}"
            raise RequestFailed(wire.error_body("bad_request", message)) from error
        future: asyncio.Future[Any] = loop.create_future()
        self._pending[seq] = _Pending(frame, future, deadline)
        if self._timer is None or deadline < self._timer.when():
            self._watch(loop, deadline)
        if self._link is not None:
            self._link.send(frame)
        else:
            self._connect(loop)
        try:
            return await future  # type: ignore[no-any-return]
        except TimeoutError:
            raise DeadlineExceeded(f"no reply to {name!r} in time") from None
        finally:
            self._pending.pop(seq, None)

    def _pause(self, error: dict[str, Any]) -> float | None:
        """Seconds until the request may be sent again; None when it may not."""
        kind, retry_after = error.get("type"), error.get("retry_after")
        again = (kind == "busy" and self._retry_busy) or kind == "unavailable"
        if not again or not isinstance(retry_after, int | float):
            return None
        # Up to half as long again, so that many callers do not come back at once.
        return max(0.001, float(retry_after)) * random.uniform(1.0, 1.5)

    def _new_id(self) -> bytes:
        return self._nonce + (self._seq + 1).to_bytes(8, "big")

    def _replied(self, replies: list[Any]) -> None:
        self._fruitless = 0
        pending = self._pending
        for reply in replies:
            try:
                seq, ok, body = reply
                request = pending.pop(seq, None)
            except (TypeError, ValueError) as error:
                raise wire.BadFrame("not a list of number, outcome and body") from error
            if request is not None and not request.future.done():
                request.future.set_result((ok, body))
            elif seq == 0:
                self._refused(body)

    def _refused(self, error: Any) -> None:
        """A refusal of the connection (number 0): a frame was too large to be read, so its number is unknown."""
        largest = max(self._pending.values(), key=lambda request: len(request.frame), default=None)
        if largest is not None and not largest.future.done():
            largest.future.set_result((False, error))

    def _lost(self, link: _Link) -> None:
        if link is not self._link:
            return
        self._link = None
        self._fruitless += 1
        if self._pending and not self._closed:
            self._connect(asyncio.get_running_loop())

    def _fail(self, kind: type[OrunError], message: str) -> None:
        requests = list(self._pending.values())
        self._pending.clear()
        for request in requests:
            if not request.future.done():
                request.future.set_exception(kind(message))

    def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._connecting is None:
            self._connecting = loop.create_task(self._connected(loop))
            self._connecting.add_done_callback(self._connect_done)

    def _connect_done(self, task: asyncio.Task[None]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.result()

    async def _connected(self, loop: asyncio.AbstractEventLoop) -> None:
        """Connect, however often it takes while somebody waits and the runtime lives; then send what waits."""
        while self._pending:
            # The first attempt after a loss is made at once: a restarted worker is there within milliseconds.
            if self._fruitless > 1:
                pause = min(_PAUSE_S_MIN * 2 ** min(self._fruitless, 10), _PAUSE_S_MAX)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            try:
                sock = open_socket(self._path)
            except OSError as error:
                self._fruitless += 1
                if not self._runtime_alive():
                    self._fail(NotRunning, f"the runtime is gone: {self._path}: {error.strerror}")
                continue
            _, link = await loop.create_unix_connection(lambda: _Link(self, loop, self._reply_bytes_max), sock=sock)
            if link.transport is None:
                self._fruitless += 1
                continue
            self._link = link
            for request in self._pending.values():
                link.send(request.frame)
            return

    def _watch(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(deadline, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time() + 0.001  # A timer may fire within the resolution of the clock before its time.
        for request in self._pending.values():
            if request.deadline <= now and not request.future.done():
                request.future.set_exception(TimeoutError())
        waiting = [request.deadline for request in self._pending.values() if not request.future.done()]
        if waiting:
            self._watch(loop, min(waiting))
