"""A blocking client for short-lived programs: one socket, no event loop, next to no imports.

``orun call`` and ``orun status`` must answer in milliseconds, so this module uses ``_socket`` and nothing of
asyncio. Every request carries an identifier of its own: when the connection breaks (the worker died), the same
request is sent again under the same identifier, and the worker's successor either finishes it or answers from
what is stored. It is never executed twice for having been sent twice.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
import time

from orun import errors, project
from orun.errors import DeadlineExceeded, NotRunning, OrunError, RequestFailed, UsageError
from orun.worker import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SOCKET_PATH_BYTES_MAX = 100
REPLY_BYTES_MAX = 1 << 30
RETURN_GRACE_S = 5.0
"""How long a runtime whose socket refuses is waited for: its guard may be starting it again."""
PAUSE_S = 0.02
PAUSE_S_MAX = 0.25
UNKNOWN_OUTCOME = "the request may still be carried out; asked again with the same --key it never runs twice"
_RETRIED = ("busy", "unavailable")
_LENGTH = struct.Struct("<I")


class Broken(OrunError):
    """The connection ended before the reply had come, or (``refused``) there was none to be had."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class Connection:
    """One connection to a worker or to the control socket; every wait ends at ``deadline`` (monotonic)."""

    def __init__(self, path: str, deadline: float | None) -> None:
        self.deadline = deadline
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            self._limit()
            _connect(self._socket, path)
        except TimeoutError as error:
            self._socket.close()
            raise DeadlineExceeded(f"no connection to {path} before the deadline") from error
        except OSError as error:
            self._socket.close()
            raise Broken(f"cannot connect to {path}: {_reason(error)}", refused=True) from error

    def fileno(self) -> int:
        """For ``select.poll``."""
        return self._socket.fileno()

    def exchange(self, frame: bytes) -> list[Any]:
        """Send one frame and wait for the reply to it. Raises Broken or DeadlineExceeded."""
        try:
            self._limit()
            self._socket.sendall(frame)
        except TimeoutError as error:
            raise DeadlineExceeded("the request could not be sent before the deadline") from error
        except OSError as error:
            # A server that refuses a frame for its size answers without reading it: the answer may be waiting.
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise Broken(f"the connection broke: {_reason(error)}") from error
        return self._reply()

    def send_some(self, data: memoryview) -> int:
        """Send what fits without waiting; 0 when nothing does."""
        try:
            return self._socket.send(data, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise Broken(f"the connection broke: {_reason(error)}") from error

    def receive_some(self) -> bytes:
        """Whatever has arrived; empty when nothing has. Raises Broken at the end of the stream."""
        try:
            data = self._socket.recv(1 << 16, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise Broken(f"the connection broke: {_reason(error)}") from error
        if not data:
            raise Broken("the connection was closed")
        return data

    def close(self) -> None:
        """Give the connection up."""
        self._socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reply(self) -> list[Any]:
        (size,) = _LENGTH.unpack(self._exactly(wire.HEADER_BYTES))
        if size > REPLY_BYTES_MAX:
            raise OrunError(f"a reply of {size} bytes is over the limit of {REPLY_BYTES_MAX}")
        return decode_reply(self._exactly(size))

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        at = 0
        while at < size:
            try:
                self._limit()
                count = self._socket.recv_into(view[at:])
            except TimeoutError as error:
                raise DeadlineExceeded("no reply before the deadline") from error
            except OSError as error:
                raise Broken(f"the connection broke: {_reason(error)}") from error
            if count == 0:
                raise Broken("the connection was closed before the reply had come")
            at += count
        return data

    def _limit(self) -> None:
        if self.deadline is None:
            return
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)


def request_frame(
    seq: int, handler: str, payload: Any, *, key: str | None = None, deadline: float | None = None
) -> bytes:
    """The frame of a call with a fresh identifier. Raises UsageError when the payload cannot be encoded."""
    options: dict[str, Any] = {"id": os.urandom(16)}
    if key is not None:
        options["key"] = key
    if deadline is not None:
        options["deadline_ms"] = int((time.time() + deadline - time.monotonic()) * 1000)
    try:
        return wire.encode([seq, handler, payload, options])
    except UnicodeEncodeError as error:
        raise UsageError(f"the payload holds text that is not valid Unicode: {error.reason}") from error
    except OverflowError as error:
        raise UsageError("the payload holds an integer of more than 64 bits") from error
    except (TypeError, ValueError, struct.error) as error:
        raise UsageError(f"the payload cannot be sent: {error}") from error


def decode_reply(body: bytes | bytearray) -> list[Any]:
    """``[seq, ok, body]``, or OrunError when the server speaks another language."""
    try:
        reply = wire.unpack(memoryview(body))
    except wire.BadFrame as error:
        raise OrunError(f"the reply cannot be read: {error}") from error
    if not isinstance(reply, list) or len(reply) != 3:
        raise OrunError("the reply is not one of this protocol")
    return reply


def call(
    state_dir: str,
    handler: str,
    payload: Any,
    *,
    agent: str | None = None,
    key: str | None = None,
    timeout_s: float | None = None,
) -> Any:
    """Ask an agent and wait for its reply, through restarts of the worker and of the runtime.

    Raises NotRunning, RequestFailed (the agent's structured error) or DeadlineExceeded.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    frame = request_frame(1, handler, payload, key=key, deadline=deadline)
    retry = Retry(deadline)
    sent = False
    try:
        while True:
            path = choose_agent(project.read_runtime(state_dir), handler, agent)["socket"]
            try:
                with Connection(path, deadline) as connection:
                    sent = True
                    _, ok, body = connection.exchange(frame)
            except Broken as error:
                retry.after_break(error, state_dir)
                continue
            if ok:
                return body
            retry.after_refusal(error_of(body))
    except (NotRunning, DeadlineExceeded) as error:
        if sent:
            error.hint = error.hint if isinstance(error, DeadlineExceeded) and error.hint else UNKNOWN_OUTCOME
        raise


class Retry:
    """When to try again, and when not to any more."""

    def __init__(self, deadline: float | None) -> None:
        self._deadline = deadline
        self._pause_s = PAUSE_S
        self._give_up = 0.0

    def after_break(self, error: Broken, state_dir: str) -> None:
        """Pause before the next connection; NotRunning when the runtime is gone or does not come back."""
        now = time.monotonic()
        if not self._give_up or not error.refused:
            self._give_up = now + RETURN_GRACE_S
        if now > self._give_up or project.running(state_dir) is None:
            raise NotRunning(f"nothing answers in {state_dir}: {error}", hint="`orun logs` tells why") from error
        self.pause(self._pause_s)
        self._pause_s = min(PAUSE_S_MAX, self._pause_s * 2)

    def after_refusal(self, error: dict[str, Any]) -> None:
        """Pause when the agent asked for patience and the deadline allows it; raise the refusal otherwise."""
        self._give_up = 0.0
        wait_s = retry_after(error)
        if wait_s is None or (self._deadline is not None and time.monotonic() + wait_s >= self._deadline):
            raise failure(error)
        self.pause(wait_s)

    def pause(self, seconds: float) -> None:
        """Wait up to half as long again, so that many callers do not come back at once."""
        seconds *= 1 + os.urandom(1)[0] / 512
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded("no reply before the deadline")
            seconds = min(seconds, left)
        time.sleep(seconds)


def retry_after(error: Mapping[str, Any]) -> float | None:
    """Seconds after which a refused request may be sent again; None when that would not help."""
    wait_s = error.get("retry_after")
    if error.get("type") not in _RETRIED or not isinstance(wait_s, int | float):
        return None
    return max(0.001, float(wait_s))


def error_of(body: Any) -> dict[str, Any]:
    """A refusal's body as the documented map, whatever the server sent."""
    if isinstance(body, dict) and isinstance(body.get("type"), str):
        return body
    return {"type": "handler_error", "message": str(body)}


def failure(error: dict[str, Any]) -> OrunError:
    """The exception for a structured error."""
    if error["type"] == "deadline_exceeded":
        return DeadlineExceeded(str(error.get("message", "the deadline passed")), hint=error.get("hint"))
    return RequestFailed(error)


def choose_agent(runtime: Mapping[str, Any], handler: str, name: str | None) -> Mapping[str, Any]:
    """The agent that a call goes to: the one named, the only one, or the one that has the handler."""
    agents = runtime.get("agents", [])
    if name is not None:
        for agent in agents:
            if agent["name"] == name:
                return agent  # type: ignore[no-any-return]
        raise UsageError(f"no agent named {name!r}", hint=_suggest(name, [agent["name"] for agent in agents]))
    if len(agents) == 1:
        return agents[0]  # type: ignore[no-any-return]
    if not agents:
        raise UsageError("no agent is running, only plain commands", hint="`orun status` shows what runs")
    able = [agent for agent in agents if handler in agent.get("handlers", ())]
    if len(able) == 1:
        return able[0]  # type: ignore[no-any-return]
    if able:
        names = ", ".join(agent["name"] for agent in able)
        raise UsageError(f"several agents have a handler {handler!r}: {names}", hint="name one with --agent")
    known = sorted({known for agent in agents for known in agent.get("handlers", ())})
    raise RequestFailed(
        {
            "type": "unknown_handler",
            "message": f"no agent has a handler {handler!r}",
            "hint": _suggest(handler, known),
        }
    )


def control(state_dir: str, op: str, args: Mapping[str, Any] | None = None, *, timeout_s: float | None = None) -> Any:
    """Ask the runtime itself. Connecting is retried; a request that was sent is not, as most change something."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    frame = wire.encode([1, op, dict(args or {})])
    retry = Retry(deadline)
    while True:
        path = project.read_runtime(state_dir).get("control") or os.path.join(state_dir, "run", "control.sock")
        try:
            connection = Connection(path, deadline)
        except Broken as error:
            retry.after_break(error, state_dir)
            continue
        with connection:
            _, ok, body = connection.exchange(frame)
        if ok:
            return body
        raise control_failure(error_of(body))


def control_failure(error: dict[str, Any]) -> OrunError:
    """The exception that a refused operation stands for, by its exit code, so that it means the same anywhere."""
    if "code" in error:
        return error_for_code(int(error["code"]), str(error.get("message", "")), error.get("hint"))
    return failure(error)


def error_for_code(code: int, message: str, hint: str | None = None) -> OrunError:
    """The exception that has this exit code."""
    kinds = (
        UsageError,
        errors.NotRunning,
        errors.NotFound,
        errors.InUse,
        errors.Damaged,
        errors.EngineUnavailable,
        errors.IntensityExceeded,
        errors.DeadlineExceeded,
    )
    for kind in kinds:
        if kind.code == code:
            return kind(message, hint=hint)
    return OrunError(message, hint=hint)


def _connect(sock: _socket.socket, path: str) -> None:
    """Connect to a path of any length: the kernel takes 107 bytes, so a long one goes through a descriptor."""
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        sock.connect(path)
        return
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    finally:
        os.close(folder)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _suggest(word: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"there is {', '.join(known)}" if known else "there is none"
