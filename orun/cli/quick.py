"""``status``, ``stop`` and ``call``, and the short way to them, and to ``run``, that leaves Typer out.

The work of these commands is here, free of heavy imports, and both ways end in it: Typer's command functions
call it, and so does ``shortcut`` after reading the arguments by the table below. The table only knows plain
spellings; whatever it does not know goes to Typer, which also has the error messages and the help.
"""

from __future__ import annotations

import os
import sys
import time

from orun import project
from orun.cli import output
from orun.errors import DeadlineExceeded, NotRunning, OrunError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

CALL_TIMEOUT = "60s"
STOP_TIMEOUT = "60s"
STATUS_TIMEOUT_S = 10.0
PAYLOAD_BYTES_MAX = 1 << 28

FLAG, TEXT = "flag", "text"
OPTIONS = {
    "status": {"--json": FLAG, "--state-dir": TEXT},
    "stop": {"--json": FLAG, "--quiet": FLAG, "--state-dir": TEXT, "--timeout": TEXT},
    "call": {
        "--json": FLAG,
        "--lines": FLAG,
        "--state-dir": TEXT,
        "--agent": TEXT,
        "--key": TEXT,
        "--timeout": TEXT,
    },
}
POSITIONALS = {"status": (), "stop": (), "call": ("handler", "payload")}
REQUIRED = {"status": 0, "stop": 0, "call": 1}


def shortcut(arguments: Sequence[str]) -> int | None:
    """Run a command the short way and return its exit code; None when the arguments need Typer."""
    if arguments[:1] == ["run"]:
        from orun.cli import quick_run

        return quick_run.shortcut(arguments[1:])
    if not arguments or arguments[0] not in OPTIONS:
        return None
    values = read(arguments[0], arguments[1:])
    if values is None:
        return None
    if arguments[0] == "call":
        return call(**values)
    return stop(**values) if arguments[0] == "stop" else status(**values)


def read(command: str, arguments: Sequence[str]) -> dict[str, Any] | None:
    """The keyword arguments in a plain command line; None when anything is out of the ordinary."""
    options = OPTIONS[command]
    names = POSITIONALS[command]
    values: dict[str, Any] = {}
    positionals: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "-" or not argument.startswith("-"):
            positionals.append(argument)
            continue
        option, equals, text = argument.partition("=")
        kind = options.get(option)
        if kind is None or (kind is FLAG and equals):
            return None
        if kind is TEXT and not equals:
            following = next(rest, None)
            if following is None or (following.startswith("-") and following != "-"):
                return None
            text = following
        values[option[2:].replace("-", "_")] = True if kind is FLAG else text
    if not REQUIRED[command] <= len(positionals) <= len(names):
        return None
    return values | dict(zip(names, positionals, strict=False))


def status(state_dir: str | None = None, *, json: bool = False) -> int:
    """Print what runs in a state directory."""
    from orun.worker import plain

    document = plain.control(project.find_state_dir(state_dir), "status", timeout_s=STATUS_TIMEOUT_S)
    if json:
        output.document(document)
        return 0
    from orun.observe.status import render

    output.result(render(document, styled=output.colour(sys.stdout), width=output.width(sys.stdout)))
    return 0


def stop(state_dir: str | None = None, *, timeout: str = STOP_TIMEOUT, json: bool = False, quiet: bool = False) -> int:
    """Stop the runtime in an orderly way and wait until its last process has gone."""
    import select
    import signal

    from orun.worker import plain

    timeout_s = duration("--timeout", timeout)
    deadline = time.monotonic() + timeout_s
    folder = project.find_state_dir(state_dir)
    pid = int(project.read_runtime(folder)["pid"])
    try:
        # Held before the request, so that a new process with the same number is never waited for.
        guard = os.pidfd_open(pid)
    except ProcessLookupError:
        guard = -1
    try:
        plain.control(folder, "stop", {"timeout": timeout_s}, timeout_s=timeout_s)
    except plain.Broken:
        # It may well close the connection before its answer is out. What counts is that it goes.
        if guard < 0:
            raise
    except NotRunning:
        # Its socket is gone or answers nobody, and the process lives: a signal means the same to it.
        if guard < 0:
            raise
        signal.pidfd_send_signal(guard, signal.SIGTERM)
    if guard >= 0:
        poll = select.poll()
        poll.register(guard, select.POLLIN)
        gone = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        os.close(guard)
        if not gone:
            raise DeadlineExceeded(
                f"still stopping after {timeout} (pid {pid})",
                hint="wait for it with a longer --timeout, or see `orun logs` for what it waits for",
            )
    if json:
        output.document({"stopped": True, "pid": pid, "state_dir": folder})
    else:
        output.note(f"stopped (pid {pid})", quiet=quiet)
    return 0


def call(
    handler: str,
    payload: str | None = None,
    *,
    agent: str | None = None,
    key: str | None = None,
    timeout: str = CALL_TIMEOUT,
    lines: bool = False,
    state_dir: str | None = None,
    json: bool = False,
) -> int:
    """Send one request and print its reply, or one for every line of standard input."""
    del json  # A reply is JSON in any case; the flag turns errors into JSON, which main() does.
    from orun.worker import plain

    timeout_s = duration("--timeout", timeout)
    if key is not None and not 1 <= len(os.fsencode(key)) <= 200:
        raise UsageError("--key takes 1 to 200 bytes")
    if lines:
        return _call_lines(handler, payload, agent=agent, key=key, timeout_s=timeout_s, state_dir=state_dir)
    value = _payload(payload)
    folder = project.find_state_dir(state_dir)
    reply = plain.call(folder, handler, value, agent=agent, key=key, timeout_s=timeout_s)
    output.result(output.to_json(reply))
    return 0


def _call_lines(
    handler: str, payload: str | None, *, agent: str | None, key: str | None, timeout_s: float, state_dir: str | None
) -> int:
    if payload not in (None, "-") or key is not None:
        raise UsageError("--lines reads its payloads from standard input and takes no payload and no --key")
    from orun.worker.stream import Stream

    folder = project.find_state_dir(state_dir)
    project.read_runtime(folder)
    refused = Stream(
        folder,
        handler,
        source=sys.stdin.fileno(),
        parse=lambda line: parse_json(line, "standard input"),
        emit=lambda ok, body: output.result(output.to_json(body if ok else {"error": body})),
        agent=agent,
        timeout_s=timeout_s,
    ).run()
    if refused:
        raise OrunError(f"{refused} of the requests failed", hint="their lines of output say why")
    return 0


def _payload(text: str | None) -> Any:
    if text is None:
        return {}
    if text == "-":
        return parse_json(sys.stdin.buffer.read(PAYLOAD_BYTES_MAX + 1), "standard input")
    return parse_json(os.fsencode(text), "the payload")


def parse_json(data: bytes, where: str) -> Any:
    """A JSON value, or a UsageError that says where it goes wrong."""
    import json

    if len(data) > PAYLOAD_BYTES_MAX:
        raise UsageError(f"{where} is over the limit of {PAYLOAD_BYTES_MAX >> 20} MB")
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8: byte {error.start} is {data[error.start]:#04x}") from error
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{where} is not JSON: {error.msg}, line {error.lineno} column {error.colno}",
            hint="""quote it for the shell: orun call HANDLER '{"key": "value"}'""",
        ) from error
    except RecursionError as error:
        raise UsageError(f"{where} is nested too deeply") from error
    except ValueError as error:
        raise UsageError(f"{where} cannot be used: {error}") from error


def duration(option: str, text: str) -> float:
    """The seconds in an option's value."""
    from orun.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is too large")
    return value
