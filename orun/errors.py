"""Every error a user can meet, each with its exit code and a hint that says what to do next.

    OrunError               1  failed; the message says why
    ├── UsageError          2  a command or a setting that cannot be used as it stands
    ├── NotRunning          3  no runtime serves this state directory
    ├── NotFound           10  no such state, checkpoint, version or record
    ├── InUse              11  another orun holds the state directory
    ├── Damaged            12  stored data does not match its checksum
    ├── StorageFailed       1  the disk refused a write; nothing more is acknowledged
    ├── EngineUnavailable  13  the Zig engine cannot be built or loaded
    ├── IntensityExceeded  14  a child died more often than its supervisor allows
    ├── DeadlineExceeded  124  a deadline given by the user passed
    └── RequestFailed       1  an agent answered a request with a structured error

Exit codes are additive for ever: a code never changes its meaning.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing would cost each command 8 ms
if TYPE_CHECKING:
    from typing import Any


class OrunError(Exception):
    """Something a user can act on: ``message`` says what and where, ``hint`` what to do."""

    code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(OrunError):
    """A command line or a setting that cannot be used as it stands."""

    code = 2


class NotRunning(OrunError):
    """No runtime serves this state directory."""

    code = 3


class NotFound(OrunError):
    """No such state, checkpoint, version or record."""

    code = 10


class InUse(OrunError):
    """Another orun holds the state directory."""

    code = 11


class Damaged(OrunError):
    """Stored data does not match its checksum."""

    code = 12


class StorageFailed(OrunError):
    """The disk refused a write; from then on nothing more is acknowledged."""


class EngineUnavailable(OrunError):
    """The Zig engine cannot be built or loaded."""

    code = 13


class IntensityExceeded(OrunError):
    """A child died more often than its supervisor allows."""

    code = 14


class DeadlineExceeded(OrunError):
    """A deadline given by the user passed."""

    code = 124


class RequestFailed(OrunError):
    """An agent answered a request with a structured error, kept in ``error``."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(str(error.get("message", error)), hint=error.get("hint"))
        self.error = error
