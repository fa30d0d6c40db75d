"""The forkserver: a process that has done the imports, so that a worker is a fork and not a start.

Starting an interpreter and importing what a worker needs takes 50 to 100 ms, a fork of a process that
has done so 2 to 3 ms. The forkserver therefore stays what a fork is safe from: single-threaded, its heap
collected and frozen, nothing open but its control socket. A template (a process that has imported an
agent's file on top) serves forks in the same way, by calling :func:`serve` itself.

A request is one MessagePack datagram on a SOCK_SEQPACKET socket, its file descriptors beside it::

    {"op": "fork", "id": n, "target": "module:function", "args": {…}, "title": text, "fd_names": [name, …]}
    {"op": "ready", "id": 0, "pid": p}      once, when serving begins
    {"op": "forked", "id": n, "pid": p}     or {"op": "failed", "id": n, "error": text}

The child must be the runtime's own, not the forkserver's, so that the runtime can wait for it and so that
it lives on when the forkserver dies. Hence two forks: the process in between reports the child and exits,
and the child falls to the nearest subreaper, the runtime. **Order is what makes it safe:** the report is
sent before the middle process exits, that is before the runtime can see a new child at all. A runtime that
reads its reports before it looks for unknown children never takes a new worker for a leftover.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn, cast

import msgpack

from orun.worker.process import (
    Target,
    die_with_parent,
    run_child,
    set_subreaper,
    set_title,
)

MESSAGE_BYTES_MAX = 128 << 10
"""The largest message; the kernel refuses a datagram that does not fit its send buffer (208 KB)."""
FDS_MAX = 32

_MIDDLE_DONE = 0
_MIDDLE_FAILED = 1


def serve(control_fd: int) -> None:
    """Fork children on request until the other end of ``control_fd`` is closed."""
    control = socket.socket(fileno=control_fd)
    control.setblocking(True)
    control.set_inheritable(False)
    # A subreaper here would keep the children that are meant for the runtime.
    set_subreaper(False)
    runtime = os.getppid()
    gc.disable()
    gc.collect()
    gc.freeze()
    _send(control, {"op": "ready", "id": 0, "pid": os.getpid()})
    try:
        while True:
            data, fds, _flags, _address = socket.recv_fds(control, MESSAGE_BYTES_MAX, FDS_MAX)
            for fd in fds:
                os.set_inheritable(fd, False)  # recv_fds in Python 3.11 leaves its flags argument aside
            if not data:
                return
            try:
                _answer(control, msgpack.unpackb(data), fds, runtime)
            finally:
                for fd in fds:
                    os.close(fd)
    except ConnectionError:
        return
    finally:
        control.close()


def _answer(control: socket.socket, request: dict[str, Any], fds: list[int], runtime: int) -> None:
    problem = _unfit()
    if problem is None:
        try:
            problem = _fork_twice(control, request, fds, runtime)
        except OSError as error:
            problem = f"fork: {error.strerror}"
    if problem is not None:
        _send(control, {"op": "failed", "id": request["id"], "error": problem})


def _unfit() -> str | None:
    """Why this process must not fork: a lock held by another thread would stay locked in the child."""
    threads = os.listdir("/proc/self/task")
    if len(threads) == 1:
        return None
    return f"{len(threads)} threads run in this process ({', '.join(map(_thread_name, threads))}); one may"


def _thread_name(thread: str) -> str:
    try:
        with open(f"/proc/self/task/{thread}/comm", encoding="utf-8", errors="replace") as comm:
            return comm.read().strip()
    except FileNotFoundError:
        return thread


def _fork_twice(control: socket.socket, request: dict[str, Any], fds: list[int], runtime: int) -> str | None:
    # The child waits until this process has reaped the middle one and closes the gate: by then the
    # runtime is its parent, and the parent-death signal can be bound to it.
    gate, opener = os.pipe()
    try:
        middle = os.fork()
        if middle == 0:
            _be_middle(control, request, fds, (gate, opener), runtime)
        status = os.waitpid(middle, 0)[1]
    finally:
        os.close(gate)
        os.close(opener)
    return None if status == _MIDDLE_DONE else f"the process between ended with status {status}"


def _be_middle(
    control: socket.socket, request: dict[str, Any], fds: list[int], pipe: tuple[int, int], runtime: int
) -> NoReturn:
    """Fork the child, report it, end. Whatever happens, this copy never returns to the serving loop."""
    status = _MIDDLE_FAILED
    middle = os.getpid()
    try:
        child = os.fork()
        if child == 0:
            run_child(lambda args, named: _be_child(control, request, fds, pipe, middle, runtime), {}, {})
        _send(control, {"op": "forked", "id": request["id"], "pid": child})
        status = _MIDDLE_DONE
    finally:
        os._exit(status)


def _be_child(
    control: socket.socket,
    request: dict[str, Any],
    fds: list[int],
    pipe: tuple[int, int],
    middle: int,
    runtime: int,
) -> None:
    gate, opener = pipe
    control.close()
    os.close(opener)
    os.read(gate, 1)
    os.close(gate)
    while os.getppid() == middle:
        # The forkserver was killed, which opened the gate early; the middle process is about to end too.
        time.sleep(0.0002)
    os.setsid()
    die_with_parent(runtime)
    set_subreaper()
    named = dict(zip(request["fd_names"], fds, strict=True))
    for name, number in (("stdout", 1), ("stderr", 2)):
        if name in named:
            fd = named.pop(name)
            os.dup2(fd, number)
            os.close(fd)
    set_title(request["title"])
    gc.enable()
    _resolve(request["target"])(request["args"], named)


def _resolve(target: str) -> Target:
    module, _, name = target.partition(":")
    return cast(Target, getattr(importlib.import_module(module), name))


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    control.send(msgpack.packb(message))


def _preload(modules: Sequence[str]) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            # A child that needs it fails with the full story; one that does not is none the worse.
            sys.stderr.write(f"forkserver: {module} is not loaded: {error}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m orun.worker.forkserver``."""
    parser = argparse.ArgumentParser(prog="orun.worker.forkserver")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True, help="process to die with")
    parser.add_argument("--import", dest="modules", action="append", default=[])
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    set_title("forkserver")
    for stream in (sys.stdout, sys.stderr):
        # What a child prints goes to a log through a pipe: line by line, whatever characters it holds.
        cast(io.TextIOWrapper, stream).reconfigure(line_buffering=True, errors="backslashreplace")
    _preload(options.modules)
    serve(options.control_fd)


if __name__ == "__main__":
    main()
