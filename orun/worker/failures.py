"""What is told of an exception that a handler raised."""

from __future__ import annotations

import traceback

from orun.worker import wire
from orun.worker.agent import Handler
from orun.worker.state import ReadOnly

MESSAGE_CHARS_MAX = 4000
"""What an error says beyond this is cut off: it is logged, and sent."""


def describe(error: BaseException, handler: Handler) -> bytes:
    """The encoded structured error for what a handler raised: its type, message, and the user's line."""
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


def text_of(error: BaseException) -> str:
    """What an error says, in any case: short enough to be logged, and text that can be encoded."""
    try:
        text = str(error)
    except Exception as second:  # noqa: BLE001  the plug-in boundary: the error is the user's class
        text = f"(and it cannot say more: {type(second).__name__})"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= MESSAGE_CHARS_MAX else text[:MESSAGE_CHARS_MAX] + " …"
