"""The HTTP gateway as a process of its own, against a scripted worker: status codes, limits, faults."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orun.errors import OrunError, UsageError
from orun.runtime.gateway import bind, check_address, read_token
from tests.support import wait_until
from tests.unit.worker.far_end import Answer, FarEndThread, Received

JSON = {"Content-Type": "application/json"}
TOKEN = "0123456789abcdef"
ENTRY = "import sys, json; from orun.runtime.gateway import main; main(*map(json.loads, sys.argv[1:]))"
STATES = {"agents": [{"name": "a", "state": "running", "pid": 1}]}


STATUS_OF_ERROR = {
    "bad_request": 400,
    "unknown_handler": 404,
    "conflict": 409,
    "too_large": 413,
    "handler_error": 500,
    "unencodable_reply": 500,
    "read_only": 500,
    "interrupted": 500,
    "dead_letter": 500,
    "unavailable": 503,
    "deadline_exceeded": 504,
}


def hold(request: Received) -> None:
    """Never answer."""


def refuse(kind: str, **more: Any) -> Answer:
    return lambda request: request.reply({"type": kind, "message": "no", **more}, ok=False)


class Gateway:
    """A gateway process and the worker behind it."""

    def __init__(self, folder: Path, answers: dict[str, Answer] | None = None, **args: Any) -> None:
        path = folder / "a.sock"
        self.worker = FarEndThread(path, {"status": lambda request: request.reply(STATES), **(answers or {})})
        agents = [{"name": "a", "socket": str(path), "handlers": ["echo"]}]
        listening = bind("127.0.0.1", 0)
        self.port = listening.getsockname()[1]
        ready, told = os.pipe()
        arguments = {"state_dir": str(folder), "control": str(path), "agents": agents, "grace_s": 5, **args}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                ENTRY,
                json.dumps(arguments),
                json.dumps({"listen": listening.fileno(), "ready": told}),
            ],
            pass_fds=(listening.fileno(), told),
        )
        listening.close()
        os.close(told)
        assert os.read(ready, 1) == b"1"
        os.close(ready)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(10)
        self.worker.stop()

    def ask(
        self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] = JSON
    ) -> tuple[int, Any, dict[str, str]]:
        """One request on a connection of its own: status, decoded body, headers in lower case."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            text = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, json.loads(text) if text else None, found
        finally:
            connection.close()

    def call(self, handler: str, body: bytes | str = "null", **headers: str) -> tuple[int, Any, dict[str, str]]:
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", f"/v1/call/{handler}", body, {**JSON, **more})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


@contextlib.contextmanager
def running(folder: Path, answers: dict[str, Answer] | None = None, **args: Any) -> Iterator[Gateway]:
    gateway = Gateway(folder, answers, **args)
    try:
        yield gateway
    finally:
        gateway.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for the tests that leave it as it was."""
    answers: dict[str, Answer] = {kind: refuse(kind) for kind in STATUS_OF_ERROR}
    answers |= {
        "busy": refuse("busy", retry_after=2.4),
        "hinted": refuse("unknown_handler", hint="did you mean 'echo'?"),
        "nan": lambda request: request.reply({"x": float("nan")}),
        "raw": lambda request: request.reply({"x": b"bytes"}),
        "hold": hold,
        "key": lambda request: request.reply(request.options.get("key")),
        "left": lambda request: request.reply(request.options["deadline_ms"] / 1000 - time.time()),
    }
    with running(tmp_path_factory.mktemp("gateway"), answers, body_bytes_max=10_000) as gateway:
        yield gateway


def receive_all(sock: socket.socket) -> bytes:
    """Everything until the gateway closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            received += piece
    return received


def test_call_returns_the_reply_as_json(shared: Gateway) -> None:
    payload = {"text": "grüße 🎈", "list": [1, -2.5, None, True], "big": 2**64 - 1, "": {}}
    status, reply, headers = shared.call("echo", json.dumps(payload))
    assert (status, reply) == (200, payload)
    assert headers["content-type"] == "application/json"
    assert headers["server"] == "orun"
    assert "date" in headers


def test_percent_encoded_handler_and_media_type_parameter(shared: Gateway) -> None:
    status, reply, _ = shared.ask(
        "POST", "/v1/call/%65cho?agent=a", "[1]", {"content-type": "Application/JSON; charset=utf-8"}
    )
    assert (status, reply) == (200, [1])


@pytest.mark.parametrize(("kind", "status"), STATUS_OF_ERROR.items())
def test_error_of_the_worker_has_its_status(shared: Gateway, kind: str, status: int) -> None:
    answered, body, _ = shared.call(kind)
    assert (answered, body) == (status, {"error": {"type": kind, "message": "no"}})


def test_busy_says_when_to_come_back(shared: Gateway) -> None:
    status, body, headers = shared.call("busy")
    assert (status, body["error"]["type"], body["error"]["retry_after"]) == (503, "busy", 2.4)
    assert headers["retry-after"] == "2"


def test_hint_of_the_worker_is_passed_on(shared: Gateway) -> None:
    assert shared.call("hinted")[1]["error"]["hint"] == "did you mean 'echo'?"


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ('{"a": 1,\n "b": }', "line 2 column 7"),
        ("{'a': 1}", "line 1 column 2"),
        ("[1] [2]", "Extra data"),
        ("\ufeff[]", "BOM"),
        (b'{"a": "\xff"}', "invalid UTF-8 at byte 7"),
        ("[NaN]", "NaN is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        ("[1e999]", "too large for a double"),
        ("18446744073709551616", "64 bits"),
        ("9" * 5000, "too long"),
        ("[" * 4999, "nested too deeply"),
        ('"\\ud800"', "surrogates"),
    ],
)
def test_bad_json_is_refused_and_says_where(shared: Gateway, body: str | bytes, complaint: str) -> None:
    status, answer, _ = shared.call("echo", body.encode() if isinstance(body, str) else body)
    assert (status, answer["error"]["type"]) == (400, "bad_request")
    assert complaint in answer["error"]["message"]


def test_last_of_duplicate_keys_counts_and_no_body_is_null(shared: Gateway) -> None:
    assert shared.call("echo", '{"a": 1, "a": 2}')[1] == {"a": 2}
    status, body, _ = shared.call("echo", b"")
    assert (status, body) == (200, None)


@pytest.mark.parametrize("handler", ["nan", "raw"])
def test_reply_that_json_cannot_hold(shared: Gateway, handler: str) -> None:
    status, body, _ = shared.call(handler)
    assert (status, body["error"]["type"]) == (500, "unencodable_reply")
    assert repr(handler) in body["error"]["message"]


@pytest.mark.parametrize("media", [{}, {"Content-Type": "text/plain"}, {**JSON, "Content-Encoding": "gzip"}])
def test_only_plain_json_is_read(shared: Gateway, media: dict[str, str]) -> None:
    assert shared.ask("POST", "/v1/call/echo", b"{}", media)[0] == 415


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1/call/echo", 405, "POST, OPTIONS"),
        ("POST", "/health", 405, "GET, HEAD, OPTIONS"),
        ("DELETE", "/ready", 405, "GET, HEAD, OPTIONS"),
        ("OPTIONS", "/v1/call/echo", 204, "POST, OPTIONS"),
        ("OPTIONS", "/health", 204, "GET, HEAD, OPTIONS"),
        ("HEAD", "/health", 200, None),
        ("GET", "/health", 200, None),
        ("HEAD", "/ready", 200, None),
        ("GET", "/", 404, None),
        ("POST", "/v1/call/", 404, None),
        ("POST", "/v1/call/a/b", 404, None),
    ],
)
def test_methods_and_paths(shared: Gateway, method: str, path: str, status: int, allow: str | None) -> None:
    answered, _, headers = shared.ask(method, path)
    assert (answered, headers.get("allow")) == (status, allow)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Orun-Timeout", "soon"),
        ("Orun-Timeout", "0s"),
        ("Orun-Timeout", "-1"),
        ("Orun-Timeout", "nan"),
        ("X-Request-Timeout", "2h"),
        ("X-Request-Timeout", "5000"),
        ("Idempotency-Key", ""),
        ("Idempotency-Key", "k" * 201),
    ],
)
def test_bad_header_is_refused(shared: Gateway, header: str, value: str) -> None:
    status, body, _ = shared.call("echo", **{header: value})
    assert (status, body["error"]["type"]) == (400, "bad_request")


def test_idempotency_key_and_timeout_reach_the_worker(shared: Gateway) -> None:
    assert shared.call("key", Idempotency_Key="order-17")[1] == "order-17"
    assert 1 < shared.call("left", Orun_Timeout="2s")[1] <= 2
    assert shared.call("left", X_Request_Timeout="500 ms")[1] <= 0.5
    assert shared.call("left", Orun_Timeout="2m")[1] > 100


def test_deadline_ends_the_wait(shared: Gateway) -> None:
    status, body, _ = shared.call("hold", Orun_Timeout="30ms")
    assert (status, body["error"]["type"]) == (504, "deadline_exceeded")


def test_unknown_agent_and_parameter(shared: Gateway) -> None:
    status, body, _ = shared.ask("POST", "/v1/call/echo?agent=b", "1")
    assert (status, body["error"]["hint"]) == (404, "agents: a")
    assert shared.ask("POST", "/v1/call/echo?agnet=a", "1")[0] == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "rebound.example:80"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Host": "127.0.0.1"}, 200),
    ],
)
def test_web_pages_are_kept_out_of_an_open_gateway(shared: Gateway, headers: dict[str, str], status: int) -> None:
    assert shared.ask("POST", "/v1/call/echo", "1", {**JSON, **headers})[0] == status


def test_body_over_the_limit_is_refused_and_the_sender_lives_to_see_it(shared: Gateway) -> None:
    status, body, _ = shared.call("echo", b'"' + b"x" * (100 << 20) + b'"')
    assert (status, body["error"]["type"]) == (413, "too_large")


def test_chunked_body_over_the_limit_and_the_next_request_on_the_connection(shared: Gateway) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=10)
    connection.request("POST", "/v1/call/echo", iter([b"x" * 1000] * 50), JSON, encode_chunked=True)
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["error"]["type"]) == (413, "too_large")
    connection.request("POST", "/v1/call/echo", iter([b"[1", b",2]"]), JSON, encode_chunked=True)
    assert json.loads(connection.getresponse().read()) == [1, 2]
    connection.close()


def test_expect_continue_is_answered_before_the_body_is_sent(shared: Gateway) -> None:
    with shared.connect() as sock:
        head = "POST /v1/call/echo HTTP/1.1\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
        sock.sendall(f"{head}Content-Length: 3\r\n\r\n".encode())
        assert sock.recv(1000).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"[1]")
        answer = b""
        while not answer.endswith(b"[1]"):
            piece = sock.recv(1000)
            assert piece, answer
            answer += piece
        sock.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode())
        assert receive_all(sock).startswith(b"HTTP/1.1 413 ")


def test_pipelined_requests_are_answered_in_order(shared: Gateway) -> None:
    with shared.connect() as sock:
        for number in range(20):
            body = str(number)
            sock.sendall(
                b"POST /v1/call/echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                + f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        bodies = [part.rpartition(b"\r\n\r\n")[2] for part in receive_all(sock).split(b"HTTP/1.1 200 OK")[1:]]
        assert bodies == [str(number).encode() for number in range(20)] + [b'{"status":"ok"}']


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nX: " + b"y" * 40_000, 431),
        (b"GET /health HTTP/1.1\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431),
        (b"GET /" + b"y" * 9000 + b" HTTP/1.1\r\n\r\n", 414),
    ],
)
def test_bad_head_is_refused_in_json(shared: Gateway, data: bytes, status: int) -> None:
    with shared.connect() as sock:
        sock.sendall(data)
        head, _, body = receive_all(sock).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert json.loads(body)["error"]["type"] in ("bad_request", "too_large")


def test_ready_follows_the_states_of_the_agents(tmp_path: Path) -> None:
    states = iter(["running", "starting", "running"])

    def status(request: Received) -> None:
        request.reply({"agents": [{"name": "a", "state": next(states)}]})

    with running(tmp_path, {"status": status}) as gateway:
        assert gateway.ask("GET", "/ready")[:2] == (200, {"ready": True, "agents": [{"name": "a", "state": "running"}]})
        # The answer is kept for a moment.
        wait_until(lambda: gateway.ask("GET", "/ready")[0] == 503)
        wait_until(lambda: gateway.ask("GET", "/ready")[0] == 200)


def test_not_ready_when_the_runtime_does_not_answer(tmp_path: Path) -> None:
    with running(tmp_path, control=str(tmp_path / "nowhere.sock")) as gateway:
        status, body, headers = gateway.ask("GET", "/ready")
        assert (status, body["ready"], headers["retry-after"]) == (503, False, "1")
        assert gateway.ask("GET", "/health")[0] == 200


def test_token_is_asked_for_everywhere_but_at_health(tmp_path: Path) -> None:
    with running(tmp_path, token=TOKEN) as gateway:
        assert gateway.ask("GET", "/health")[0] == 200
        for path in ("/ready", "/v1/call/echo", "/nowhere"):
            status, body, headers = gateway.ask("GET", path)
            assert (status, body["error"]["type"]) == (401, "unauthorized")
            assert headers["www-authenticate"].startswith("Bearer")
        assert gateway.call("echo", "1", Authorization="Bearer " + TOKEN[:-1])[0] == 401
        assert gateway.call("echo", "1", Authorization="Basic " + TOKEN)[0] == 401
        assert gateway.call("echo", "1", Authorization="bearer " + TOKEN)[:2] == (200, 1)
        assert gateway.call("echo", "1", Authorization="Bearer " + TOKEN, Host="any.example")[0] == 200


def test_worker_that_dies_under_a_request_is_a_slow_reply(tmp_path: Path) -> None:
    with running(tmp_path, {"add": hold}) as gateway:
        replies: list[Any] = []
        caller = threading.Thread(target=lambda: replies.append(gateway.call("add", "[5]")))
        caller.start()
        received = gateway.worker.far_end.received
        wait_until(lambda: received)
        gateway.worker.far_end.answers.clear()
        gateway.worker.restart()
        caller.join(10)
        assert replies[0][:2] == (200, [5])
        assert received[0].options["id"] == received[-1].options["id"]


def test_more_requests_than_the_limit_are_busy(tmp_path: Path) -> None:
    with running(tmp_path, {"hold": hold}, concurrency_max=1) as gateway, gateway.connect() as sock:
        sock.sendall(
            b"POST /v1/call/hold HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 4\r\n\r\nnull"
        )
        wait_until(lambda: gateway.worker.far_end.received)
        status, body, headers = gateway.call("echo")
        assert (status, body["error"]["type"], headers["retry-after"]) == (503, "busy", "1")
        assert gateway.ask("GET", "/health")[0] == 200
        gateway.worker.reply(gateway.worker.far_end.received[0], None)


PATIENCE = {"head_s": 0.15, "body_s": 0.15, "read_s": 0.15, "idle_s": 0.15}


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that waits for nobody."""
    answers: dict[str, Answer] = {"large": lambda request: request.reply("x" * (32 << 20))}
    with running(tmp_path_factory.mktemp("impatient"), answers, patience=PATIENCE) as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"", b""),
        (b"\r\n", b"HTTP/1.1 408 "),
        (b"GET /health HTTP/1.1\r\nX-Slow: ", b"HTTP/1.1 408 "),
        (
            b"POST /v1/call/echo HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n[1,",
            b"HTTP/1.1 408 ",
        ),
        (b"GET /health HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 "),
        (b"GET /health HTTP/1.1\r\n\r\n\r\n", b"HTTP/1.1 200 "),
    ],
)
def test_slow_and_idle_connections_are_closed(impatient: Gateway, data: bytes, answer: bytes) -> None:
    with impatient.connect() as sock:
        sock.sendall(data)
        start = time.monotonic()
        received = receive_all(sock)
    assert received.startswith(answer)
    assert bool(received) == bool(answer)
    assert 0.1 < time.monotonic() - start < 5


def test_head_that_comes_byte_by_byte_gets_no_more_time_for_it(impatient: Gateway) -> None:
    start = time.monotonic()
    with impatient.connect() as sock, contextlib.suppress(OSError):
        sock.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
        sock.settimeout(0.01)
        while time.monotonic() - start < 5:
            sock.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                assert sock.recv(1000).startswith(b"HTTP/1.1 408")
                break
    assert 0.1 < time.monotonic() - start < 2


def test_client_that_does_not_read_is_dropped(impatient: Gateway) -> None:
    with impatient.connect() as sock:
        sock.sendall(b"POST /v1/call/large HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nnull")
        events = select.poll()
        events.register(sock, 0)
        assert events.poll(5000) == [(sock.fileno(), select.POLLERR | select.POLLHUP)]


def test_too_many_connections_are_told_so(tmp_path: Path) -> None:
    with (
        running(tmp_path, connections_max=2) as gateway,
        gateway.connect(),
        gateway.connect(),
        gateway.connect() as third,
    ):
        assert receive_all(third).startswith(b"HTTP/1.1 503 ")


def test_sigterm_finishes_what_is_under_way_and_exits_with_0(tmp_path: Path) -> None:
    with running(tmp_path, {"add": hold}) as gateway:
        replies: list[Any] = []
        caller = threading.Thread(target=lambda: replies.append(gateway.call("add", "[5]")))
        with gateway.connect() as idle:
            caller.start()
            wait_until(lambda: gateway.worker.far_end.received)
            os.kill(gateway.process.pid, signal.SIGTERM)
            assert receive_all(idle) == b""
            request = gateway.worker.far_end.received[0]
            gateway.worker.reply(request, [5])
            caller.join(10)
        assert replies[0][:2] == (200, [5])
        assert gateway.process.wait(5) == 0


def test_handlers_of_several_agents_are_found(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    second = FarEndThread(other / "b.sock", {"both": lambda request: request.reply("from b")})
    agents = [
        {"name": "a", "socket": str(tmp_path / "a.sock"), "handlers": ["echo", "both"]},
        {"name": "b", "socket": str(other / "b.sock"), "handlers": ["only", "both"]},
    ]
    try:
        with running(tmp_path, agents=agents) as gateway:
            assert gateway.call("echo", "1")[1] == 1
            assert gateway.call("only", "2")[1] == 2
            status, body, _ = gateway.call("both")
            assert (status, body["error"]["hint"]) == (400, "add ?agent=a")
            assert gateway.ask("POST", "/v1/call/both?agent=b", "1")[1] == "from b"
            status, body, _ = gateway.call("ehco")
            assert (status, body["error"]["hint"]) == (404, "did you mean 'echo'?")
            _reloaded(tmp_path, agents, "fresh")
            assert gateway.call("fresh", "3")[1] == 3
    finally:
        second.stop()


def _reloaded(folder: Path, agents: list[dict[str, Any]], handler: str) -> None:
    """The runtime describes itself again: its first agent has a new handler."""
    agents = [{**agents[0], "handlers": [handler]}, *agents[1:]]
    (folder / "run").mkdir()
    (folder / "run" / "runtime.json").write_text(json.dumps({"schema": 1, "pid": os.getpid(), "agents": agents}))


@pytest.mark.parametrize("http", ["127.0.0.1:4000", "localhost:0", "[::1]:80", "127.3.2.1:9"])
def test_loopback_needs_no_token(http: str) -> None:
    assert check_address(http, "")[1] == int(http.rpartition(":")[2])


@pytest.mark.parametrize("http", ["0.0.0.0:80", ":80", "[::]:80", "192.0.2.1:80"])
def test_other_addresses_need_a_token(tmp_path: Path, http: str) -> None:
    with pytest.raises(UsageError, match="no token") as caught:
        check_address(http, "")
    assert "--token-file" in str(caught.value.hint)
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    assert check_address(http, str(token))[1] == 80


@pytest.mark.parametrize("http", ["4000", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:65536", "127.0.0.1:-1", ""])
def test_address_must_be_host_and_port(http: str) -> None:
    with pytest.raises(UsageError, match="not an address") as caught:
        check_address(http, "")
    assert "127.0.0.1:4000" in str(caught.value.hint)


@pytest.mark.parametrize("content", [b"", b"short", b"two words of a good length", b"\xff" * 32])
def test_token_file_must_hold_a_token(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="token file"):
        read_token(str(path))
    with pytest.raises(UsageError, match="cannot be read"):
        read_token(str(tmp_path / "missing"))


def test_token_file_that_others_can_read_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o644)
    assert read_token(str(path)) == TOKEN
    assert "chmod 600" in caplog.text


def test_port_in_use_is_explained() -> None:
    with bind("127.0.0.1", 0) as first, pytest.raises(OrunError, match="cannot listen") as caught:
        bind("127.0.0.1", first.getsockname()[1])
    assert "another port" in str(caught.value.hint)
