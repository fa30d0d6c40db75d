"""Starting a runtime: build the engine, then become the guard, or start it and wait until the agent answers.

The guard is the first process of every tree (see DESIGN, Processes); ``orun run`` in the foreground replaces itself
by it, so that there is no process above it that could die or swallow a signal.

A detached runtime says that it is ready on a pipe whose descriptor is in ``ORUN_READY_FD``: one JSON line,
``{"ok": true, "pid", "runtime_pid", "http", "agents"}`` or ``{"ok": false, "code", "message", "hint"?}``. The
end of the pipe without a line means that the guard has gone, and its exit code is passed on.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

from orun.errors import DeadlineExceeded, UsageError
from orun.worker.plain import error_for_code

READY_FD = "ORUN_READY_FD"
START_LOG = "runtime.out"
LOG_LINES_SHOWN = 8
READY_BYTES_MAX = 1 << 20
END_WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the runtime process is told, as the JSON text of its one argument."""

    state_dir: str
    agents: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    http: str = ""
    token_file: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    settings_file: str | None = None
    foreground: bool = True
    live: bool = False
    watch: bool = False
    quiet: bool = False


def exec_foreground(options: Options, progress: Callable[[str], None]) -> NoReturn:
    """Replace this process by the guard, which starts the runtime. Returns only by raising."""
    guard = _guard(progress)
    sys.stdout.flush()
    sys.stderr.flush()
    os.environ.pop(READY_FD, None)
    os.execv(guard, _arguments(guard, options))


def detach(options: Options, progress: Callable[[str], None], *, timeout_s: float) -> dict[str, Any]:
    """Start the guard in a session of its own and wait until the runtime is ready.

    Raises what the runtime reported, with its exit code, or DeadlineExceeded after having stopped it.
    """
    guard = _guard(progress)
    log = os.path.join(options.state_dir, "logs", START_LOG)
    try:
        for folder in (options.state_dir, os.path.dirname(log)):  # the mode is that of the last folder only
            os.makedirs(folder, mode=0o700, exist_ok=True)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(
            f"cannot write to {options.state_dir}: {error.strerror}",
            hint="choose another place with --state-dir, or make this one writable",
        ) from error
    ready, say_ready = os.pipe()
    try:
        process = subprocess.Popen(
            _arguments(guard, options),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(say_ready,),
            env={**os.environ, READY_FD: str(say_ready)},
        )
    finally:
        os.close(output)
        os.close(say_ready)
    with open(ready, "rb", buffering=0) as pipe:
        try:
            message = _first_line(pipe.fileno(), time.monotonic() + timeout_s)
        except BaseException:
            # A deadline or Ctrl-C: a runtime nobody waits for must not stay behind.
            _end(process)
            raise
    return _outcome(message, process, log)


def _guard(progress: Callable[[str], None]) -> str:
    from orun.engine import build

    return str(build.ensure(progress).guard)


def _arguments(guard: str, options: Options) -> list[str]:
    # -P: a file in the working folder that is called like a standard module must not replace it.
    return [guard, "--", sys.executable, "-P", "-m", "orun.runtime", json.dumps(asdict(options))]


def _first_line(pipe: int, deadline: float) -> bytes:
    """What the runtime says, up to the end of the line or of the pipe."""
    data = b""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while b"\n" not in data and len(data) < READY_BYTES_MAX:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise DeadlineExceeded(
                "the runtime was not ready in time and was stopped",
                hint="raise runtime.start_timeout, or see `orun logs` for what it was waiting for",
            )
        piece = os.read(pipe, 1 << 16)
        if not piece:
            break
        data += piece
    return data.partition(b"\n")[0]


def _outcome(message: bytes, process: subprocess.Popen[bytes], log: str) -> dict[str, Any]:
    try:
        document = json.loads(message) if message else None
    except ValueError:
        document = None
    if isinstance(document, dict) and document.get("ok") is True:
        # It lives on without us; not to be reaped, so not to be complained about either.
        process.returncode = 0
        return {name: value for name, value in document.items() if name != "ok"}
    code = _end(process, asked=False)
    if isinstance(document, dict):
        raise error_for_code(int(document.get("code", 1)), str(document.get("message", "")), document.get("hint"))
    tail = _tail(log)
    ending = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    raise error_for_code(
        code if code > 0 else 1,
        f"the runtime ended before it was ready ({ending})" + (f":\n{tail}" if tail else ""),
        f"all it said is in {log}",
    )


def _end(process: subprocess.Popen[bytes], *, asked: bool = True) -> int:
    """Reap the guard: after its own end, or after it was told to take the tree down."""
    if asked:
        process.terminate()
    try:
        return process.wait(END_WAIT_S)
    except subprocess.TimeoutExpired:
        # The guard's sentinel takes the tree down when the guard is killed.
        process.kill()
        return process.wait()


def _tail(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read()[-16384:].splitlines()
    except OSError:
        return ""
    return "\n".join(f"  {line}" for line in lines[-LOG_LINES_SHOWN:])
