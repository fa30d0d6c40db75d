"""`orun call`, as a program against sockets that speak the protocol."""

from __future__ import annotations

import itertools
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.service import Cli, Endpoint, Service, echo, refuse


def test_the_reply_is_one_line_of_json_on_standard_output(cli: Cli, service: Service) -> None:
    service.agent("a", {"add": lambda request: (True, {"total": request[2]["amount"], "text": "é"})})
    done = cli("call", "add", '{"amount": 2}')
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == '{"total": 2, "text": "é"}\n'


def test_a_missing_payload_is_an_empty_map_and_a_dash_reads_standard_input(cli: Cli, service: Service) -> None:
    service.agent("a", {"echo": echo})
    assert json.loads(cli("call", "echo").stdout) == {}
    assert json.loads(cli("call", "echo", "-", stdin=b' [1, "x"] ').stdout) == [1, "x"]


def test_a_broken_connection_is_retried_under_the_same_id(cli: Cli, service: Service) -> None:
    answers = iter([None, None, (True, "done")])
    endpoint = service.agent("a", {"work": lambda request: next(answers)})
    done = cli("call", "work")
    assert json.loads(done.stdout) == "done"
    ids = {request[3]["id"] for request in endpoint.received}
    assert len(endpoint.received) == 3
    assert len(ids) == 1
    assert len(ids.pop()) == 16


def test_a_busy_agent_is_asked_again(cli: Cli, service: Service) -> None:
    answers = iter([refuse("busy", retry_after=0.01), refuse("unavailable", retry_after=0.01), (True, 1)])
    service.agent("a", {"work": lambda request: next(answers)})
    assert json.loads(cli("call", "work").stdout) == 1


def test_an_agent_that_stays_busy_is_an_error_with_retry_after(cli: Cli, service: Service) -> None:
    service.agent("a", {"work": lambda request: refuse("busy", "queue full", retry_after=5)})
    error = cli.error("call", "work", "--timeout", "1s", code=1)
    assert (error["type"], error["message"], error["retry_after"]) == ("busy", "queue full", 5)


def test_a_deadline_that_passes_is_124(cli: Cli, service: Service) -> None:
    stop = threading.Event()
    endpoint = service.agent("a", {"work": lambda request: (stop.wait(10), None)[1]})
    error = cli.error("call", "work", "--timeout", "200ms", code=124)
    stop.set()
    assert error["type"] == "deadline_exceeded"
    assert endpoint.received[0][3]["deadline_ms"] > 0


def test_the_agents_own_structured_error_is_kept_whole(cli: Cli, service: Service) -> None:
    service.agent(
        "a", {"x": lambda request: refuse("unknown_handler", "no handler 'x'", hint="did you mean 'y'?", where="w")}
    )
    error = cli.error("call", "x", code=1)
    assert error["type"] == "unknown_handler"
    assert error["where"] == "w"
    done = cli("call", "x")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == "error: no handler 'x'\nat: w\nhint: did you mean 'y'?\n"


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ('{"a": ', "line 1 column 7"),
        ("NaN", "NaN is not JSON"),
        ('{"a": [1, Infinity]}', "Infinity is not JSON"),
        ("1e999", "too large"),
        ("[" * 100_000, "nested too deeply"),
        ("123456789012345678901234567890", "64 bits"),
        ('"\\ud800"', "not valid Unicode"),
    ],
)
def test_a_payload_that_cannot_be_used_is_a_usage_error(cli: Cli, service: Service, payload: str, text: str) -> None:
    endpoint = service.agent("a", {"echo": echo})
    error = cli.error("call", "echo", "-", stdin=payload.encode(), code=2)
    assert error["type"] == "usage"
    assert text in error["message"]
    assert endpoint.received == []


def test_invalid_utf8_names_the_byte(cli: Cli, service: Service) -> None:
    service.agent("a", {"echo": echo})
    assert "byte 1 is 0xff" in cli.error("call", "echo", "-", stdin=b'"\xff"', code=2)["message"]


def test_a_server_that_answers_without_reading_is_heard(cli: Cli, service: Service, tmp_path: Path) -> None:
    """A frame that is over the limit is refused before it was read; the refusal must not drown in EPIPE."""
    import socket
    import struct

    from orun.worker import wire

    path = service.run_dir / "b.sock"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()

    def serve() -> None:
        connection, _ = listening.accept()
        connection.recv(struct.calcsize("<I"))
        connection.sendall(wire.encode([1, *refuse("too_large", "over the limit")]))
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    service.agents.append({"name": "b", "socket": str(path), "handlers": ["x"]})
    service._describe()
    payload = json.dumps("x" * (8 << 20)).encode()
    error = cli.error("call", "x", "-", "--agent", "b", stdin=payload, code=1)
    thread.join()
    listening.close()
    assert error["type"] == "too_large"


def test_the_agent_is_found_by_its_handler_and_named_when_two_have_it(cli: Cli, service: Service) -> None:
    service.agent("a", {"one": lambda request: (True, "a"), "both": lambda request: (True, "a")})
    service.agent("b", {"two": lambda request: (True, "b"), "both": lambda request: (True, "b")})
    assert json.loads(cli("call", "two").stdout) == "b"
    assert "several agents" in cli.error("call", "both", code=2)["message"]
    assert json.loads(cli("call", "both", "--agent", "b").stdout) == "b"
    assert "did you mean 'two'" in cli.error("call", "tow", code=1)["hint"]
    assert "no agent named 'c'" in cli.error("call", "two", "--agent", "c", code=2)["message"]


def test_nothing_running_is_3_and_no_state_is_10(cli: Cli, tmp_path: Path) -> None:
    assert cli.error("call", "x", code=10)["type"] == "not_found"
    (tmp_path / "state" / "run").mkdir(parents=True)
    assert cli.error("call", "x", code=3)["type"] == "not_running"
    (tmp_path / "state" / "run" / "runtime.json").write_text('{"pid": 4194304, "agents": []}')
    assert cli.error("call", "x", code=3)["type"] == "not_running"


def test_a_reply_that_json_lacks_is_shown_as_well_as_it_can_be(cli: Cli, service: Service) -> None:
    service.agent(
        "a",
        {"bytes": lambda request: (True, {"data": b"abc", 1: {b"k": 2}}), "nan": lambda request: (True, float("nan"))},
    )
    assert json.loads(cli("call", "bytes").stdout) == {"data": "YWJj", "1": {"aw==": 2}}
    assert "NaN" in cli.error("call", "nan", code=1)["message"]


def test_a_socket_path_of_any_length_is_reached(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20) / ("long" * 20)
    folder.mkdir(parents=True)
    short = tmp_path / "s"
    short.symlink_to(folder)
    service = Service(short)
    try:
        service.agent("a", {"echo": echo})
        for agent in service.agents:
            agent["socket"] = str(folder / "state" / "run" / "a.sock")
        service._describe()
        cli = Cli(folder)
        assert json.loads(cli("call", "echo", "1").stdout) == 1
    finally:
        service.close()


def lines_of(done: Any) -> list[Any]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_lines_keep_their_order_with_many_under_way(cli: Cli, service: Service) -> None:
    endpoint = service.agent("a", {"square": lambda request: (True, request[2] ** 2)})
    text = "".join(f"{number}\n" for number in range(1000)).encode()
    done = cli("call", "square", "--lines", stdin=text)
    assert done.returncode == 0
    assert lines_of(done) == [number**2 for number in range(1000)]
    assert len({request[3]["id"] for request in endpoint.received}) == 1000


def test_lines_survive_broken_connections_and_busy_answers(cli: Cli, service: Service) -> None:
    count = itertools.count(1)

    def flaky(request: list[Any]) -> tuple[bool, Any] | None:
        number = next(count)
        if number % 37 == 0:
            return None
        return refuse("busy", retry_after=0.002) if number % 11 == 0 else (True, request[2])

    endpoint = service.agent("a", {"work": flaky})
    text = "\n".join(str(number) for number in range(300)).encode()
    done = cli("call", "work", "--lines", stdin=text)
    assert lines_of(done) == list(range(300))
    named: dict[Any, set[bytes]] = {}
    for request in endpoint.received:
        named.setdefault(request[2], set()).add(request[3]["id"])
    assert all(len(ids) == 1 for ids in named.values())


def test_lines_that_fail_become_error_lines_in_their_place(cli: Cli, service: Service) -> None:
    service.agent(
        "a", {"odd": lambda request: (True, request[2]) if request[2] % 2 else refuse("handler_error", "even")}
    )
    done = cli("call", "odd", "--lines", stdin=b"1\n\n2\nnonsense\n3")
    assert done.returncode == 1
    one, two, bad, three = lines_of(done)
    assert (one, three) == (1, 3)
    assert two["error"]["type"] == "handler_error"
    assert bad["error"]["type"] == "bad_request"
    assert "line 3" in bad["error"]["message"]
    assert b"2 of the requests failed" in done.stderr


def test_lines_have_a_deadline_each(cli: Cli, service: Service) -> None:
    stop = threading.Event()
    service.agent("a", {"work": lambda request: (stop.wait(10), None)[1]})
    done = cli("call", "work", "--lines", "--timeout", "200ms", stdin=b"1\n2\n")
    stop.set()
    assert done.returncode == 1
    assert [line["error"]["type"] for line in lines_of(done)] == ["deadline_exceeded"] * 2


def test_lines_of_nothing_are_nothing(cli: Cli, service: Service) -> None:
    service.agent("a", {"echo": echo})
    done = cli("call", "echo", "--lines", stdin=b"")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_reader_that_goes_away_ends_it_quietly(cli: Cli, service: Service) -> None:
    import subprocess
    import sys

    service.agent("a", {"echo": echo})
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "orun", "call", "echo"],
        env=cli.environment, cwd=cli.folder, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_endpoint_serves_a_long_key(service: Service, cli: Cli) -> None:
    endpoint: Endpoint = service.agent("a", {"echo": echo})
    cli("call", "echo", "1", "--key", "order-1")
    assert endpoint.received[0][3]["key"] == "order-1"
    assert cli.error("call", "echo", "1", "--key", "x" * 201, code=2)["type"] == "usage"
