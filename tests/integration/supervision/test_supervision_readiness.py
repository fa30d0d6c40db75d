"""A command is ready when it says or shows so; what is not ready in time is a failed start."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from orun.runtime.child import StartFailed
from orun.runtime.commands import CommandChild
from tests.integration.supervision.lab import Lab, document, live, states, until

NOTIFY = """
import os, signal, socket, sys, time
address = os.environ["NOTIFY_SOCKET"]
assert address[0] == "@"
channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
channel.connect(b"\\0" + address[1:].encode())
say = lambda text: channel.send(text.encode())
"""


def python(lab: Lab, source: str, **settings: Any) -> CommandChild:
    return lab.life(lab.python("service", NOTIFY + source if "say(" in source else source, **settings))


def test_notified_child_is_ready_when_it_says_so(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        source = NOTIFY + f"say('STATUS=warming up'); open({str(gate)!r}).read(); say('READY=1\\nSTATUS=serving')"
        top = lab.top(lab.python("service", source + "\ntime.sleep(1000)", ready="notify"))
        started = asyncio.create_task(top.start())
        await until(lambda: document(top, "service").get("message") == "warming up")
        assert states(top)["service"] == "starting"
        assert not started.done()
        with gate.open("w"):
            pass
        await started
        assert document(top, "service")["message"] == "serving"
        top.stop()
        await top.wait()

    live(tmp_path, main)


def test_child_may_ask_for_more_time_to_start(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        await lab.top().start()
        source = """
for _ in range(4):
    say("EXTEND_TIMEOUT_USEC=400000")
    time.sleep(0.15)
say("READY=1")
time.sleep(1000)
"""
        child = python(lab, source, ready="notify", start_timeout=0.3)
        await child.start()
        child.kill()
        await child.wait()

    live(tmp_path, main)


def test_child_that_never_gets_ready_is_a_failed_start_and_killed(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        await lab.top().start()
        child = python(
            lab,
            "import sys, time; print('stuck', file=sys.stderr); time.sleep(1000)",
            ready="notify",
            start_timeout=0.3,
        )
        with pytest.raises(StartFailed, match="not ready in time") as failure:
            await child.start()
        assert failure.value.exit.reason == "start_failed"
        assert failure.value.exit.stderr == ("stuck",)
        assert [process.title for process in lab.processes.known.values()] == ["forkserver"]

    live(tmp_path, main)


def test_child_that_ends_before_it_is_ready_says_why(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        await lab.top().start()
        child = python(lab, "import sys; sys.exit('no database')", ready="notify")
        with pytest.raises(StartFailed, match="exit code 1") as failure:
            await child.start()
        assert failure.value.exit.stderr == ("no database",)

    live(tmp_path, main)


def test_port_that_opens_is_readiness(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        await lab.top().start()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        source = f"""
import socket, time
time.sleep(0.1)
server = socket.create_server(("127.0.0.1", {port}))
while True: server.accept()
"""
        child = python(lab, source, ready=f"port:{port}")
        await child.start()
        socket.create_connection(("127.0.0.1", port)).close()
        child.kill()
        await child.wait()

    live(tmp_path, main)


@pytest.mark.parametrize("command", ["test -e {}", "/usr/bin/test -e {}", "cat < {}"])
def test_command_that_succeeds_is_readiness(tmp_path: Path, command: str) -> None:
    async def main(lab: Lab) -> None:
        await lab.top().start()
        mark = tmp_path / "mark"
        source = f"import time; time.sleep(0.1); open({str(mark)!r}, 'w').close(); time.sleep(1000)"
        child = python(lab, source, ready="command:" + command.format(mark))
        await child.start()
        assert mark.exists()
        child.kill()
        await child.wait()

    live(tmp_path, main)


def test_probe_that_hangs_does_not_outlive_the_start(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        await lab.top().start()
        child = python(lab, "import time; time.sleep(1000)", ready="command:sleep 1000", start_timeout=0.2)
        with pytest.raises(StartFailed, match="not ready in time"):
            await child.start()
        await until(lambda: [process.title for process in lab.processes.known.values()] == ["forkserver"])

    live(tmp_path, main)


def test_child_without_keep_alive_is_hung_and_restarted(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        source = NOTIFY + "say('READY=1\\nWATCHDOG_USEC=100000'); time.sleep(1000)"
        top = lab.top(lab.python("service", source, ready="notify"))
        await top.start()
        await until(lambda: document(top, "service")["restarts"] == 1)
        error = document(top, "service")["last_error"]
        assert error["reason"] == "hung"
        assert error["message"] == "no keep-alive within 0.1 s"
        top.kill()
        await top.wait()

    live(tmp_path, main)


@pytest.mark.parametrize("asked", ["stop", "kill"])
def test_stop_during_the_start_ends_it(tmp_path: Path, asked: str) -> None:
    async def main(lab: Lab) -> None:
        await lab.top().start()
        child = python(lab, "import time; time.sleep(1000)", ready="notify")
        started = asyncio.create_task(child.start())
        await until(lambda: child.pid)
        getattr(child, asked)()
        with pytest.raises(StartFailed):
            await asyncio.wait_for(started, 5)

    live(tmp_path, main)


def test_stop_before_there_is_a_process_still_acts(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        await lab.top().start()
        child = python(lab, "import time; time.sleep(1000)")
        started = asyncio.create_task(child.start())
        await asyncio.sleep(0)
        child.stop()
        await started
        exit = await asyncio.wait_for(child.wait(), 5)
        assert exit.reason == "stopped"
        assert exit.signal == signal.SIGTERM

    live(tmp_path, main)


def test_sigterm_reaches_the_whole_process_group(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        await lab.top().start()
        spec = lab.command("shell", "/bin/sh", "-c", "(trap 'echo tidy; exit' TERM; echo up; sleep 1000 & wait) & wait")
        child = lab.life(spec)
        await child.start()
        await until(lambda: "up" in lab.text("shell"))
        child.stop()
        await child.wait()

    live(tmp_path, main)
