"""What children print: read always, written within limits.

A child that fills its pipe blocks in ``print``, so the pipes are always read. What exceeds the
rate is dropped and counted, never kept for later: the memory stays flat whatever a child prints.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections import deque
from pathlib import Path
from typing import Final

from orun.runtime.foreground import Foreground
from orun.runtime.logfile import Complaint, LogFile
from orun.settings import LogSettings

LINE_BYTES_MAX: Final = 16 << 10
"""A longer line is split."""
TAIL_LINES: Final = 50
_TAIL_LINE_BYTES_MAX: Final = 2 << 10
_READ_BYTES: Final = 64 << 10
_PIPE_BYTES: Final = 256 << 10
_DRAIN_BYTES_MAX: Final = 1 << 20
_REPORT_INTERVAL_S: Final = 1.0
_HOLD_S: Final = 0.02
"""So often it is asked again whether the foreground can take more."""


class Allowance:
    """A bucket of bytes: filled at ``rate`` a second up to ``burst``."""

    def __init__(self, rate: int, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = float(burst)
        self._at = now

    def take(self, size: int, now: float) -> bool:
        """Take ``size`` bytes, or nothing when there is not so much."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if size > self._left:
            return False
        self._left -= size
        return True


class ChildLog:
    """The log of one child, across its restarts: pipes in, one rotated file out."""

    def __init__(
        self,
        name: str,
        folder: Path,
        settings: LogSettings,
        *,
        complain: Complaint,
        echo: Foreground | None = None,
    ) -> None:
        self.name = name
        self.dropped_bytes = 0
        """All bytes dropped so far."""
        self._settings = settings
        self._echo = echo
        self._loop = asyncio.get_running_loop()
        self._file = LogFile(folder / f"{name}.log", settings, complain)
        self._allowance = Allowance(settings.rate, settings.burst, self._loop.time())
        self._tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._streams: list[_Stream] = []
        self._unsaid_bytes = 0
        self._unsaid_lines = 0
        self._report: asyncio.TimerHandle | None = None

    def pipes(self) -> tuple[int, int]:
        """Two pipe ends for a new life's stdout and stderr; the caller hands them on and closes them."""
        return self._pipe(is_error=False), self._pipe(is_error=True)

    def tail(self, lines: int) -> list[str]:
        """The last lines on stderr of the present life."""
        return [line.decode("utf-8", "replace") for line in list(self._tail)[-lines:]]

    def drain(self) -> None:
        """Read what a dead child has left in its pipes, without waiting for more."""
        for stream in list(self._streams):
            stream.read(_DRAIN_BYTES_MAX)

    def forget_tail(self) -> None:
        """Begin a new life: what the last one said is no explanation for what happens to this one."""
        self._tail.clear()

    def rotate(self) -> None:
        """Begin a new file."""
        self._file.rotate()

    def close(self) -> None:
        """Write out what is left and close everything."""
        self.drain()
        for stream in list(self._streams):
            stream.close()
        self._say_dropped()
        if self._report is not None:
            self._report.cancel()
        self._file.close()

    def _pipe(self, *, is_error: bool) -> int:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        # A larger pipe means fewer wake-ups in a flood. Refused (a user's quota of pipe memory): it stays small.
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._streams.append(_Stream(reading, self, is_error=is_error))
        return writing

    def take(self, data: bytes, *, is_error: bool) -> None:
        """Log whole lines, or drop them when the child is over its rate."""
        if is_error:
            lines = data.rstrip(b"\n").rsplit(b"\n", TAIL_LINES)
            self._tail.extend(line[:_TAIL_LINE_BYTES_MAX] for line in lines[-TAIL_LINES:])
        if self._echo is not None:
            self._echo.show(self.name, data, is_error)
        if not self._allowance.take(len(data), self._loop.time()):
            self.dropped_bytes += len(data)
            self._unsaid_bytes += len(data)
            self._unsaid_lines += data.count(b"\n")
            if self._report is None:
                self._report = self._loop.call_later(_REPORT_INTERVAL_S, self._say_dropped)
            return
        self._file.write(data)

    def held(self) -> bool:
        """Whether the foreground is full, so that nothing should be read for the moment."""
        return self._echo is not None and self._echo.full()

    def remove(self, stream: _Stream) -> None:
        """A pipe has ended."""
        self._streams.remove(stream)

    def _say_dropped(self) -> None:
        self._report = None
        if self._unsaid_bytes:
            rate = self._settings.rate
            what = f"{self._unsaid_lines} lines, {self._unsaid_bytes} bytes dropped: over {rate} bytes a second"
            self._unsaid_bytes = self._unsaid_lines = 0
            self._file.write(f"[orun: {what}]\n".encode())


class _Stream:
    """The reading end of one pipe: cuts what comes into whole lines of limited length."""

    def __init__(self, fd: int, log: ChildLog, *, is_error: bool) -> None:
        self._fd = fd
        self._log = log
        self._is_error = is_error
        self._rest = b""
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._listen()

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        if self._log.held():
            self._loop.remove_reader(self._fd)
            self._loop.call_later(_HOLD_S, self._listen)
        else:
            self.read(_READ_BYTES)

    def read(self, bytes_max: int) -> None:
        """Read up to so many bytes, as far as they are there."""
        while bytes_max > 0:
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self.close()
                return
            bytes_max -= len(data)
            self._split(data)

    def close(self) -> None:
        """Log what is left of the last line, and end."""
        if self._rest:
            self._log.take(self._rest + b"\n", is_error=self._is_error)
            self._rest = b""
        self._closed = True
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._log.remove(self)

    def _split(self, data: bytes) -> None:
        end = data.rfind(b"\n") + 1
        if end:
            whole = self._rest + data[:end]
            self._rest = data[end:]
            self._log.take(_limited(whole), is_error=self._is_error)
        else:
            self._rest += data
        while len(self._rest) > LINE_BYTES_MAX:
            part, self._rest = self._rest[:LINE_BYTES_MAX], self._rest[LINE_BYTES_MAX:]
            self._log.take(part + b"\n", is_error=self._is_error)


def _limited(lines: bytes) -> bytes:
    """The same lines, those that are too long split."""
    start = 0
    parts: list[bytes] = []
    while start < len(lines):
        # As many lines as fit the limit together: none of them can be over it.
        end = lines.rfind(b"\n", start, start + LINE_BYTES_MAX + 1) + 1
        if end:
            parts.append(lines[start:end])
        else:
            end = start + LINE_BYTES_MAX
            parts += (lines[start:end], b"\n")
        start = end
    return parts[0] if len(parts) == 1 else b"".join(parts)
