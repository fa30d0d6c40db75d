"""systemd's protocol: what orun tells its manager, and what it understands of its children."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from orun.errors import UsageError
from orun.runtime.notify import NotifyReceiver, SystemdNotifier, parse
from orun.runtime.readiness import Readiness, Watchdog
from tests.unit.runtime.simulation import simulate


def manager(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(path))
    listening.settimeout(5)
    return listening


def test_runtime_says_ready_status_alive_and_stopping(tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "s"), "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getppid())}

    async def main() -> list[bytes]:
        notifier = SystemdNotifier.from_environment(environment)
        assert notifier is not None
        assert environment == {}
        notifier.ready("serving counter")
        heard = [systemd.recv(100) for _ in range(2)]
        await asyncio.sleep(0.03)
        heard.append(systemd.recv(100))
        notifier.close()
        return heard

    with manager(tmp_path / "s") as systemd:
        assert asyncio.run(main()) == [b"READY=1\nSTATUS=serving counter", b"WATCHDOG=1", b"WATCHDOG=1"]


def test_stopping_and_status_are_passed_on(tmp_path: Path) -> None:
    with manager(tmp_path / "s") as systemd:
        notifier = SystemdNotifier(str(tmp_path / "s"), None)
        notifier.status("replaying")
        notifier.stopping()
        assert systemd.recv(100) == b"STATUS=replaying"
        assert systemd.recv(100) == b"STOPPING=1"
        notifier.close()


def test_no_manager_is_no_trouble(tmp_path: Path) -> None:
    assert SystemdNotifier.from_environment({"WATCHDOG_USEC": "1"}) is None
    notifier = SystemdNotifier(str(tmp_path / "nobody"), None)
    notifier.stopping()
    notifier.close()


def test_watchdog_of_another_process_is_not_ours() -> None:
    environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    notifier = SystemdNotifier.from_environment(environment)
    assert notifier is not None
    assert os.getppid() == 1 or notifier._watchdog_s is None
    notifier.close()


def test_messages_of_a_child_are_heard_by_field() -> None:
    heard: list[Mapping[str, str]] = []

    async def main() -> None:
        receiver = NotifyReceiver("web", heard.append)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as child:
            address = b"\0" + receiver.address[1:].encode()
            child.connect(address)
            child.send(b"READY=1\nSTATUS=a=b\nnonsense")
            read, write = os.pipe()
            socket.send_fds(child, [b"FDSTORE=1"], [read])
            os.close(read)
            while len(heard) < 2:
                await asyncio.sleep(0)
            with pytest.raises(BrokenPipeError):
                os.write(write, b"x")  # nobody kept the other end
            os.close(write)
        receiver.close()

    asyncio.run(main())
    assert heard == [{"READY": "1", "STATUS": "a=b"}, {"FDSTORE": "1"}]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_other_users_cannot_speak_for_a_child() -> None:
    heard: list[Mapping[str, str]] = []

    async def main() -> None:
        receiver = NotifyReceiver("web", heard.append)
        address = b"\0" + receiver.address[1:].encode()
        os.setresuid(65534, 65534, 0)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
                other.sendto(b"READY=1", address)
        finally:
            os.setresuid(0, 0, 0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as child:
            child.sendto(b"STATUS=mine", address)
        while not heard:
            await asyncio.sleep(0)
        receiver.close()

    asyncio.run(main())
    assert heard == [{"STATUS": "mine"}]


def test_bytes_that_are_no_text_do_no_harm() -> None:
    assert parse(b"\xff\xfe=1\nX=\xff") == {"\ufffd\ufffd": "1", "X": "\ufffd"}


READY = [
    ("", Readiness("started")),
    ("notify", Readiness("notify")),
    ("port:8080", Readiness("port", port=8080)),
    ("command:curl -f localhost", Readiness("command", command="curl -f localhost")),
]


@pytest.mark.parametrize(("text", "readiness"), READY)
def test_readiness_settings(text: str, readiness: Readiness) -> None:
    assert Readiness.parse(text) == readiness


@pytest.mark.parametrize("text", ["port:", "port:0", "port:65536", "port:x", "command:", "command: ", "notify:1", "x"])
def test_unknown_readiness_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="unknown"):
        Readiness.parse(text)


def test_watchdog_bites_when_no_keep_alive_comes() -> None:
    async def main() -> None:
        missed: list[str] = []
        watchdog = Watchdog(missed.append)
        watchdog.heard({"WATCHDOG": "1"})  # never asked to be watched
        await asyncio.sleep(1000)
        assert missed == []
        watchdog.heard({"WATCHDOG_USEC": "2000000"})
        for _ in range(10):
            await asyncio.sleep(1.9)
            watchdog.heard({"WATCHDOG": "1"})
        assert missed == []
        await asyncio.sleep(2.1)
        assert missed == ["no keep-alive within 2 s"]

    simulate(main())


def test_watchdog_can_be_triggered_and_ended() -> None:
    async def main() -> None:
        missed: list[str] = []
        watchdog = Watchdog(missed.append)
        watchdog.heard({"WATCHDOG_USEC": "2000000"})
        watchdog.close()
        await asyncio.sleep(10)
        assert missed == []
        watchdog.heard({"WATCHDOG": "trigger"})
        assert missed == ["it triggered its watchdog"]

    simulate(main())
