"""The HTTP API as a plain ASGI application: one call in, one reply or one structured error out.

    POST /v1/call/{handler}   JSON payload in, JSON reply out; ?agent=NAME where a handler is ambiguous
    GET  /health              200 while the gateway serves; needs no token
    GET  /ready               200 when every agent runs, else 503

No framework: three routes do not need one, and it would cost more than the rest of the gateway together.
"""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Final
from urllib.parse import parse_qs

from orun.errors import DeadlineExceeded, OrunError, RequestFailed
from orun.runtime import gateway_json
from orun.runtime.gateway_agents import Agents

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

CALL: Final = "/v1/call/"
_KEY_BYTES_MAX: Final = 200
_TIMEOUT_S_MAX: Final = 3600.0
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0}
_STATUS: Final = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "unknown_handler": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "too_large": 413,
    "unsupported_media_type": 415,
    "busy": 503,
    "unavailable": 503,
    "deadline_exceeded": 504,
    "timeout": 504,
}
"""What is not named here is the agent's own failure: 500."""


class _Disconnected(Exception):
    """The caller went away before its request was complete."""


class Refused(OrunError):
    """A request that is answered with an error; ``headers`` go with it."""

    def __init__(self, kind: str, message: str, *, hint: str | None = None, **headers: str) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Limits:
    """What one gateway takes on."""

    body_bytes_max: int = 1 << 20
    concurrency_max: int = 512
    timeout_s: float = 30.0


class App:
    """The ASGI application."""

    def __init__(self, agents: Agents, limits: Limits, token: str | None) -> None:
        self._agents = agents
        self._limits = limits
        self._token = token.encode() if token is not None else None
        self._under_way = 0
        self._date: tuple[int, bytes] = (0, b"")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            status, value, more = await self._answer(scope, receive)
        except _Disconnected:
            return
        except Refused as error:
            status, value, more = _STATUS[error.kind], _error(error.kind, error), error.headers
        except RequestFailed as error:
            status, value, more = _failed(error.error)
        except DeadlineExceeded as error:
            status, value, more = 504, _error("deadline_exceeded", error), {}
        except OrunError as error:
            status, value, more = 503, _error("unavailable", error), {"retry_after": "1"}
        await self._respond(send, status, value, more)

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, Any, dict[str, str]]:
        path: str = scope["path"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if path != "/health":
            self._authorize(headers)
        allowed = _methods(path)
        if scope["method"] not in allowed.split(", "):
            raise Refused("method_not_allowed", f"{scope['method']} is not for {path[:200]}", allow=allowed)
        if scope["method"] == "OPTIONS":
            return 204, None, {"allow": allowed}
        if path == "/health":
            return 200, {"status": "ok"}, {}
        if path == "/ready":
            ready, document = await self._agents.ready()
            return (200, document, {}) if ready else (503, document, {"retry_after": "1"})
        if self._under_way >= self._limits.concurrency_max:
            raise Refused("busy", f"{self._under_way} requests are under way", retry_after="1")
        self._under_way += 1
        try:
            return 200, await self._call(path[len(CALL) :], scope, headers, receive), {}
        finally:
            self._under_way -= 1

    async def _call(self, handler: str, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        timeout = _timeout(headers) or self._limits.timeout_s
        key = _key(headers)
        client = self._agents.client(handler, _agent(scope["query_string"]))
        payload = await self._payload(headers, receive)
        reply = await client.call(handler, payload, key=key, timeout=timeout)
        try:
            return gateway_json.dumps(reply)
        except (TypeError, ValueError, RecursionError) as error:
            message = f"the reply of {handler!r} is not JSON: {error}"
            raise RequestFailed({"type": "unencodable_reply", "message": message}) from error

    async def _payload(self, headers: dict[bytes, bytes], receive: Receive) -> Any:
        # A web page of another origin may post anything but JSON without asking, so that JSON it must be.
        media = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if media != b"application/json":
            raise Refused(
                "unsupported_media_type",
                f"the content type is {media.decode('latin-1') or 'missing'}",
                hint="send `Content-Type: application/json`",
            )
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Refused("unsupported_media_type", "compressed bodies are not read", accept_encoding="identity")
        body = await self._body(headers, receive)
        try:
            return gateway_json.loads(body) if body else None
        except gateway_json.BadJson as error:
            raise Refused("bad_request", str(error)) from error

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        limit = self._limits.body_bytes_max
        # Who asked for leave to send has sent nothing yet, and would not know where the next request begins.
        end = {"connection": "close"} if b"expect" in headers else {}
        if int(headers.get(b"content-length", b"0")) > limit:
            raise Refused("too_large", f"the body is over {limit} bytes", **end)
        chunks = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Disconnected
            chunk = message["body"]
            size += len(chunk)
            if size > limit:
                raise Refused("too_large", f"the body is over {limit} bytes")
            chunks.append(chunk)
            if not message["more_body"]:
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _authorize(self, headers: dict[bytes, bytes]) -> None:
        if self._token is None:
            _refuse_foreign(headers)
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token):
            return
        raise Refused(
            "unauthorized",
            "the token is missing or wrong",
            hint="send `Authorization: Bearer TOKEN`",
            www_authenticate='Bearer realm="orun"',
        )

    async def _respond(self, send: Send, status: int, value: Any, more: dict[str, str]) -> None:
        body = b"" if value is None else value if isinstance(value, bytes) else gateway_json.dumps(value)
        headers = [(b"server", b"orun"), (b"date", self._now()), (b"content-length", str(len(body)).encode())]
        if body:
            headers.append((b"content-type", b"application/json"))
        headers += [(name.replace("_", "-").encode(), text.encode()) for name, text in more.items()]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _now(self) -> bytes:
        second = int(time.time())
        if second != self._date[0]:
            self._date = (second, formatdate(second, usegmt=True).encode())
        return self._date[1]


def _methods(path: str) -> str:
    """The methods that a path knows, as the Allow header says it."""
    if path in ("/health", "/ready"):
        return "GET, HEAD, OPTIONS"
    if path.startswith(CALL) and path != CALL and "/" not in path[len(CALL) :]:
        return "POST, OPTIONS"
    raise Refused("not_found", f"there is nothing at {path[:200]}", hint=f"try POST {CALL}HANDLER or GET /ready")


def _error(kind: str, error: OrunError) -> dict[str, Any]:
    body: dict[str, Any] = {"type": kind, "message": error.message}
    if error.hint:
        body["hint"] = error.hint
    if isinstance(error, Refused) and "retry_after" in error.headers:
        body["retry_after"] = float(error.headers["retry_after"])
    return {"error": body}


def _failed(error: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
    """The response to an error that the worker reported."""
    status = _STATUS.get(str(error.get("type")), 500)
    pause = error.get("retry_after", 1.0 if status == 503 else None)
    # The header knows whole seconds only; the body has the exact time.
    return status, {"error": error}, {} if pause is None else {"retry_after": str(max(1, round(pause)))}


def _refuse_foreign(headers: dict[bytes, bytes]) -> None:
    """Without a token, keep web pages out: those of another origin, and those whose name was made to mean us."""
    host = headers.get(b"host", b"").decode("latin-1")
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    if name and name.lower() != "localhost":
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError as error:
            message = f"the host {name[:200]!r} is not this gateway's"
            raise Refused("forbidden", message, hint="call it by its address, or set a token") from error
    origin = headers.get(b"origin")
    if origin is not None and origin.decode("latin-1").partition("://")[2] != host:
        raise Refused("forbidden", "web pages of another origin may not call")


def _agent(query: bytes) -> str | None:
    if not query:
        return None
    values = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    unknown = sorted(set(values) - {"agent"})
    if unknown:
        raise Refused("bad_request", f"unknown parameter {unknown[0][:100]!r}", hint="the only one is `agent`")
    return values["agent"][-1]


def _key(headers: dict[bytes, bytes]) -> str | None:
    raw = headers.get(b"idempotency-key")
    if raw is None:
        return None
    if not 0 < len(raw) <= _KEY_BYTES_MAX:
        raise Refused("bad_request", f"the Idempotency-Key must have 1 to {_KEY_BYTES_MAX} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Refused("bad_request", "the Idempotency-Key is not UTF-8") from error


def _timeout(headers: dict[bytes, bytes]) -> float | None:
    raw = headers.get(b"orun-timeout") or headers.get(b"x-request-timeout")
    if raw is None:
        return None
    text = raw.decode("latin-1").strip()
    number = text.rstrip("ms")
    try:
        seconds = float(number) * _UNITS[text[len(number) :].strip() or "s"]
    except (ValueError, KeyError) as error:
        raise Refused("bad_request", f"the timeout {text[:40]!r} is not a time", hint="write 2s or 500ms") from error
    if not 0 < seconds <= _TIMEOUT_S_MAX:
        raise Refused("bad_request", f"the timeout must be over 0 and at most {_TIMEOUT_S_MAX:.0f} s")
    return seconds
