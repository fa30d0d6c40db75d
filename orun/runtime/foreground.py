"""What a runtime in the foreground shows: what happens, and what its children print, line by line.

A terminal can be stopped (Ctrl-S) and a pipe can be left unread. Neither may stop the supervision, so nothing
here writes in the runtime's own thread: each stream has a thread and a queue of limited size. For a command that
runs alone a full queue means that its pipes are not read for a while, so that it waits as it would without orun
and nothing is lost. Among several children none may be stopped by a reader: what does not fit is left out, and the
output says so. The logs have it in any case.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, final

QUEUE_BYTES: Final = 1 << 20
_QUEUE_BYTES_MAX: Final = 8 << 20
"""A child's last output is read whole when it ends; that may be more than is taken in while it runs."""
_WRITE_BYTES: Final = 64 << 10
_CLOSE_WAIT_S: Final = 1.0
_CLOSE_WAIT_ALONE_S: Final = 60.0


class Foreground(Protocol):
    """Where a runtime in the foreground shows things. Every method returns at once, but for ``close``."""

    def event(self, level: int, text: str) -> None:
        """Something happened to the tree."""

    def show(self, name: str, data: bytes, is_error: bool) -> None:
        """A child printed these whole lines."""

    def full(self) -> bool:
        """Whether children should be kept from printing more for the moment."""

    def close(self) -> None:
        """Show what is left."""


@final
class Stream:
    """A file descriptor written by a thread. ``broken`` is called there when nobody reads it any more."""

    def __init__(self, fd: int, broken: Callable[[], None] = lambda: None) -> None:
        self._fd = fd
        self._broken = broken
        self._dead = False
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._left_out = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"stream {fd}", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether more is waiting than should be."""
        return self._bytes > QUEUE_BYTES

    def write(self, data: bytes) -> None:
        """Put whole lines in the queue, or leave them out when it can take no more."""
        with self._changed:
            if self._dead or self._closing:
                return
            if self._bytes + len(data) > _QUEUE_BYTES_MAX:
                self._left_out += len(data)
                return
            if self._left_out:
                data = b"[orun: %d bytes are not shown; the logs have them]\n" % self._left_out + data
                self._left_out = 0
            self._queue.append(data)
            self._bytes += len(data)
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Wait until everything is written, but not for ever."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                data = b"".join(self._queue)
                self._queue.clear()
            try:
                self._put(data)
            except OSError:
                # The reader has gone, or the terminal was closed: there is nobody to tell.
                with self._changed:
                    self._dead = True
                    self._queue.clear()
                self._bytes = 0
                self._broken()
                return
            with self._changed:
                self._bytes -= len(data)

    def _put(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._fd, left[:_WRITE_BYTES]) :]
            except BlockingIOError:
                # Somebody made the descriptor non-blocking, which it shares with us.
                waiting = select.poll()
                waiting.register(self._fd, select.POLLOUT)
                waiting.poll()


@final
class Lines:
    """The foreground without a live view: events on standard error, children's output on the stream they used.

    ``alone``: one plain command runs, and its output appears as if it ran without orun; events only when they are
    worth a warning. Otherwise each line carries the name of its child.
    """

    def __init__(self, *, alone: bool, quiet: bool, broken: Callable[[], None] = lambda: None) -> None:
        self._alone = alone
        self._level = logging.ERROR + 1 if quiet else logging.WARNING if alone else logging.INFO
        self._shows_children = alone or not quiet
        self._out = Stream(1, broken if alone else lambda: None)
        self._err = Stream(2)

    def event(self, level: int, text: str) -> None:
        """One line on standard error."""
        if level >= self._level:
            self._err.write(f"{text}\n".encode("utf-8", "backslashreplace"))

    def show(self, name: str, data: bytes, is_error: bool) -> None:
        """The lines as they are, or each behind its child's name."""
        if not self._shows_children:
            return
        if not self._alone:
            lead = name.encode() + b" | "
            data = lead + data[:-1].replace(b"\n", b"\n" + lead) + b"\n"
        (self._err if is_error else self._out).write(data)

    def full(self) -> bool:
        """Whether the one command should wait for its reader."""
        return self._alone and (self._out.full or self._err.full)

    def close(self) -> None:
        """Write what is left; the output of a command that ran alone is waited for longer."""
        for stream in (self._out, self._err):
            stream.close(_CLOSE_WAIT_ALONE_S if self._alone else _CLOSE_WAIT_S)
