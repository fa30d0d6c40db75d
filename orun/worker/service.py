"""The worker's front door: connections on the socket that the runtime opened, and what may pass.

The listening socket belongs to the runtime and outlives the worker, so a dying worker refuses no
connection. A request is parsed, checked, recognised if it was sent before, and queued; anything else is
answered with a structured error. Replies are collected per connection and written once per turn of the
loop, which is what lets many requests in flight share a system call.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from typing import Any, cast, final

from orun.settings import AgentSettings
from orun.store.records import Kind
from orun.worker import wire
from orun.worker.agent import Agent
from orun.worker.executor import Executor
from orun.worker.replay import Unanswered
from orun.worker.requests import Answers, Envelope, Refused, Request, did_you_mean, parse

OUTPUT_BYTES_MAX = 8 << 20
"""A client that does not read its replies is not read from either, beyond so much waiting for it."""
BUSY_RETRY_S = 0.05


@final
class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, service: Service, frame_bytes_max: int) -> None:
        self._service = service
        self._decoder = wire.Decoder(frame_bytes_max)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=OUTPUT_BYTES_MAX)
        self._service.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop. Requests under way go on; their replies stay available by id and key."""
        self._transport = None
        self._service.connections.discard(self)

    def pause_writing(self) -> None:
        """Called by the loop when the client does not read."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Called by the loop when the client has caught up."""
        if self._transport is not None and not self._service.draining:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        try:
            for frame in self._decoder.feed(data):
                self._service.receive(self, frame)
        except wire.FrameTooLarge as error:
            self._refuse_stream("too_large", str(error))
        except wire.BadFrame as error:
            self._refuse_stream("bad_request", str(error))
        self._service.flush()

    def reply(self, seq: int, ok: bool, body: bytes) -> None:
        """Queue a reply; it is written at the end of this turn of the loop."""
        if self._transport is not None:
            if not self._out:
                self._service.dirty.append(self)
            self._out.append(wire.encode_reply(seq, ok, body))

    def write_out(self) -> None:
        """Write what was queued."""
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out) if len(self._out) > 1 else self._out[0])
        self._out.clear()

    def pause(self) -> None:
        """Read no further request."""
        if self._transport is not None:
            self._transport.pause_reading()

    def close(self) -> None:
        """Close once everything queued is written."""
        if self._transport is not None:
            self.write_out()
            self._transport.close()

    def _refuse_stream(self, kind: wire.ErrorType, message: str) -> None:
        """After such bytes nobody can say where the next frame begins: answer once, then hang up."""
        self.reply(0, False, wire.pack(wire.error_body(kind, message)))
        self.close()


@final
class Service:
    """Accepts, recognises and queues requests for an executor."""

    def __init__(self, agent: Agent, settings: AgentSettings, answers: Answers) -> None:
        self._agent = agent
        self._settings = settings
        self._answers = answers
        self._by_id: dict[bytes, Request] = {}
        self._by_key: dict[bytes, Request] = {}
        self._servers: list[asyncio.Server] = []
        self._executor: Executor | None = None
        self._stored_reply: Callable[[bytes], tuple[bool, bytes] | None] = lambda key: None
        self.connections: set[Connection] = set()
        self.dirty: list[Connection] = []
        self.draining = False

    def attach(self, executor: Executor, stored_reply: Callable[[bytes], tuple[bool, bytes] | None]) -> None:
        """Give it what executes requests and what finds durable answers by idempotency key."""
        self._executor = executor
        self._stored_reply = stored_reply
        executor.flush = self.flush

    async def listen(self, listening: socket.socket) -> None:
        """Serve connections from here on."""
        loop = asyncio.get_running_loop()
        limit = self._settings.request_bytes_max + wire.ENVELOPE_BYTES_MAX
        listening.setblocking(False)
        server = await loop.create_unix_server(lambda: Connection(self, limit), sock=listening, backlog=1024)
        self._servers.append(server)

    async def drain(self) -> None:
        """Take no further request; return when all that were taken are answered and written."""
        assert self._executor is not None
        self.draining = True
        for server in self._servers:
            # Not close(): that would wait for connections, and the socket goes on with the successor.
            for listening in server.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
        for connection in self.connections:
            connection.pause()
        await self._executor.idle.wait()
        self.flush()
        for connection in list(self.connections):
            connection.close()
        while self.connections:
            await asyncio.sleep(0)

    def receive(self, connection: Connection, frame: bytes) -> None:
        """Take one frame. Raises wire.BadFrame when it is not a request at all."""
        envelope = parse(frame)
        try:
            self._admit(connection, envelope, frame)
        except Refused as refused:
            connection.reply(envelope.seq, False, wire.pack(refused.body))

    def _admit(self, connection: Connection, envelope: Envelope, frame: bytes) -> None:
        executor = self._executor
        assert executor is not None
        if envelope.handler.startswith("$"):
            connection.reply(envelope.seq, True, wire.pack(self._describe(envelope.handler)))
            return
        if self._answer_again(connection, envelope):
            return
        handler = self._agent.handlers.get(envelope.handler)
        if handler is None:
            raise Refused(
                "unknown_handler",
                f"agent {self._agent.name} has no handler {envelope.handler!r}",
                **did_you_mean(envelope.handler, list(self._agent.handlers)),
            )
        if self.draining:
            raise Refused("unavailable", "the worker is handing over", retry_after=BUSY_RETRY_S)
        if executor.load >= self._settings.queue_limit:
            executor.count_busy()
            message = f"{executor.load} requests are waiting, the limit of agent {self._agent.name}"
            raise Refused("busy", message, retry_after=BUSY_RETRY_S)
        request = Request(
            handler=handler,
            payload=envelope.payload,
            frame=frame,
            request_id=envelope.request_id,
            key=envelope.key,
            deadline_ms=envelope.deadline_ms,
            received_ns=time.monotonic_ns(),
            callers=[(connection, envelope.seq)],
        )
        self._track(request)
        executor.submit(request)

    def _answer_again(self, connection: Connection, envelope: Envelope) -> bool:
        """Recognise a request that was sent before: join it, or answer it from what it got then."""
        if not envelope.request_id and not envelope.key:
            return False
        under_way = self._by_id.get(envelope.request_id) or self._by_key.get(envelope.key)
        if under_way is not None:
            under_way.callers.append((connection, envelope.seq))
            return True
        known = self._answers.by_id(envelope.request_id) or self._answers.by_key(envelope.key)
        if known is None and envelope.key:
            known = self._stored_reply(envelope.key)
        if known is None:
            return False
        connection.reply(envelope.seq, *known)
        return True

    def redeliver(self, unanswered: Unanswered) -> None:
        """Run a request again that the log holds without an effect, or settle it when it must not be run."""
        executor = self._executor
        assert executor is not None
        frame = bytes(unanswered.frame)
        envelope = parse(frame)
        handler = self._agent.handlers.get(envelope.handler)
        request = Request(
            handler=handler,
            payload=envelope.payload,
            frame=frame,
            request_id=envelope.request_id,
            key=envelope.key,
            deadline_ms=envelope.deadline_ms,
            received_ns=time.monotonic_ns(),
            attempt=unanswered.attempts + 1,
            first_lsn=unanswered.first_lsn,
            steps=unanswered.steps,
        )
        self._track(request)
        attempts = unanswered.attempts
        if handler is None:
            message = f"agent {self._agent.name} has no handler {envelope.handler!r} any more"
            executor.settle(request, Kind.DEAD, False, wire.error_body("dead_letter", message, attempts=attempts))
        elif not handler.retry:
            message = f"the worker died under the request, and handler {handler.name!r} is not retried"
            executor.settle(request, Kind.EFFECT, False, wire.error_body("interrupted", message))
        elif attempts >= self._settings.attempts_max:
            message = f"the worker died under this request {attempts} times; it is set aside"
            hint = "`orun deadletters list` has it; mend the handler, `orun reload`, `orun deadletters retry`"
            body = wire.error_body("dead_letter", message, attempts=attempts, hint=hint)
            executor.settle(request, Kind.DEAD, False, body)
        else:
            executor.redeliver(request)

    def answered(self, request: Request) -> None:
        """Called by the executor when a request is no longer under way."""
        for table, name in ((self._by_id, request.request_id), (self._by_key, request.key)):
            if name and table.get(name) is request:
                del table[name]

    def flush(self) -> None:
        """Write the replies of this turn."""
        dirty = self.dirty
        if dirty:
            self.dirty = []
            for connection in dirty:
                connection.write_out()

    def _track(self, request: Request) -> None:
        if request.request_id:
            self._by_id[request.request_id] = request
        if request.key:
            self._by_key[request.key] = request

    def _describe(self, question: str) -> dict[str, Any]:
        if question != "$describe":
            raise Refused("unknown_handler", f"{question!r} is not a question a worker answers")
        return {
            "agent": self._agent.name,
            "pid": os.getpid(),
            "handlers": [
                {"name": h.name, "readonly": h.readonly, "retry": h.retry} for h in self._agent.handlers.values()
            ],
        }
