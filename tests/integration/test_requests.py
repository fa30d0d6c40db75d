"""Requests through the whole system: real processes, the real journal, the command line as the client."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from orun.worker.client import connect
from tests.support import COUNTER, Orun, alive, wait_until

CRASHER = """
import asyncio, os, signal, sys, time
from orun import Agent
agent = Agent("crasher")

def die():
    os.kill(os.getpid(), signal.SIGKILL)

@agent.handler
def crash_once(state, request, ctx):
    if ctx.attempt == 1:
        state["seen"] = "first"
        die()
    state["runs"] = state.get("runs", 0) + 1
    return {"attempt": ctx.attempt, "seen": state.get("seen"), "runs": state["runs"]}

@agent.handler
def poison(state, request):
    os._exit(7)

@agent.handler(retry=False)
def fragile(state, request):
    die()

@agent.handler
def steps(state, request, ctx):
    paid = ctx.step("pay", lambda: append(request["file"], "paid"))
    if ctx.attempt == 1:
        die()
    return {"paid": paid, "attempt": ctx.attempt}

def append(path, word):
    with open(path, "a") as file:
        file.write(word + "\\n")
    return [word, 1]

@agent.handler
def charge(state, request):
    state["charged"] = state.get("charged", 0) + 1
    return {"charged": state["charged"]}

@agent.handler
def fail(state, request):
    state["charged"] = 100
    raise ValueError("no such thing")

@agent.handler(readonly=True)
def look(state, request):
    return dict(state)

@agent.handler(readonly=True)
def meddle(state, request):
    state["x"] = 1

@agent.handler
def nothing_to_encode(state, request):
    state["charged"] = 200
    return {1, 2}

@agent.handler
def bad_state(state, request):
    state["lock"] = object()
    return 1

@agent.handler
async def slow_add(state, request):
    before = state.get("sum", 0)
    await asyncio.sleep(0.02)
    state["sum"] = before + 1
    return state["sum"]

@agent.handler(timeout=0.2)
async def too_slow(state, request):
    state["charged"] = 300
    await asyncio.sleep(30)

@agent.handler
def block(state, request):
    time.sleep(request["seconds"])
    return "done"
"""


@pytest.fixture
def crasher(orun: Orun) -> Orun:
    orun.start(str(orun.write(CRASHER)), "--set", "agent.queue_limit=8", "--set", "runtime.intensity=20")
    return orun


def failure(orun: Orun, handler: str, payload: object = None, *flags: str) -> dict[str, object]:
    done = orun.run("call", handler, json.dumps(payload), "--json", *flags)
    assert done.returncode == 1, done
    assert done.stdout == ""
    error = json.loads(done.stderr)["error"]
    assert isinstance(error, dict)
    return error


def test_a_call_changes_the_state_and_survives_a_restart(orun: Orun) -> None:
    agent = str(orun.write(COUNTER))
    orun.start(agent)
    assert orun.call("add", {"amount": 2}) == {"total": 2}
    assert orun.call("add", {"amount": 3}) == {"total": 5}
    orun.ok("stop")
    orun.start(agent)
    assert orun.call("total") == {"total": 5}


def test_a_request_that_killed_its_worker_runs_again_with_its_attempt_raised(crasher: Orun) -> None:
    before = crasher.agent()["pid"]
    assert crasher.call("crash_once") == {"attempt": 2, "seen": None, "runs": 1}
    assert crasher.agent()["pid"] != before
    assert crasher.agent()["restarts"] == 1


def test_a_poisonous_request_goes_to_the_dead_letters_and_the_agent_goes_on(crasher: Orun) -> None:
    error = failure(crasher, "poison", {"why": "test"})
    assert error["type"] == "dead_letter"
    assert crasher.call("charge") == {"charged": 1}
    (letter,) = crasher.json("deadletters", "list")["deadletters"]
    assert letter["handler"] == "poison"
    assert letter["attempts"] == 3


def test_a_handler_that_is_not_retried_answers_with_an_error(crasher: Orun) -> None:
    assert failure(crasher, "fragile")["type"] == "interrupted"
    assert crasher.call("charge") == {"charged": 1}


def test_a_step_runs_once_however_often_its_request_does(crasher: Orun, tmp_path: Path) -> None:
    journal = tmp_path / "payments"
    assert crasher.call("steps", {"file": str(journal)}) == {"paid": ["paid", 1], "attempt": 2}
    assert journal.read_text() == "paid\n"


def test_a_key_gets_the_same_reply_again_also_after_a_crash_and_a_restart(crasher: Orun) -> None:
    assert crasher.call("charge", None, "--key", "k1") == {"charged": 1}
    assert crasher.call("charge", None, "--key", "k1") == {"charged": 1}
    crasher.call("crash_once")
    assert crasher.call("charge", None, "--key", "k1") == {"charged": 1}
    crasher.ok("stop")
    crasher.start(str(crasher.folder / "agent.py"))
    assert crasher.call("charge", None, "--key", "k1") == {"charged": 1}
    assert crasher.call("charge", None, "--key", "k2") == {"charged": 2}


def test_concurrent_duplicates_wait_for_the_first(crasher: Orun) -> None:
    async def together() -> list[object]:
        async with connect(str(crasher.state_dir)) as one, connect(str(crasher.state_dir)) as two:
            calls = [client.call("slow_add", None, key="same") for client in (one, two) for _ in range(3)]
            return list(await asyncio.gather(*calls))

    assert asyncio.run(together()) == [1] * 6


def test_overlapping_async_handlers_lose_no_update(crasher: Orun) -> None:
    async def together() -> list[object]:
        async with connect(str(crasher.state_dir)) as client:
            return list(await asyncio.gather(*(client.call("slow_add") for _ in range(6))))

    assert sorted(asyncio.run(together())) == [1, 2, 3, 4, 5, 6]  # type: ignore[type-var]


def test_what_a_failing_handler_changed_is_dropped(crasher: Orun) -> None:
    error = failure(crasher, "fail")
    assert error["type"] == "handler_error"
    assert error["message"] == "ValueError: no such thing"
    assert str(error["where"]).startswith(str(crasher.folder / "agent.py") + ":")
    logged = crasher.ok("logs", "crasher")
    assert "handler fail:" in logged
    assert "in fail\n" in logged
    assert "executor.py" not in logged
    assert failure(crasher, "nothing_to_encode")["type"] == "unencodable_reply"
    assert "lock" in str(failure(crasher, "bad_state")["message"])
    assert failure(crasher, "too_slow")["type"] == "timeout"
    assert crasher.call("look") == {}


def test_a_read_only_handler_cannot_write_and_leaves_no_effect(crasher: Orun) -> None:
    assert failure(crasher, "meddle")["type"] == "read_only"
    crasher.call("look")
    kinds = [record["kind"] for record in crasher.json("wal", "show")["records"]]
    assert "effect" not in kinds


def test_more_requests_than_the_queue_takes_are_answered_busy(crasher: Orun) -> None:
    async def flood() -> list[object]:
        async with connect(str(crasher.state_dir)) as client:
            calls = [client.call("block", {"seconds": 0.3}, timeout=0.25) for _ in range(1)]
            calls += [client.call("block", {"seconds": 0}, timeout=0.25) for _ in range(30)]
            return list(await asyncio.gather(*calls, return_exceptions=True))

    asyncio.run(flood())
    assert crasher.agent()["busy"] > 0
    assert crasher.call("charge") == {"charged": 1}


def test_a_deadline_of_the_caller_ends_the_call_with_124(crasher: Orun) -> None:
    done = crasher.run("call", "block", '{"seconds": 1.5}', "--timeout", "200ms")
    assert done.returncode == 124


def test_an_unknown_handler_gets_a_suggestion(crasher: Orun) -> None:
    error = failure(crasher, "chrage")
    assert error["type"] == "unknown_handler"
    assert "charge" in str(error["hint"])


@pytest.mark.parametrize("payload", ["{", "nonsense", '{"a": NaN}', '{"a": 1e999}', "[" * 100_000, '"\\ud800"'])
def test_malformed_json_is_a_usage_error_and_no_traceback(crasher: Orun, payload: str) -> None:
    done = crasher.run("call", "charge", "-", stdin=payload)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert crasher.call("look") == {}


def test_a_payload_of_100_mb_is_refused_and_harms_nobody(crasher: Orun) -> None:
    done = crasher.run("call", "charge", "-", stdin=json.dumps("x" * 100_000_000))
    assert done.returncode == 1
    assert "limit" in done.stderr
    assert crasher.call("look") == {}


def test_lines_in_and_out_keep_their_order(orun: Orun) -> None:
    orun.start(str(orun.write(COUNTER)))
    lines = "\n".join(json.dumps({"amount": 1}) for _ in range(200))
    replies = orun.ok("call", "add", "-", "--lines", stdin=lines).splitlines()
    assert [json.loads(line)["total"] for line in replies] == list(range(1, 201))


def test_status_has_what_scripts_rely_on(crasher: Orun) -> None:
    crasher.call("charge")
    document = crasher.status()
    assert document["schema"] == 1
    assert document["state_dir"] == str(crasher.state_dir)
    assert alive(document["pid"])
    (agent,) = document["agents"]
    assert {"name", "pid", "state", "restarts", "version", "lsn", "last_checkpoint", "requests", "errors"} <= set(agent)
    assert agent["state"] == "running"
    wait_until(lambda: crasher.agent()["requests"] == 1, what="the request to be counted")
