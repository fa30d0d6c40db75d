"""Callers that cost next to nothing, so that what is measured is the far end.

A request's frame is put together from parts that were encoded once; only its number and identifier differ.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import struct
import time
from pathlib import Path
from typing import Any

import msgpack

from orun.worker import wire

DEADLINE_S = 30.0


class Caller:
    """One blocking connection to a worker, with a window of requests in flight."""

    def __init__(self, path: str | Path, handler: str, payload: Any) -> None:
        self.path = str(path)
        self._middle = wire.pack(handler) + wire.pack(payload) + b"\x81" + wire.pack("id") + b"\xc4\x10" + os.urandom(8)
        self._seq = 0
        self._decoder = wire.Decoder(64 << 20)
        self._socket = self._connect()
        self.spans: list[tuple[float, float]] = []
        """When each request of the latest run began and ended."""

    def close(self) -> None:
        self._socket.close()

    def run(self, seconds: float, window: int) -> tuple[float, list[float]]:
        """Requests per second, and each one's latency in seconds."""
        started: dict[int, float] = {}
        self.spans = spans = []
        begin = now = time.perf_counter()
        end = begin + seconds
        self._send(started, window, now)
        while started:
            replies = [msgpack.unpackb(body, strict_map_key=False) for body in self._receive()]
            now = time.perf_counter()
            for seq, ok, body in replies:
                assert ok, body
                spans.append((started.pop(seq), now))
            if now < end:
                self._send(started, len(replies), now)
        return len(spans) / (now - begin), [end - begin for begin, end in spans]

    def once(self) -> Any:
        """One request, through any number of broken connections: always under the same identifier."""
        self._seq += 1
        frame = self._frame(self._seq)
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            try:
                self._socket.sendall(frame)
                while not (bodies := self._receive()):
                    pass
            except OSError:
                self._again()
                continue
            _, ok, body = msgpack.unpackb(bodies[0], strict_map_key=False)
            assert ok, body
            return body
        raise TimeoutError(f"no reply from {self.path}")

    def _frame(self, seq: int) -> bytes:
        body = b"\x94\xce" + seq.to_bytes(4, "big") + self._middle + seq.to_bytes(8, "big")
        return struct.pack("<I", len(body)) + body

    def _send(self, started: dict[int, float], count: int, now: float) -> None:
        frames = []
        for _ in range(count):
            self._seq = seq = self._seq + 1
            started[seq] = now
            frames.append(self._frame(seq))
        self._socket.sendall(b"".join(frames))

    def _receive(self) -> list[bytes]:
        data = self._socket.recv(1 << 18)
        if not data:
            raise ConnectionResetError
        return self._decoder.feed(data)

    def _again(self) -> None:
        self._socket.close()
        self._decoder = wire.Decoder(64 << 20)
        self._socket = self._connect()

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(self.path)
            except OSError:
                sock.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.0002)
            else:
                return sock


def http_load(port: int, path: str, payload: Any, seconds: float, connections: int) -> float:
    """Requests per second over so many keep-alive connections, one request in flight on each."""
    body = json.dumps(payload).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    poll = select.epoll()
    sockets = {}
    for _ in range(connections):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets[sock.fileno()] = sock
        poll.register(sock.fileno(), select.EPOLLIN)
        sock.sendall(request)
    answers = dict.fromkeys(sockets, b"")
    done = 0
    begin = time.perf_counter()
    end = begin + seconds
    while time.perf_counter() < end:
        for fd, _ in poll.poll(1.0):
            answers[fd] += sockets[fd].recv(65536)
            if _complete(answers[fd]):
                done += 1
                answers[fd] = b""
                sockets[fd].sendall(request)
    elapsed = time.perf_counter() - begin
    poll.close()
    for sock in sockets.values():
        sock.close()
    return done / elapsed


def _complete(answer: bytes) -> bool:
    """Whether a whole response is there; it must be a good one."""
    head, separator, body = answer.partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:500]
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return bool(separator) and length is not None and len(body) >= int(length[1])


def sync_ms(folder: Path, count: int = 200) -> float:
    """The median time of an fdatasync of a 4 KB append on this folder's disk, in milliseconds."""
    path = folder / "sync-probe"
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    times = []
    try:
        os.write(file, bytes(4096 * count))
        os.fsync(file)
        for at in range(count):
            os.pwrite(file, bytes(4096), at * 4096)
            begin = time.perf_counter()
            os.fdatasync(file)
            times.append(time.perf_counter() - begin)
    finally:
        os.close(file)
        path.unlink()
    return sorted(times)[count // 2] * 1000
