"""Handlers that misbehave: whatever one does, the next request is answered and no acknowledged change is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import Orun, orun_in, wait_until

WILD = """
import asyncio, ctypes, os, resource, signal, subprocess, sys, threading, time
from orun import Agent
agent = Agent("wild")

def first(ctx):
    return ctx.attempt == 1

@agent.handler
def add(state, request):
    state["n"] = state.get("n", 0) + 1
    return state["n"]

@agent.handler
def segfault(state, request, ctx):
    if first(ctx):
        state["n"] = -1
        ctypes.string_at(0)
    return "second attempt"

@agent.handler
def abort(state, request, ctx):
    if first(ctx):
        os.abort()
    return "second attempt"

@agent.handler
def os_exit(state, request, ctx):
    if first(ctx):
        os._exit(0)
    return "second attempt"

@agent.handler
def sys_exit(state, request):
    state["n"] = -1
    sys.exit("enough")

@agent.handler
def interrupt(state, request):
    state["n"] = -1
    raise KeyboardInterrupt

@agent.handler
def base_exception(state, request):
    state["n"] = -1
    raise BaseException("the very base")

@agent.handler
def generator_exit(state, request):
    raise GeneratorExit

@agent.handler
def cancelled(state, request):
    raise asyncio.CancelledError("by myself")

@agent.handler
async def async_exit(state, request):
    sys.exit(3)

@agent.handler
async def async_interrupt(state, request):
    raise KeyboardInterrupt

@agent.handler
async def async_cancelled(state, request):
    raise asyncio.CancelledError

@agent.handler
async def async_cancel_self(state, request):
    asyncio.current_task().cancel()
    await asyncio.sleep(10)

@agent.handler
def too_much_memory(state, request):
    state["n"] = -1
    return len(bytearray(1 << 50))

@agent.handler
def limited_memory(state, request):
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), before[1]))
    try:
        hoard = []
        while True:
            hoard.append(bytearray(1 << 20))
    finally:
        hoard = None
        resource.setrlimit(resource.RLIMIT_AS, before)

@agent.handler
def recursion(state, request):
    return recursion(state, request)

@agent.handler
def deep_reply(state, request):
    value = []
    for _ in range(request["depth"]):
        value = [value]
    return value

@agent.handler
def deep_state(state, request):
    value = []
    for _ in range(request["depth"]):
        value = [value]
    state["deep"] = value
    return "kept"

@agent.handler
def endless_reply(state, request):
    value = []
    value.append(value)
    return value

@agent.handler
def huge_reply(state, request):
    return "x" * request["bytes"]

@agent.handler
def huge_state(state, request):
    state["huge"] = "x" * request["bytes"]
    return "kept"

@agent.handler
def huge_number(state, request):
    return 1 << 64

@agent.handler
def lone_surrogate(state, request):
    return "\\ud800"

class EvilDict(dict):
    def items(self):
        raise RuntimeError("not you")

    def __len__(self):
        raise RuntimeError("nor you")

@agent.handler
def evil_reply(state, request):
    return EvilDict(a=1)

@agent.handler
def evil_state(state, request):
    state["evil"] = EvilDict(a=1)
    return "kept"

@agent.handler
def evil_error(state, request):
    class Evil(Exception):
        def __str__(self):
            raise RuntimeError("no words")
    raise Evil

@agent.handler
def surrogate_error(state, request):
    raise ValueError("\\ud800 in the text")

@agent.handler
def huge_error(state, request):
    raise ValueError("x" * (8 << 20))

@agent.handler
def close_everything(state, request, ctx):
    if first(ctx):
        os.closerange(3, 1024)
    return "second attempt"

@agent.handler
def close_streams(state, request):
    for stream in (0, 1, 2):
        os.close(stream)
    for _ in range(3):
        os.open("/dev/null", os.O_RDWR)
    return "closed"

@agent.handler
def change_folder(state, request):
    os.chdir("/")
    os.umask(0o777)
    return os.getcwd()

@agent.handler
def fork_both(state, request):
    # The child comes back from the handler too, as if it were the worker.
    state["n"] = state.get("n", 0) + 1
    os.fork()
    return state["n"]

@agent.handler(readonly=True)
def fork_both_readonly(state, request):
    os.fork()
    return state.get("n")

@agent.handler
async def fork_both_async(state, request):
    os.fork()
    await asyncio.sleep(0.05)
    state["n"] = state.get("n", 0) + 1
    return state["n"]

@agent.handler
def fork_and_work(state, request):
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(abs, [-1, -2, -3])

@agent.handler
def leave_threads(state, request):
    for _ in range(20):
        threading.Thread(target=time.sleep, args=(600,)).start()
    return threading.active_count()

@agent.handler
def print_binary(state, request):
    sys.stdout.buffer.write(bytes(range(256)) * 100)
    sys.stdout.write("\\x1b[31mred\\x00\\n")
    sys.stdout.flush()
    print("no end of line", end="", flush=True)
    return "printed"

@agent.handler
def block_signals(state, request):
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return "deaf"

@agent.handler
def steal_children(state, request):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.alarm(1)
    signal.signal(signal.SIGALRM, lambda *_: None)
    subprocess.Popen(["true"])
    return "stolen"

@agent.handler
def no_descriptors(state, request):
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        return error.strerror
    finally:
        for fd in held:
            os.close(fd)

@agent.handler
def stop_the_loop(state, request):
    asyncio.get_running_loop().stop()
    return "stopped"
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orun]:
    with orun_in(tmp_path_factory.mktemp("wild")) as orun:
        tireless = ("--set", "runtime.intensity=1000", "--set", "runtime.backoff_max=0.01s")
        orun.start(str(orun.write(WILD)), "--set", "runtime.stale=2s", *tireless)
        yield orun


@pytest.fixture
def wild(started: Orun) -> Orun:
    """The agent with a worker of its own: some handlers spoil the process for those that come after them."""
    with contextlib.suppress(ProcessLookupError, TypeError):  # it is dead already
        os.kill(started.agent()["pid"], signal.SIGKILL)
    return started


def outcome(orun: Orun, handler: str, payload: object = None) -> Any:
    """The reply, or the type of the error."""
    done = orun.run("call", handler, json.dumps(payload), "--json", "--timeout", "20s")
    assert "Traceback" not in done.stderr
    if done.returncode == 0:
        return json.loads(done.stdout)
    assert done.returncode == 1, done
    return json.loads(done.stderr)["error"]["type"]


@pytest.mark.parametrize(
    ("handler", "payload", "expected"),
    [
        ("segfault", None, "second attempt"),
        ("abort", None, "second attempt"),
        ("os_exit", None, "second attempt"),
        ("sys_exit", None, "handler_error"),
        ("interrupt", None, "handler_error"),
        ("base_exception", None, "handler_error"),
        ("generator_exit", None, "handler_error"),
        ("cancelled", None, "handler_error"),
        ("async_exit", None, "handler_error"),
        ("async_interrupt", None, "handler_error"),
        ("async_cancelled", None, "handler_error"),
        ("async_cancel_self", None, "handler_error"),
        ("too_much_memory", None, "handler_error"),
        ("limited_memory", None, "handler_error"),
        ("recursion", None, "handler_error"),
        ("deep_reply", {"depth": 100_000}, "unencodable_reply"),
        ("deep_state", {"depth": 100_000}, "unencodable_reply"),
        ("endless_reply", None, "unencodable_reply"),
        ("huge_reply", {"bytes": 8 << 20}, "too_large"),
        ("huge_state", {"bytes": 8 << 20}, "too_large"),
        ("huge_number", None, "unencodable_reply"),
        ("lone_surrogate", None, "unencodable_reply"),
        ("evil_reply", None, "unencodable_reply"),
        ("evil_state", None, "unencodable_reply"),
        ("evil_error", None, "handler_error"),
        ("surrogate_error", None, "handler_error"),
        ("huge_error", None, "handler_error"),
        ("close_everything", None, "second attempt"),
        ("close_streams", None, "closed"),
        ("change_folder", None, "/"),
        ("fork_and_work", None, [1, 2, 3]),
        ("leave_threads", None, 22),
        ("print_binary", None, "printed"),
        ("block_signals", None, "deaf"),
        ("steal_children", None, "stolen"),
        ("no_descriptors", None, "Too many open files"),
        ("stop_the_loop", None, "stopped"),
    ],
)
def test_the_agent_goes_on_after(wild: Orun, handler: str, payload: object, expected: object) -> None:
    before = outcome(wild, "add")
    found = outcome(wild, handler, payload)
    if handler != "leave_threads":
        assert found == expected
    assert outcome(wild, "add") == before + 1


@pytest.mark.parametrize("handler", ["fork_both", "fork_both_async", "fork_both_readonly"])
def test_a_fork_that_comes_back_from_its_handler_is_not_a_second_worker(wild: Orun, handler: str) -> None:
    """Both would write the same journal and answer the same sockets."""
    before = outcome(wild, "add")
    for number in range(1, 6):
        expected = before if handler == "fork_both_readonly" else before + number
        assert outcome(wild, handler) == expected
    assert outcome(wild, "add") == expected + 1
    assert wild.json("wal", "verify")["ok"]


def test_binary_output_is_logged_as_it_is(wild: Orun) -> None:
    assert outcome(wild, "print_binary") == "printed"
    log = wild.state_dir / "logs" / "wild.log"
    wait_until(lambda: bytes(range(1, 10)) in log.read_bytes(), what="the output in the log")
    assert wild.run("logs").returncode == 0
