"""What the command line talks to: real sockets that speak the protocol, with scripted answers."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orun.worker import wire

Answer = Callable[[list[Any]], tuple[bool, Any] | None]
"""From a request to ``(ok, body)``; None drops the connection, as a dying worker does."""

LENGTH = struct.Struct("<I")


def echo(request: list[Any]) -> tuple[bool, Any]:
    return True, request[2]


def refuse(kind: str, message: str = "no", **more: Any) -> tuple[bool, dict[str, Any]]:
    return False, {"type": kind, "message": message, **more}


class Endpoint:
    """One listening socket; every connection has a thread."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path = path
        self.answer = answer
        self.received: list[list[Any]] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen(16)
        self._threads = [threading.Thread(target=self._accept)]
        self._connections: list[socket.socket] = []
        self._threads[0].start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join(10)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while header := stream.read(LENGTH.size):
                request = wire.unpack(stream.read(*LENGTH.unpack(header)))
                self.received.append(request)
                answer = self.answer(request)
                if answer is None:
                    return
                try:
                    connection.sendall(wire.encode([request[0], *answer]))
                except OSError:
                    return


class Service:
    """A state directory with a control socket and agents behind it."""

    def __init__(self, folder: Path, *, pid: int | None = None) -> None:
        self.state_dir = folder / "state"
        self.run_dir = self.state_dir / "run"
        self.run_dir.mkdir(parents=True)
        self.operations: dict[str, Callable[[dict[str, Any]], Any]] = {}
        self.endpoints: list[Endpoint] = []
        self.agents: list[dict[str, Any]] = []
        self.pid = os.getpid() if pid is None else pid
        self.control = Endpoint(self.run_dir / "control.sock", self._control)
        self.endpoints.append(self.control)
        self._describe()

    def agent(self, name: str, handlers: dict[str, Answer]) -> Endpoint:
        """Add an agent; requests for other handlers are echoed."""
        endpoint = Endpoint(self.run_dir / f"{name}.sock", lambda request: handlers.get(request[1], echo)(request))
        self.endpoints.append(endpoint)
        self.agents.append({"name": name, "socket": str(endpoint.path), "handlers": sorted(handlers)})
        self._describe()
        return endpoint

    def close(self) -> None:
        for endpoint in self.endpoints:
            endpoint.close()

    def _control(self, request: list[Any]) -> tuple[bool, Any] | None:
        _, op, args = request
        operation = self.operations.get(op)
        if operation is None:
            return refuse("unknown_op", f"there is no operation {op!r}", code=2)
        answer = operation(args)
        return answer if isinstance(answer, tuple) else (True, answer)

    def _describe(self) -> None:
        document = {"schema": 1, "pid": self.pid, "control": str(self.control.path), "agents": self.agents}
        (self.run_dir / "runtime.json").write_text(json.dumps(document))


class Cli:
    """The command as a program, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith("ORUN_") or name == "ORUN_CACHE_DIR"
            },
            "ORUN_STATE_DIR": str(folder / "state"),
        }

    def __call__(
        self, *arguments: str, stdin: bytes | None = b"", **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "orun", *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert b"\x1b" not in done.stdout + done.stderr, "escape bytes in a pipe"
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done

    def error(self, *arguments: str, stdin: bytes | None = b"", code: int) -> dict[str, Any]:
        """Run a command with --json that must fail with this code; its structured error."""
        done = self(*arguments, "--json", stdin=stdin)
        assert done.returncode == code, (done.returncode, done.stderr.decode())
        assert done.stdout == b""
        document = json.loads(done.stderr)
        assert document["schema"] == 1
        error: dict[str, Any] = document["error"]
        assert error["code"] == code
        return error
