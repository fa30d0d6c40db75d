"""How a plain command shows that it is ready: by notification, an open port, or a command that succeeds."""

from __future__ import annotations

import asyncio
import shlex
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from orun.errors import UsageError
from orun.runtime.child import Exit

POLL_INTERVAL_S: Final = 0.05
PROBE_TIMEOUT_S: Final = 5.0
"""One connection attempt, or one run of the command, may take so long."""

Run = Callable[[list[str], float], Awaitable[Exit]]
"""Runs a command for at most so many seconds and tells how it ended."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """What is waited for before a command counts as ready."""

    kind: Literal["started", "notify", "port", "command"] = "started"
    port: int = 0
    command: str = ""

    @classmethod
    def parse(cls, text: str) -> Readiness:
        """From a setting: empty, ``notify``, ``port:NUMBER`` or ``command:CMD``. Raises UsageError."""
        kind, _, rest = text.partition(":")
        if text in ("", "notify"):
            return cls(kind="notify" if text else "started")
        if kind == "port" and rest.isdecimal() and 0 < int(rest) < 1 << 16:
            return cls(kind="port", port=int(rest))
        if kind == "command" and rest.strip():
            return cls(kind="command", command=rest.strip())
        raise UsageError(f"ready = {text!r} is unknown", hint="Use notify, port:NUMBER or command:CMD.")

    def text(self) -> str:
        """What is waited for, in words."""
        waits = {"notify": "READY=1", "port": f"port {self.port}", "command": f"`{self.command}`"}
        return waits.get(self.kind, "the start")


async def port_open(port: int) -> None:
    """Return when something accepts connections on the loopback port."""
    while not await _accepts(port):
        await asyncio.sleep(POLL_INTERVAL_S)


async def _accepts(port: int) -> bool:
    loop = asyncio.get_running_loop()
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await loop.sock_connect(probe, (host, port))
                return True
        except (OSError, TimeoutError):
            continue
    return False


async def command_succeeds(command: str, run: Run) -> None:
    """Return when the command, a line for the shell, ends with code 0."""
    words = ["/bin/sh", "-c", command] if _needs_shell(command) else shlex.split(command)
    while (await run(words, PROBE_TIMEOUT_S)).code != 0:
        await asyncio.sleep(POLL_INTERVAL_S)


def _needs_shell(command: str) -> bool:
    return any(character in command for character in "|&;<>()$`\\\"'*?[#~=%\n")


class Watchdog:
    """Expects a keep-alive within an interval, once a child has asked to be watched."""

    def __init__(self, missed: Callable[[str], None]) -> None:
        self._missed = missed
        self._interval_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def heard(self, fields: Mapping[str, str]) -> None:
        """Take note of ``WATCHDOG_USEC`` (begin, with this interval), ``WATCHDOG=1`` and ``WATCHDOG=trigger``."""
        interval = fields.get("WATCHDOG_USEC", "")
        if interval.isdecimal():
            self._interval_s = int(interval) / 1e6
        if fields.get("WATCHDOG") == "trigger":
            self._missed("it triggered its watchdog")
        elif interval or fields.get("WATCHDOG") == "1":
            self._rearm()

    def close(self) -> None:
        """Expect nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rearm(self) -> None:
        self.close()
        if self._interval_s > 0:
            message = f"no keep-alive within {self._interval_s:g} s"
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._missed, message)
