"""What a process sets up for itself after a fork: parent, session, name, streams, limits.

No child may outlive its parent, and no grandchild may escape. Two kernel settings see to it: the
parent-death signal takes the child down when the runtime dies, and being a subreaper keeps whatever
the child starts below it, sessions of their own included, until the child dies and the runtime sweeps.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

EXIT_ORPHANED = 125
"""A child's exit code when its parent was gone before it could be bound to it."""
EXIT_NOT_EXECUTED = 127
"""A child's exit code when its command could not be run, as in a shell."""

TITLE_BYTES_MAX = 15
"""The kernel keeps so much of a process's name."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)

Target = Callable[[dict[str, Any], dict[str, int]], object]
"""What a forked child runs: its arguments, and its file descriptors by name."""


def _prctl(option: int, argument: int | bytes) -> None:
    value = ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, value, zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def set_subreaper(on: bool = True) -> None:
    """Orphans among this process's descendants become its children, not those of PID 1."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(on))


def die_with_parent(parent: int) -> None:
    """Be killed when ``parent`` dies; end at once when it is dead already.

    The signal is bound to the present parent, so a forked child calls this only once the process
    between it and the runtime is gone. The check afterwards closes the race with a parent that died first.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(EXIT_ORPHANED)


def set_title(title: str) -> None:
    """Name this process in ``ps`` and ``top``."""
    _prctl(_PR_SET_NAME, title.encode()[:TITLE_BYTES_MAX])
    _overwrite_arguments(f"orun: {title}".encode())


def _overwrite_arguments(title: bytes) -> None:
    # /proc/PID/cmdline shows this process's own memory. A forked child still shows the forkserver's
    # command line there, so the title takes its place, padded to the same length.
    with open("/proc/self/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end; 0 where the kernel hides them
    room = end - start - 1
    if start and room > 0:
        ctypes.memmove(start, title[:room].ljust(room, b"\0"), room)


def set_limits(*, memory_max: int = 0, files_max: int = 0, cpu_max: float = 0.0) -> None:
    """Limit address space (bytes), open files and CPU time (seconds); 0 leaves a limit as it is."""
    if memory_max:
        resource.setrlimit(resource.RLIMIT_AS, (memory_max, memory_max))
    if files_max:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    if cpu_max:
        # At the soft limit comes SIGXCPU, which a program may handle; a second later it is killed.
        soft = math.ceil(cpu_max)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, soft + 1))


def run_child(target: Target, args: dict[str, Any], fds: dict[str, int]) -> NoReturn:
    """Run ``target`` and end the process with its outcome; nothing of the parent's code runs after it."""
    try:
        target(args, fds)
        code = 0
    except SystemExit as end:
        code = _exit_code(end.code)
    except BaseException:  # noqa: BLE001 - the child boundary; the failure becomes an exit code and a traceback
        traceback.print_exc()
        code = 1
    _flush()
    os._exit(code)


def _exit_code(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, int):
        return value & 0xFF
    sys.stderr.write(f"{value}\n")
    return 1


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            # The reader of the pipe is gone, or the stream was closed: nobody is left to read it.
            continue


def exec_command(args: dict[str, Any], fds: dict[str, int]) -> None:
    """Become a plain command: ``command``, ``env`` (added), ``cwd`` and limits are in ``args``.

    The descriptor ``exec_error`` closes by itself when the command runs; before that it carries the
    reason why it does not.
    """
    command = [os.fsencode(word) for word in args["command"]]
    environment: dict[str, str] = {**os.environ, **args.get("env", {})}
    try:
        # An ignored signal stays ignored in the command; Python ignores these two.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        if args.get("cwd"):
            os.chdir(args["cwd"])
        set_limits(**_limits(args))
        os.execvpe(command[0], command, environment)
    except (OSError, ValueError) as error:
        reason = f"{error.strerror}: {args['command'][0]}" if isinstance(error, OSError) else str(error)
        if isinstance(error, OSError) and error.filename == args.get("cwd"):
            reason = f"{error.strerror}: working folder {args['cwd']}"
        os.write(fds["exec_error"], reason.encode()[:4096])
        os._exit(EXIT_NOT_EXECUTED)


def _limits(args: Mapping[str, Any]) -> dict[str, Any]:
    return {name: args[name] for name in ("memory_max", "files_max", "cpu_max") if args.get(name)}
