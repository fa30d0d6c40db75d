"""The HTTP connection: uvicorn's parser, with the limits it does not have.

uvicorn bounds neither the size of a request's head nor the time that a client may take to send it, so that
a few hundred connections which send one byte a minute would hold every descriptor. A timer runs only while
a request is incomplete; one that arrives in a single piece, as nearly all do, costs nothing.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES_MAX: Final = 32 << 10
URL_BYTES_MAX: Final = 8 << 10
HEADERS_MAX: Final = 100
_DISCARD_BYTES_MAX: Final = 256 << 20
"""How much of a refused body is read and thrown away, so that its sender lives to see the refusal."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may take, in seconds."""

    head_s: float = 10.0
    body_s: float = 30.0
    read_s: float = 30.0
    idle_s: float = 30.0


def error_response(status: int, error: dict[str, Any]) -> bytes:
    """A whole HTTP response that ends its connection, for what fails outside of the application."""
    body = json.dumps({"error": error}).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nserver: orun\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
    )
    if "retry_after" in error:
        head += f"retry-after: {max(1, round(error['retry_after']))}\r\n"
    return head.encode() + b"\r\n" + body


class _HeadTooLarge(Exception):
    """Raised inside the parser's callbacks to stop it."""


class Connection(HttpToolsProtocol):
    """One client's connection. Subclasses set the limits."""

    patience = Patience()
    connections_max = 1000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase = "head"
        self._head_bytes = 0
        self._discarded = 0
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse the connection when there are too many, or give it time to send its first request."""
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > self.connections_max:
            self._refuse(503, "busy", "too many connections", retry_after=1.0)
            return
        self._arm(self.patience.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._disarm()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; afterwards watch the clock only if a request is incomplete."""
        if self.transport.is_closing():
            return
        before = self._phase
        if before != "body":
            self._head_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            self._disarm()
        elif self._phase == "head" and self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(431, "too_large", f"the request's head is over {HEAD_BYTES_MAX} bytes")
        elif self._phase == "idle" and self._head_bytes == 0:
            self._disarm()
        elif self._timer is None or self._phase != before:
            self._arm(self.patience.body_s if self._phase == "body" else self.patience.head_s)

    def on_message_begin(self) -> None:
        """A request starts."""
        self._phase = "head"
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the address."""
        super().on_url(url)
        if len(self.url) > URL_BYTES_MAX:
            raise _HeadTooLarge

    def on_headers_complete(self) -> None:
        """Hand the request to the application unless its head is too large."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > HEAD_BYTES_MAX or len(self.headers) > HEADERS_MAX:
            raise _HeadTooLarge
        self._phase = "body"
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body; what follows a refusal is thrown away, up to a limit."""
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > _DISCARD_BYTES_MAX:
                self.transport.abort()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._phase = "idle"
        self._head_bytes = 0
        self._discarded = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser could not read, in orun's form."""
        if len(self.url or b"") > URL_BYTES_MAX:
            self._refuse(414, "too_large", f"the address is over {URL_BYTES_MAX} bytes")
        elif self._phase == "head" and self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(431, "too_large", f"the request's head is over {HEAD_BYTES_MAX} bytes")
        elif self.headers is not None and len(self.headers) > HEADERS_MAX:
            self._refuse(431, "too_large", f"the request has more than {HEADERS_MAX} headers")
        else:
            self._refuse(400, "bad_request", "this is not an HTTP/1.1 request")

    def pause_writing(self) -> None:
        """The client reads slower than the reply is written: it may do so for a while."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.patience.read_s, self._reset)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            # It is the gateway that does not read: an earlier request on this connection is under way.
            self._arm(self.patience.body_s)
        elif self._head_bytes == 0 or (self.cycle is not None and self.cycle.response_started):
            self.transport.abort()
        else:
            self._refuse(408, "bad_request", "the request did not arrive in time")

    def _reset(self) -> None:
        # An ordinary close would leave the unread reply with the kernel for minutes.
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _refuse(self, status: int, kind: str, message: str, **more: Any) -> None:
        self._disarm()
        if self._phase != "body" and self.cycle is not None and not self.cycle.response_complete:
            # Requests before this one still wait for their replies; the connection ends after the last.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
        elif not self.transport.is_closing():
            self.transport.write(error_response(status, {"type": kind, "message": message, **more}))
            self.transport.close()
