"""Bad input of every kind, from the command line and over HTTP: a clear error, never a traceback, nothing lost."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support import Orun, orun_in

AGENT = """
from orun import Agent
agent = Agent("careful")

@agent.handler
def add(state, request):
    state["total"] = state.get("total", 0) + request["amount"]
    return {"total": state["total"]}

@agent.handler
def echo(state, request):
    return request

@agent.handler
def not_a_number(state, request):
    return {"value": float("nan")}

@agent.handler
def binary(state, request):
    return b"\\xff\\xfe"

@agent.handler
def unencodable(state, request):
    state["total"] = 1_000_000
    return object()

@agent.handler(readonly=True)
def total(state, request):
    return state.get("total", 0)
"""


@pytest.fixture(scope="module")
def careful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orun]:
    with orun_in(tmp_path_factory.mktemp("careful")) as orun:
        orun.start(str(orun.write(AGENT)), "--http", "127.0.0.1:0")
        assert orun.call("add", {"amount": 1}) == {"total": 1}
        yield orun
        # Whatever was thrown at it: the same worker, and no change but the one that was answered.
        assert orun.call("total") == 1
        agent = orun.agent()
        assert agent["restarts"] == 0
        for log in (orun.state_dir / "logs").iterdir():
            text = log.read_text(errors="replace")
            if log.name == "careful.log":
                # What a handler raised is told to its author, without a line of ours.
                assert "/orun/worker/" not in text
            else:
                assert "Traceback" not in text, log


def post(orun: Orun, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, object]]:
    host, _, port = str(orun.status()["http"]).rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/v1/call/add", b"{", 400, "bad_request"),
        ("/v1/call/add", b"\xff\xfe{}", 400, "bad_request"),
        ("/v1/call/add", b'{"amount": NaN}', 400, "bad_request"),
        ("/v1/call/add", b'{"amount": 1e999}', 400, "bad_request"),
        ("/v1/call/add", b'{"amount": Infinity}', 400, "bad_request"),
        ("/v1/call/add", b'{"amount": 1} trailing', 400, "bad_request"),
        ("/v1/call/add", DEEP, 400, "bad_request"),
        ("/v1/call/add", b'"\\ud800"', 400, "bad_request"),
        ("/v1/call/echo", b"18446744073709551616", 400, "bad_request"),
        ("/v1/call/add", b"x" * 2_000_000, 413, "too_large"),
        ("/v1/call/add", b'{"amount": "one"}', 500, "handler_error"),
        ("/v1/call/add", b"[]", 500, "handler_error"),
        ("/v1/call/add", b'{"sum": 1}', 500, "handler_error"),
        ("/v1/call/unencodable", b"null", 500, "unencodable_reply"),
        ("/v1/call/ad", b"{}", 404, "unknown_handler"),
        ("/v1/call/", b"{}", 404, None),
        ("/v1/call/%ff%fe", b"{}", 404, None),
        ("/v1/call/../../etc/passwd", b"{}", 404, None),
        ("/v2/call/add", b"{}", 404, None),
    ],
)
def test_http_refuses_with_a_structured_error(
    careful: Orun, path: str, body: bytes, status: int, kind: str | None
) -> None:
    found, document = post(careful, path, body)
    error = document["error"]
    assert isinstance(error, dict)
    assert (found, error["type"]) == (status, kind or error["type"]), document
    assert error["message"]
    assert "Traceback" not in json.dumps(document)


def test_http_suggests_the_handler_that_was_meant(careful: Orun) -> None:
    _, document = post(careful, "/v1/call/tottal", b"null")
    assert "total" in json.dumps(document)


@pytest.mark.parametrize(
    "headers",
    [
        {"Idempotency-Key": "x" * 10_000},
        {"Idempotency-Key": "ü" * 150},
        {"Content-Length": "nonsense"},
        {"Content-Length": "-1"},
        {"Transfer-Encoding": "nonsense"},
        {"X-Long": "x" * 200_000},
    ],
    ids=["long key", "odd key", "no length", "negative length", "no encoding", "long header"],
)
def test_http_refuses_bad_headers(careful: Orun, headers: dict[str, str]) -> None:
    try:
        status, _ = post(
            careful, "/v1/call/echo", b"1", **{k: v.encode().decode("latin-1") for k, v in headers.items()}
        )
    except (http.client.HTTPException, ConnectionError, ValueError):
        status = 400  # hung up, or an answer without a document
    assert 400 <= status < 500


@pytest.mark.parametrize(
    ("handler", "payload", "kind"),
    [
        ("add", '{"amount": "one"}', "handler_error"),
        ("add", "[1]", "handler_error"),
        ("unencodable", "null", "unencodable_reply"),
        ("ad", "{}", "unknown_handler"),
        ("", "{}", "unknown_handler"),
        ("$nothing", "{}", "unknown_handler"),
        ("x" * 10_000, "{}", "unknown_handler"),
    ],
)
def test_call_exits_with_1_and_a_structured_error(careful: Orun, handler: str, payload: str, kind: str) -> None:
    done = careful.run("call", handler, payload, "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(done.stderr)["error"]["type"] == kind
    plain = careful.run("call", handler, payload)
    assert plain.returncode == 1
    assert plain.stderr.startswith("error: ")
    assert "Traceback" not in plain.stderr


@pytest.mark.parametrize("handler", ["not_a_number", "binary"])
def test_a_reply_that_json_has_no_words_for_is_answered_in_a_way_that_is_json(careful: Orun, handler: str) -> None:
    done = careful.run("call", handler, "null", "--json")
    assert "Traceback" not in done.stderr
    assert "NaN" not in done.stdout
    json.loads(done.stdout if done.returncode == 0 else done.stderr)
    status, document = post(careful, f"/v1/call/{handler}", b"null")
    assert status in (200, 500)
    assert "NaN" not in json.dumps(document)


@pytest.mark.parametrize(
    "arguments",
    [
        ("call", "add", "{", "--json"),
        ("call", "add", b"\xff\xfe".decode("utf-8", "surrogateescape")),
        ("call", "add", "{}", "--timeout", "soon"),
        ("call", "add", "{}", "--timeout", "-1s"),
        ("call", "add", "{}", "--key", ""),
        ("call", "add", "{}", "--key", "k" * 1000),
        ("call", "add", "{}", "{}"),
        ("call",),
        ("restore", "--at", "yesterday", "--yes"),
        ("restore", "--checkpoint", "careful-999999", "--yes"),
        ("restore", "--from", "/nowhere/backup.orun", "--yes"),
        ("checkpoint", "show", "nonsense"),
        ("deadletters", "retry", "nonsense"),
        ("logs", "--agent", "nobody"),
        ("backup", "/nowhere/at/all/backup.orun"),
        ("nonsense",),
        ("run", "/nowhere/agent.py"),
        ("run",),
        ("run", "--set", "nonsense"),
        ("reload", "nobody"),
    ],
    ids=lambda arguments: " ".join(arguments)[:40].encode("ascii", "replace").decode(),
)
def test_commands_refuse_nonsense(careful: Orun, arguments: tuple[str, ...]) -> None:
    done = careful.run(*arguments)
    assert done.returncode in (1, 2, 10, 11), done
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr
    assert "rror" in done.stderr or "sage" in done.stderr


@pytest.mark.parametrize("words", [b'{"amount": 1}\n{\n{"amount": 1}\n', b"\xff\xfe\n", b'{"amount": NaN}\n'])
def test_bad_lines_do_not_count(orun: Orun, words: bytes) -> None:
    """Lines before the bad one are done; the command says which line it was."""
    orun.start(str(orun.write(AGENT)))
    done = subprocess.run(
        [sys.executable, "-m", "orun", "call", "add", "-", "--lines"],
        cwd=orun.folder,
        env=orun.environment,
        input=words,
        capture_output=True,
        timeout=30,
        check=False,
    )
    said = done.stderr.decode()
    assert done.returncode in (1, 2), done
    assert "Traceback" not in said
    assert "line" in said
    assert orun.call("total") in (0, 1, 2)


SETTINGS = {
    "unknown key": ("[runtime]\nintensty = 5\n", "orun.toml:2", "intensity"),
    "unknown section": ("[runtme]\nintensity = 5\n", "orun.toml:1", "runtime"),
    "wrong type": ('[runtime]\nintensity = "many"\n', "orun.toml:2", "intensity"),
    "not TOML": ("[runtime\n", "orun.toml", "line 1"),
    "bad unit": ('[store]\nring_bytes = "8 parsecs"\n', "orun.toml:2", "ring_bytes"),
    "out of range": ("[store]\nring_bytes = 12345\n", "orun.toml:2", "power of two"),
    "bad choice": ('[agent]\ndurability = "maybe"\n', "orun.toml:2", "disk"),
    "negative": ("[runtime]\nperiod = -1\n", "orun.toml:2", "period"),
    "bad child": ('[[children]]\nnme = "x"\n', "orun.toml:2", "name"),
    "no command": ('[[children]]\nname = "x"\n', "", "command"),
    "same name": (
        '[[children]]\nname = "x"\ncommand = ["true"]\n[[children]]\nname = "x"\ncommand = ["true"]\n',
        "",
        "x",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_cannot_be_used_are_refused_with_file_and_line(orun: Orun, case: str) -> None:
    text, where, what = SETTINGS[case]
    orun.write(text, "orun.toml")
    done = orun.run("run", str(orun.write(AGENT)), "--detach")
    assert done.returncode == 2, done
    assert where in done.stderr
    assert what in done.stderr
    assert "Traceback" not in done.stderr
    assert not orun.processes()


AGENT_FILES = {
    "no agent": ("x = 1\n", "defines no agent"),
    "two agents": ("from orun import Agent\na = Agent('a')\nb = Agent('b')\n", "agent.py"),
    "not UTF-8": (b"# \xff\xfe\nfrom orun import Agent\na = Agent('a')\n", "agent.py"),
    "null byte": (b"x = 1\0\n", "agent.py"),
    "tab error": ("if True:\n\tx = 1\n        y = 2\n", "agent.py:3"),
    "raises": ("raise RuntimeError('no luck')\n", "no luck"),
    "exits": ("import sys\nsys.exit('bye')\n", "agent.py"),
    "exits hard": ("import os\nos._exit(3)\n", "exit code 3"),
    "dies": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", "SIGKILL"),
    "interrupts": ("raise KeyboardInterrupt\n", "KeyboardInterrupt"),
    "recursion": ("def f():\n    f()\nf()\n", "RecursionError"),
    "bad name": ("from orun import Agent\na = Agent('a/../b')\n", "a/../b"),
    "empty name": ("from orun import Agent\na = Agent('')\n", "agent.py:2"),
    "same handler": (
        "from orun import Agent\na = Agent('a')\n"
        "@a.handler\ndef f(state, request): pass\n@a.handler\ndef f(state, request): pass\n",
        "agent.py:5",
    ),
    "no parameters": ("from orun import Agent\na = Agent('a')\n@a.handler\ndef f(): pass\n", "agent.py:"),
    "a folder": (None, "agent.py"),
}


@pytest.mark.parametrize("case", AGENT_FILES)
def test_agent_files_that_cannot_be_used_are_refused(orun: Orun, case: str) -> None:
    content, what = AGENT_FILES[case]
    path = orun.folder / "agent.py"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    done = orun.run("run", str(path), "--detach", "--set", "runtime.start_timeout=5s")
    assert done.returncode in (1, 2), done
    assert what in done.stderr
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr
    assert not orun.processes()
