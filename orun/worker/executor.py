"""Runs requests: log the request, run its handler on a view, log the effect, answer.

The order of these steps is the whole of durability. A request is in the journal before its handler
starts. Its effect (changes and reply together, one record) is in the journal before anybody can see
either. The reply leaves at once with ``process`` durability, or, with ``disk``, when the recorder has
published an LSN at or beyond the effect's.

Plain handlers run on the event loop's thread, one at a time; async ones as tasks. Requests found
unanswered in the log run before all others and one by one, so that a request that kills its worker is
the only one under way when it does, and no innocent request collects attempts.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, final

from orun.engine.journal import JournalFenced, JournalFull, RecordTooLarge
from orun.settings import AgentSettings
from orun.store.records import FLAG_KEYED, FLAG_READONLY, NO_ID, Kind, encode_effect
from orun.worker import wire
from orun.worker.agent import Agent, Context, Handler
from orun.worker.failures import describe, text_of
from orun.worker.gauges import Gauges, Page
from orun.worker.requests import Answers, Request
from orun.worker.state import Blocks, Unencodable, View

SLICE_NS = 2_000_000
"""Plain handlers run back to back for so long before the loop looks at its sockets again."""
CONFLICTS_MAX = 16
EXIT_FORKED = 0
"""Of a child that a handler forked and that came back from it."""
_JOURNAL_WAIT_S = 0.001


class Journal(Protocol):
    """What the executor needs of the journal; the engine's writer is one."""

    @property
    def durable_lsn(self) -> int:
        """Everything up to here is on disk."""

    def append(self, kind: int, payload: bytes, *, ref: int = 0, flags: int = 0) -> int:
        """Write a record; returns its LSN."""


@final
class Executor:
    """Executes the requests of one worker. Everything happens on one event loop."""

    def __init__(
        self,
        agent: Agent,
        settings: AgentSettings,
        blocks: Blocks,
        answers: Answers,
        journal: Journal,
        page: Page,
        *,
        wake_recorder: Callable[[bool], None],
        answered: Callable[[Request], None],
        abandon: Callable[[str], None],
    ) -> None:
        self._agent = agent
        self._settings = settings
        self.blocks = blocks
        self._answers = answers
        self._journal = journal
        self._wake_recorder = wake_recorder
        self._answered = answered
        self._abandon = abandon
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Request] = deque()
        self._redeliveries: deque[Request] = deque()
        self._running: dict[Request, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._undelivered: deque[tuple[int, Request, bool, bytes]] = deque()
        self._pump_scheduled = False
        self._forked = False
        self._gauges = Gauges(page)
        self._encode = wire.Encoder()
        self._last_effect_lsn = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.flush: Callable[[], None] = lambda: None

    @property
    def load(self) -> int:
        """Requests waiting, under way, or answered with the reply still held back for the disk."""
        return len(self._queue) + len(self._redeliveries) + len(self._running) + len(self._undelivered)

    def submit(self, request: Request) -> None:
        """Queue a new request."""
        self._queue.append(request)
        self._schedule()

    def redeliver(self, request: Request) -> None:
        """Queue a request found unanswered in the log; it goes before every new one."""
        self._redeliveries.append(request)
        self._schedule()

    def settle(self, request: Request, kind: Kind, ok: bool, body: dict[str, Any]) -> None:
        """Answer a logged request without running it: set aside, interrupted, or past its deadline."""
        self._finish(request, ok, wire.pack(body), [], kind)
        self._schedule()

    def disown(self) -> None:
        """Called in a child that a handler has forked: it may do what it likes, but it is not the worker.

        Journal, sockets and event loop are the parent's. When the child comes back from the handler, it ends.
        """
        self._forked = True
        self._loop.call_soon(os._exit, EXIT_FORKED)

    def count_busy(self) -> None:
        """A request was refused because too many wait."""
        self._gauges.busy()

    def on_durable(self) -> None:
        """The recorder published: let go of the replies that waited for the disk."""
        durable = self._journal.durable_lsn
        undelivered = self._undelivered
        while undelivered and undelivered[0][0] <= durable:
            _, request, ok, body = undelivered.popleft()
            self._deliver(request, ok, body)
        self.flush()
        self._update_idle()

    def _schedule(self) -> None:
        self.idle.clear()
        if not self._pump_scheduled:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_scheduled = False
        slice_end = time.monotonic_ns() + SLICE_NS
        while (request := self._next()) is not None:
            handler = request.handler
            assert handler is not None, "a request without a handler is settled, never queued"
            if handler.is_async:
                if self._start(request):
                    task = self._loop.create_task(self._run_async(request, handler))
                    self._tasks.add(task)
                    task.add_done_callback(self._task_done)
            elif self._start(request):
                self._run(request, handler)
            if time.monotonic_ns() >= slice_end:
                self._schedule()
                break
        self._after_work()

    def _next(self) -> Request | None:
        if self._redeliveries:
            return None if self._running else self._redeliveries.popleft()
        if not self._queue or len(self._running) >= self._settings.concurrency:
            return None
        if any(request.attempt > 1 for request in self._running):
            return None
        return self._queue.popleft()

    def _start(self, request: Request) -> bool:
        """Log the request. False when it was answered instead."""
        handler = request.handler
        assert handler is not None
        if request.deadline_ms is not None and time.time() * 1000 > request.deadline_ms:
            error = wire.pack(wire.error_body("deadline_exceeded", "the deadline passed before the handler started"))
            if request.first_lsn:
                self._finish(request, False, error, [])
            else:
                self._fail_unlogged(request, error)
            return False
        try:
            if request.first_lsn:
                # Not refused when the journal is full: it is logged already, and would be run once more later.
                lsn = self._append(Kind.REQUEST, b"", ref=request.first_lsn)
            else:
                flags = FLAG_READONLY if handler.readonly else 0
                lsn = self._journal.append(Kind.REQUEST, request.frame, flags=flags)
                request.first_lsn = lsn
        except JournalFull:
            body = wire.error_body("busy", "the journal is full until the disk catches up", retry_after=0.05)
            self._fail_unlogged(request, wire.pack(body))
            return False
        except RecordTooLarge as error:
            self._fail_unlogged(request, wire.pack(wire.error_body("too_large", str(error))))
            return False
        except JournalFenced:
            self._lost(request)
            return False
        now = time.monotonic_ns()
        self._running[request] = now
        if len(self._running) == 1:
            self._show_handler(request, now)
        return True

    def _show_handler(self, request: Request, start_ns: int) -> None:
        assert request.handler is not None
        timeout_s = request.handler.timeout_s or self._settings.handler_timeout
        self._gauges.handler(request.first_lsn, start_ns, start_ns + int(timeout_s * 1e9))

    def _run(self, request: Request, handler: Handler) -> None:
        view = View(self.blocks, readonly=handler.readonly, encode=self._encode)
        try:
            if handler.takes_context:
                reply = handler.function(view, request.payload, self._context(request))
            else:
                reply = handler.function(view, request.payload)
        except BaseException as error:  # noqa: BLE001  the plug-in boundary: whatever a handler raises is its answer
            # sys.exit() and KeyboardInterrupt too: they are no reason to end what serves everybody else.
            self._finish(request, False, describe(error, handler), [])
            return
        self._commit(request, view, reply)

    async def _run_async(self, request: Request, handler: Handler) -> None:
        timeout_s = handler.timeout_s or self._settings.handler_timeout
        while True:
            view = View(self.blocks, readonly=handler.readonly, encode=self._encode)
            limit = asyncio.timeout(timeout_s)
            try:
                async with limit:
                    if handler.takes_context:
                        reply = await handler.function(view, request.payload, self._context(request))
                    else:
                        reply = await handler.function(view, request.payload)
            except BaseException as error:  # noqa: BLE001  the plug-in boundary
                body = describe(error, handler)
                if limit.expired():
                    message = f"handler {handler.name!r} ran longer than {timeout_s:g} s"
                    body = wire.pack(wire.error_body("timeout", message))
                self._finish(request, False, body, [])
                return
            if handler.readonly or not view.conflicts():
                self._commit(request, view, reply)
                return
            request.conflicts += 1
            if request.conflicts > CONFLICTS_MAX:
                message = f"other requests changed the same blocks {CONFLICTS_MAX} times in a row"
                self._finish(request, False, wire.pack(wire.error_body("conflict", message, retry_after=0.1)), [])
                return

    def _context(self, request: Request) -> Context:
        def record(name: str, result: Any) -> Any:
            encoded = wire.pack([name, result])
            assert request.handler is not None
            if not request.handler.readonly:
                self._append(Kind.STEP, encoded, ref=request.first_lsn)
            return wire.unpack(encoded)[1]

        return Context(
            attempt=request.attempt,
            lsn=request.first_lsn,
            request_id=request.request_id,
            key=request.key.decode() or None,
            deadline_ms=request.deadline_ms,
            steps=request.steps,
            record=record,
        )

    def _commit(self, request: Request, view: View, reply: Any) -> None:
        try:
            body = self._encode(reply)
        except Exception as error:  # noqa: BLE001  a class of the user's may raise anything while it is encoded
            message = f"the reply of handler {_name(request)!r} cannot be encoded: {text_of(error)}"
            self._finish(request, False, wire.pack(wire.error_body("unencodable_reply", message)), [])
            return
        try:
            changes = view.changes()
        except Unencodable as error:
            message = f"handler {_name(request)!r} left a value in the state that cannot be encoded: {text_of(error)}"
            self._finish(request, False, wire.pack(wire.error_body("unencodable_reply", message)), [])
            return
        self._finish(request, True, body, changes)

    def _finish(
        self,
        request: Request,
        ok: bool,
        body: bytes,
        changes: list[tuple[bytes, bytes | None]],
        kind: Kind = Kind.EFFECT,
    ) -> None:
        """Log the effect, make it visible, and answer."""
        if self._forked:
            os._exit(EXIT_FORKED)
        handler = request.handler
        if handler is not None and handler.readonly:
            lsn = self._last_effect_lsn
        else:
            payload = encode_effect(body, ok, changes, request.request_id or NO_ID, request.key)
            flags = FLAG_KEYED if request.key else 0
            try:
                lsn = self._append(kind, payload, ref=request.first_lsn, flags=flags)
            except JournalFenced:
                self._lost(request)
                return
            except RecordTooLarge as error:
                message = f"what the request changed and answered is too large to log: {error}"
                self._finish(request, False, wire.pack(wire.error_body("too_large", message)), [], kind)
                return
            self._last_effect_lsn = lsn
            if changes:
                self.blocks.apply(lsn, changes)
            self._answers.remember(request.request_id, request.key, ok, body)
        self._ended(request)
        if not ok:
            self._gauges.errors += 1
        if self._durability(handler) == "disk" and lsn > self._journal.durable_lsn:
            self._undelivered.append((lsn, request, ok, body))
        else:
            self._deliver(request, ok, body)

    def _append(self, kind: Kind, payload: bytes, *, ref: int, flags: int = 0) -> int:
        """Append what must not be refused: the handler has run, so a full journal is waited for."""
        if self._forked:
            os._exit(EXIT_FORKED)
        while True:
            try:
                return self._journal.append(kind, payload, ref=ref, flags=flags)
            except JournalFull:
                self._wake_recorder(True)
                time.sleep(_JOURNAL_WAIT_S)

    def _durability(self, handler: Handler | None) -> str:
        own = handler.durability if handler is not None else None
        return own or self._agent.durability or self._settings.durability

    def _ended(self, request: Request) -> None:
        self._gauges.requests += 1
        running = self._running
        first = next(iter(running), None)
        running.pop(request, None)
        if request is first or first is None:
            self._gauges.no_handler()
            following = next(iter(running), None)
            if following is not None:
                self._show_handler(following, running[following])

    def _deliver(self, request: Request, ok: bool, body: bytes) -> None:
        for caller, seq in request.callers:
            caller.reply(seq, ok, body)
        request.callers.clear()
        self._answered(request)
        self._gauges.latency(time.monotonic_ns() - request.received_ns)

    def _fail_unlogged(self, request: Request, body: bytes) -> None:
        self._ended(request)
        self._gauges.errors += 1
        self._deliver(request, False, body)

    def _lost(self, request: Request) -> None:
        """Another worker has taken over: this one's answers would be lies."""
        self._fail_unlogged(
            request,
            wire.pack(wire.error_body("unavailable", "another worker has taken over", retry_after=0.05)),
        )
        self._abandon("its journal was sealed: another worker has taken over")

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._abandon(f"a request ended in {type(error).__name__}: {error}")
        self._schedule()

    def _after_work(self) -> None:
        queued = len(self._queue) + len(self._redeliveries)
        self._gauges.show(len(self._running), queued, self._last_effect_lsn)
        self.flush()
        self._wake_recorder(bool(self._undelivered))
        self._update_idle()

    def _update_idle(self) -> None:
        if not self.load:
            self.idle.set()


def _name(request: Request) -> str:
    return request.handler.name if request.handler is not None else "?"
