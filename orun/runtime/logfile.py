"""A log file that stays within its limits, whatever the disk does."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from orun.settings import LogSettings

_RETRY_S: Final = 1.0

Complaint = Callable[[str], None]
"""Who is told, once, that a log cannot be written."""


class LogFile:
    """A file that is rotated by size: NAME.log, then NAME.log.1 and so on, the oldest dropped.

    A disk that is full must not stop what is logged: a line that cannot be written is counted, the trouble is
    told once, and writing is tried again each second. When it works again, the file says what is missing.
    """

    def __init__(self, path: Path, settings: LogSettings, complain: Complaint) -> None:
        self.path = path
        self.lost = 0
        """Bytes that could not be written since the last success."""
        self._bytes_max = settings.file_bytes
        self._files = max(1, settings.files)
        self._complain = complain
        self._fd: int | None = None
        self._size = 0
        self._torn = False
        self._retry_at = 0.0

    def write(self, data: bytes) -> None:
        """Append whole lines."""
        if self.lost and time.monotonic() < self._retry_at:
            self.lost += len(data)
            return
        size = len(data)
        if self.lost:
            note = f"[orun: {self.lost} bytes are missing here: the disk refused them]\n".encode()
            data = (b"\n" if self._torn else b"") + note + data
        try:
            if self._size + len(data) > self._bytes_max and self._size:
                self.rotate()
            self._append(data)
        except OSError as error:
            self._refused(size, error)
        else:
            self.lost = 0
            self._torn = False

    def rotate(self) -> None:
        """Close the file as NAME.log.1, each older one a number higher, and begin a new one."""
        self.close()
        # From the oldest on: each is moved onto the number after it, and the last is overwritten.
        for number in range(self._files - 2, -1, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        if self._files == 1:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        fd, self._fd, self._size = self._fd, None, 0
        if fd is not None:
            os.close(fd)

    def _numbered(self, number: int) -> Path:
        return self.path if number == 0 else self.path.with_name(f"{self.path.name}.{number}")

    def _append(self, data: bytes) -> None:
        if self._fd is None:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._fd).st_size
        written = os.write(self._fd, data)
        self._size += written
        if written < len(data):
            self._torn = True
            self._size += os.write(self._fd, data[written:])  # as a rule this raises, and so says why

    def _refused(self, size: int, error: OSError) -> None:
        first = self.lost == 0
        self.lost += size
        self._retry_at = time.monotonic() + _RETRY_S
        if first:
            self._complain(f"{self.path} cannot be written ({error.strerror}); output is dropped until it can")


class LogFileHandler(logging.Handler):
    """The runtime's own log: records of the ``orun`` loggers into a :class:`LogFile`."""

    def __init__(self, file: LogFile) -> None:
        super().__init__()
        self._file = file
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        self._file.write(self.format(record).encode("utf-8", "backslashreplace") + b"\n")
