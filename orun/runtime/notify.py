"""systemd's notification protocol, both ways: orun tells its own manager, and its children tell orun.

A message is a datagram of ``NAME=value`` lines to the unix socket named in ``NOTIFY_SOCKET``; see sd_notify(3).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
from collections.abc import Callable, Mapping, MutableMapping
from typing import Final

MESSAGE_BYTES_MAX: Final = 4096
_CREDENTIALS: Final = struct.Struct("3i")


class SystemdNotifier:
    """Tells the manager that started orun (systemd, Podman …) that it is ready, stopping, and alive."""

    def __init__(self, address: str, watchdog_s: float | None) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watchdog_s = watchdog_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> SystemdNotifier | None:
        """The notifier when a manager listens. Its variables are removed: they are not meant for children."""
        address = environment.pop("NOTIFY_SOCKET", "")
        interval = environment.pop("WATCHDOG_USEC", "")
        owner = environment.pop("WATCHDOG_PID", "")
        if not address:
            return None
        # systemd names the process that it started: the guard, which is this process's parent.
        ours = owner in ("", str(os.getpid()), str(os.getppid()))
        return cls(address, int(interval) / 1e6 if ours and interval.isdigit() else None)

    def ready(self, status: str = "") -> None:
        """It serves; from now on the keep-alive is sent while the event loop turns."""
        self._send("READY=1", *([f"STATUS={status}"] if status else []))
        if self._watchdog_s is not None and self._timer is None:
            self._beat()

    def stopping(self) -> None:
        """It is about to end."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={text}")

    def close(self) -> None:
        """Send nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        self._socket.close()

    def _beat(self) -> None:
        assert self._watchdog_s is not None
        self._send("WATCHDOG=1")
        self._timer = asyncio.get_running_loop().call_later(self._watchdog_s / 2, self._beat)

    def _send(self, *lines: str) -> None:
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            # The manager is restarting or its queue is full. It asks for nothing but the next message.
            return


class NotifyReceiver:
    """Where one child sends its notifications; ``heard`` gets the fields of each message.

    The socket has no file: an abstract address needs no clean-up and no short path, and the random part is
    known to the child only. Messages of other users are ignored.
    """

    def __init__(self, name: str, heard: Callable[[Mapping[str, str]], None]) -> None:
        self.address = f"@orun/{secrets.token_hex(8)}/{name[:32]}"
        self._heard = heard
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(b"\0" + self.address[1:].encode())
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._receive)

    def close(self) -> None:
        """Listen no more."""
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _receive(self) -> None:
        size = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(64)
        data, ancillary, _flags, _address = self._socket.recvmsg(MESSAGE_BYTES_MAX, size, socket.MSG_CMSG_CLOEXEC)
        uid = None
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                uid = _CREDENTIALS.unpack(content)[1]
            elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                _close_all(content)  # offered for a store of descriptors, which orun does not keep
        if uid in (0, os.geteuid()):
            self._heard(parse(data))


def _close_all(content: bytes) -> None:
    for (fd,) in struct.iter_unpack("i", content[: len(content) // 4 * 4]):
        os.close(fd)


def parse(data: bytes) -> dict[str, str]:
    """The fields of one message; lines without ``=`` are skipped."""
    lines = data.decode("utf-8", "replace").split("\n")
    return dict(line.split("=", 1) for line in lines if "=" in line)
