"""Many calls over one connection: requests are sent while earlier ones are under way, replies keep the order.

Nothing is sent twice under two names: after a broken connection every unanswered request goes out again with the
identifier it had. Memory is bounded by the window; a slow consumer of the replies holds the reading of requests.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque

from orun import project
from orun.errors import UsageError
from orun.worker import plain, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

WINDOW = 64
"""Requests under way at once; an agent with default settings queues sixteen times as many."""


class _Entry:
    """One line of input on its way to its reply."""

    __slots__ = ("again_at", "deadline", "done", "frame", "ok", "outcome", "seq")

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.frame = b""
        self.deadline: float | None = None
        self.again_at: float | None = None
        self.done = False
        self.ok = False
        self.outcome: Any = None

    def finish(self, ok: bool, outcome: Any) -> None:
        self.done, self.ok, self.outcome, self.frame = True, ok, outcome, b""


class Stream:
    """Reads payloads from a descriptor, one a line, and hands every reply to ``emit`` in the order of the lines."""

    def __init__(
        self,
        state_dir: str,
        handler: str,
        *,
        source: int,
        parse: Callable[[bytes], Any],
        emit: Callable[[bool, Any], None],
        agent: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._state_dir, self._handler, self._agent, self._timeout_s = state_dir, handler, agent, timeout_s
        self._source, self._parse, self._emit = source, parse, emit
        self._order: deque[_Entry] = deque()
        self._waiting: dict[int, _Entry] = {}
        self._lines: deque[bytes] = deque()
        self._rest: list[bytes] = []
        self._ended = False
        self._seq = 0
        self._out = bytearray()
        self._decoder = wire.Decoder(plain.REPLY_BYTES_MAX)
        self._connection: plain.Connection | None = None
        self._retry = plain.Retry(None)

    def run(self) -> int:
        """Until the input ends and every line is answered. Returns how many were refused."""
        refused = 0
        try:
            while True:
                refused += self._deliver()
                self._take_lines()
                if self._ended and not self._order and not self._lines:
                    return refused
                try:
                    self._turn()
                except plain.Broken as error:
                    self._start_over(error)
        finally:
            self._drop()

    def _turn(self) -> None:
        """Wait for something to happen, once, and take it in."""
        connection = self._connected() if self._waiting else self._connection
        poll = select.poll()
        if not self._ended and not self._lines and len(self._order) < WINDOW:
            poll.register(self._source, select.POLLIN)
        if connection is not None:
            poll.register(connection.fileno(), select.POLLIN | (select.POLLOUT if self._out else 0))
        for descriptor, event in poll.poll(self._patience_ms()):
            if descriptor == self._source:
                self._read_source()
            elif connection is not None:
                if event & select.POLLOUT:
                    with memoryview(self._out) as view:
                        sent = connection.send_some(view)
                    del self._out[:sent]
                if event & ~select.POLLOUT:
                    self._take_replies(connection.receive_some())
        self._watch_the_clock()

    def _read_source(self) -> None:
        data = os.read(self._source, 1 << 16)
        if not data:
            self._ended = True
            self._lines.append(b"".join(self._rest))
            self._rest.clear()
            return
        *complete, last = data.split(b"\n")
        if complete:
            complete[0] = b"".join((*self._rest, complete[0]))
            self._rest.clear()
        self._lines.extend(complete)
        self._rest.append(last)

    def _take_lines(self) -> None:
        while self._lines and len(self._order) < WINDOW:
            line = self._lines.popleft().strip()
            if not line:
                continue
            self._seq += 1
            entry = _Entry(self._seq)
            self._order.append(entry)
            try:
                payload = self._parse(line)
                if self._timeout_s is not None:
                    entry.deadline = time.monotonic() + self._timeout_s
                entry.frame = plain.request_frame(entry.seq, self._handler, payload, deadline=entry.deadline)
            except UsageError as error:
                message = f"line {entry.seq}: {error.message}"
                entry.finish(False, {"type": "bad_request", "message": message})
                continue
            self._waiting[entry.seq] = entry
            self._out += entry.frame

    def _deliver(self) -> int:
        refused = 0
        while self._order and self._order[0].done:
            entry = self._order.popleft()
            refused += not entry.ok
            self._emit(entry.ok, entry.outcome)
        return refused

    def _take_replies(self, data: bytes) -> None:
        for body in self._decoder.feed(data) if data else ():
            seq, ok, content = plain.decode_reply(body)
            entry = self._waiting.get(seq)
            if entry is None:
                continue
            self._retry = plain.Retry(None)
            error = {} if ok else plain.error_of(content)
            wait_s = None if ok else plain.retry_after(error)
            again_at = None if wait_s is None else time.monotonic() + wait_s * (1 + os.urandom(1)[0] / 512)
            if again_at is not None and (entry.deadline is None or again_at < entry.deadline):
                entry.again_at = again_at
                continue
            del self._waiting[seq]
            entry.finish(ok, content if ok else error)

    def _watch_the_clock(self) -> None:
        now = time.monotonic()
        for entry in list(self._waiting.values()):
            if entry.deadline is not None and now >= entry.deadline:
                del self._waiting[entry.seq]
                entry.finish(False, {"type": "deadline_exceeded", "message": "no reply before the deadline"})
            elif entry.again_at is not None and now >= entry.again_at:
                entry.again_at = None
                self._out += entry.frame

    def _patience_ms(self) -> float | None:
        times = [at for entry in self._waiting.values() for at in (entry.deadline, entry.again_at) if at is not None]
        return max(0.0, (min(times) - time.monotonic()) * 1000) + 1 if times else None

    def _connected(self) -> plain.Connection:
        if self._connection is None:
            runtime = project.read_runtime(self._state_dir)
            path = plain.choose_agent(runtime, self._handler, self._agent)["socket"]
            self._connection = plain.Connection(path, None)
        return self._connection

    def _start_over(self, error: plain.Broken) -> None:
        """Pause, then send everything unanswered again, under the identifiers it had."""
        self._drop()
        self._retry.after_break(error, self._state_dir)
        self._decoder = wire.Decoder(plain.REPLY_BYTES_MAX)
        self._out = bytearray()
        for entry in self._waiting.values():
            entry.again_at = None
            self._out += entry.frame

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
