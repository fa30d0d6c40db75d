"""What is told of an exception that a handler raised: its caller gets the error, the agent's log the traceback."""

from __future__ import annotations

import contextlib
import sys
import traceback

from orun.worker import wire
from orun.worker.agent import Handler
from orun.worker.state import ReadOnly

MESSAGE_CHARS_MAX = 4000
"""What an error says beyond this is cut off: it is logged, and sent."""
TRACE_CHARS_MAX = 20_000


def describe(error: BaseException, handler: Handler) -> bytes:
    """The encoded structured error for what a handler raised: its type, message, and the user's line."""
    _tell(error, handler)
    kind: wire.ErrorType = "read_only" if isinstance(error, ReadOnly) else "handler_error"
    code = getattr(handler.function, "__code__", None)
    where = None
    for frame in traceback.extract_tb(error.__traceback__):
        if code is not None and frame.filename == code.co_filename:
            where = f"{frame.filename}:{frame.lineno}"
    text = text_of(error)
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    body = wire.error_body(kind, message)
    if where:
        body["where"] = where
    return wire.pack(body)


def _tell(error: BaseException, handler: Handler) -> None:
    """The traceback, from the user's code on, where `orun logs` shows it."""
    trace = error.__traceback__
    lines = traceback.format_exception(type(error), error, trace.tb_next if trace is not None else None)
    with contextlib.suppress(OSError, ValueError):  # a handler may have closed what it is written to
        sys.stderr.write(f"handler {handler.name}:\n{''.join(lines)[-TRACE_CHARS_MAX:]}")
        sys.stderr.flush()


def text_of(error: BaseException) -> str:
    """What an error says, in any case: short enough to be logged, and text that can be encoded."""
    try:
        text = str(error)
    except Exception as second:  # noqa: BLE001  the plug-in boundary: the error is the user's class
        text = f"(and it cannot say more: {type(second).__name__})"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= MESSAGE_CHARS_MAX else text[:MESSAGE_CHARS_MAX] + " …"
