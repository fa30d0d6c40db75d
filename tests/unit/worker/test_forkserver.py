"""The forkserver, spoken to as the runtime does: real forks, and what they are when they begin."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from orun.runtime.sweep import child_pids, kill_children
from orun.worker.forkserver import MESSAGE_BYTES_MAX
from orun.worker.process import set_subreaper
from tests.support import alive, wait_until

HERE = __name__


class Server:
    """A forkserver process, and the runtime's end of its socket."""

    def __init__(self, *modules: str) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(10)
        number = theirs.fileno()
        command = [sys.executable, "-m", "orun.worker.forkserver", "--control-fd", str(number)]
        command += ["--parent", str(os.getpid())]
        for module in modules:
            command += ["--import", module]
        self.process = subprocess.Popen(
            command, pass_fds=[number], start_new_session=True, stderr=subprocess.PIPE, text=True
        )
        theirs.close()
        assert self.receive() == {"op": "ready", "id": 0, "pid": self.process.pid}

    def receive(self) -> Any:
        return msgpack.unpackb(self.socket.recv(MESSAGE_BYTES_MAX))

    def ask(self, target: str, args: Any = None, fds: dict[str, int] | None = None, title: str = "child") -> Any:
        fds = fds or {}
        request = {
            "op": "fork",
            "id": 7,
            "target": target,
            "args": args or {},
            "title": title,
            "fd_names": list(fds),
        }
        socket.send_fds(self.socket, [msgpack.packb(request)], list(fds.values()))
        return self.receive()

    def run(self, target: str, args: Any = None) -> tuple[int, str]:
        """Fork, wait for the end; its status and what it printed."""
        read, write = os.pipe()
        reply = self.ask(target, args, {"stdout": write, "stderr": write})
        os.close(write)
        assert reply["op"] == "forked", reply
        with os.fdopen(read) as output:
            text = output.read()
        return os.waitstatus_to_exitcode(os.waitpid(reply["pid"], 0)[1]), text

    def close(self) -> None:
        self.socket.close()
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server() -> Iterator[Server]:
    spare = child_pids()
    set_subreaper(True)
    server = Server("no.such.module", HERE)
    try:
        yield server
    finally:
        server.close()
        assert kill_children(spare)
        set_subreaper(False)


# Targets: run in the child.


def report(args: dict[str, Any], fds: dict[str, int]) -> None:
    facts = {
        "ppid": os.getppid(),
        "sid": os.getsid(0),
        "pid": os.getpid(),
        "comm": Path("/proc/self/comm").read_text().strip(),
        "cmdline": Path("/proc/self/cmdline").read_bytes().rstrip(b"\0").decode(),
        "open": [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd_exists(fd)],
        "args": args,
        "pdeath": pdeath_signal(),
        "subreaper": is_subreaper(),
    }
    sys.stdout.write(json.dumps(facts))


def fd_exists(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def pdeath_signal() -> int:
    return _prctl_get(2)


def is_subreaper() -> int:
    return _prctl_get(37)


def _prctl_get(option: int) -> int:
    import ctypes

    value = ctypes.c_int()
    assert ctypes.CDLL(None).prctl(option, ctypes.byref(value), 0, 0, 0) == 0
    return value.value


def leave(args: dict[str, Any], fds: dict[str, int]) -> None:
    sys.exit(args["code"])


def crash(args: dict[str, Any], fds: dict[str, int]) -> None:
    raise ValueError("no good")


def speak(args: dict[str, Any], fds: dict[str, int]) -> None:
    os.write(fds["speech"], b"heard")
    assert not os.get_inheritable(fds["speech"])


def rest(args: dict[str, Any], fds: dict[str, int]) -> None:
    time.sleep(1000)


def serve_with_thread(args: dict[str, Any], fds: dict[str, int]) -> None:
    import threading

    from orun.worker import forkserver

    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    forkserver.serve(fds["control"])


def serve_template(args: dict[str, Any], fds: dict[str, int]) -> None:
    from orun.worker import forkserver

    globals()["LOADED"] = "by the template"
    forkserver.serve(fds["control"])


def say_loaded(args: dict[str, Any], fds: dict[str, int]) -> None:
    sys.stdout.write(f"{globals()['LOADED']} {os.getppid()} {is_subreaper()}")


def test_child_belongs_to_the_runtime_and_cannot_escape(server: Server) -> None:
    code, text = server.run(f"{HERE}:report", {"x": [1, "é"]})
    facts = json.loads(text)
    assert code == 0
    assert facts["ppid"] == os.getpid()
    assert facts["sid"] == facts["pid"]
    assert facts["pdeath"] == signal.SIGKILL
    assert facts["subreaper"] == 1
    assert facts["args"] == {"x": [1, "é"]}


def test_child_has_its_title_and_no_descriptor_of_the_forkserver(server: Server) -> None:
    (control,) = [
        os.readlink(f"/proc/{server.process.pid}/fd/{fd}")
        for fd in os.listdir(f"/proc/{server.process.pid}/fd")
        if os.readlink(f"/proc/{server.process.pid}/fd/{fd}").startswith("socket:")
    ]
    facts = json.loads(server.run(f"{HERE}:report")[1])
    assert facts["comm"] == "child"
    assert facts["cmdline"] == "orun: child"
    assert control not in facts["open"]


@pytest.mark.parametrize(("value", "code", "said"), [(None, 0, ""), (3, 3, ""), ("sorry", 1, "sorry\n")])
def test_exit_of_the_target_is_the_exit_of_the_child(server: Server, value: object, code: int, said: str) -> None:
    assert server.run(f"{HERE}:leave", {"code": value}) == (code, said)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (f"{HERE}:crash", "ValueError: no good"),
        (f"{HERE}:nothing", "AttributeError"),
        ("no.module:x", "ModuleNotFoundError"),
    ],
)
def test_failure_in_the_child_is_a_traceback_and_an_exit_code(server: Server, target: str, said: str) -> None:
    code, text = server.run(target)
    assert code == 1
    assert said in text
    assert server.run(f"{HERE}:leave", {"code": 0})[0] == 0


def test_descriptors_arrive_by_name_and_go_no_further(server: Server) -> None:
    ours, theirs = os.pipe()
    reply = server.ask(f"{HERE}:speak", fds={"speech": theirs})
    os.close(theirs)
    assert os.read(ours, 100) == b"heard"
    os.close(ours)
    assert os.waitpid(reply["pid"], 0)[1] == 0


def test_children_outlive_the_forkserver(server: Server) -> None:
    """Even when it is killed in the moment after it has reported the child."""
    pid = server.ask(f"{HERE}:rest")["pid"]
    server.process.kill()
    server.process.wait()
    wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "child\n", what="the child has begun")
    assert alive(pid)
    assert pid in child_pids()
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_forkserver_ends_when_the_runtime_hangs_up(server: Server) -> None:
    pid = server.ask(f"{HERE}:rest")["pid"]
    server.socket.close()
    assert server.process.wait(10) == 0
    assert alive(pid)


def test_template_serves_forks_of_itself_that_belong_to_the_runtime(server: Server) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    template = server.ask(f"{HERE}:serve_template", fds={"control": theirs.fileno()})["pid"]
    theirs.close()
    ours.settimeout(10)
    server.socket.close()
    server.socket = ours
    assert server.receive() == {"op": "ready", "id": 0, "pid": template}
    assert server.run(f"{HERE}:say_loaded") == (0, f"by the template {os.getpid()} 1")


def test_process_with_a_thread_refuses_to_fork(server: Server) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.ask(f"{HERE}:serve_with_thread", fds={"control": theirs.fileno()})
    theirs.close()
    ours.settimeout(10)
    server.socket.close()
    server.socket = ours
    assert server.receive()["op"] == "ready"
    reply = server.ask(f"{HERE}:rest")
    assert reply["op"] == "failed"
    assert reply["id"] == 7
    assert "2 threads" in reply["error"]


def test_report_comes_before_the_child_can_be_seen(server: Server) -> None:
    """A new worker must never look like a leftover: whoever is a child of ours has been announced."""
    request = {"op": "fork", "id": 1, "target": f"{HERE}:leave", "args": {"code": 0}, "title": "x", "fd_names": []}
    announced: set[int] = {server.process.pid, *child_pids()}
    for _ in range(30):
        server.socket.send(msgpack.packb(request))
        deadline = time.monotonic() + 10
        new = 0
        while not new:
            assert time.monotonic() < deadline
            seen = set(child_pids())
            while select.select([server.socket], [], [], 0)[0]:
                new = server.receive()["pid"]
                announced.add(new)
            assert seen <= announced
        wait_until(lambda pid=new: _reaped(pid), 10)


def _reaped(pid: int) -> bool:
    # It is not this process's child yet while the process between is there.
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False


def test_child_dies_with_the_runtime(tmp_path: Path) -> None:
    """The runtime is a process of its own here: it is killed, and its forks go with it."""
    source = f"""
import sys
from {HERE} import Server, set_subreaper
set_subreaper(True)
server = Server({HERE!r})
pid = server.ask({HERE + ":rest"!r})["pid"]
print(pid, server.process.pid, flush=True)
sys.stdin.read()
"""
    runtime = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert runtime.stdin is not None
    assert runtime.stdout is not None
    pids = [int(pid) for pid in runtime.stdout.readline().split()]
    assert len(pids) == 2
    assert all(map(alive, pids))
    runtime.kill()
    runtime.wait()
    wait_until(lambda: not any(map(alive, pids)), 5, "the death of its forks")
    runtime.stdin.close()
    runtime.stdout.close()
