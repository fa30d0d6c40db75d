"""What `orun run` shows in the foreground: to a pipe, to a terminal, and to nobody."""

from __future__ import annotations

import errno
import hashlib
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl

import pytest

from tests.support import COUNTER, Orun, wait_until

PRINTING = """
from orun import Agent
agent = Agent("talker")

@agent.handler
def say(state, request):
    print(request["text"])
    return {}
"""


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, orun: Orun, *arguments: str, columns: int = 80, rows: int = 24) -> None:
        self.leader, follower = pty.openpty()
        ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.settings = termios.tcgetattr(follower)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orun", *arguments],
            cwd=orun.folder,
            env={
                **{name: value for name, value in orun.environment.items() if name not in ("COLUMNS", "LINES")},
                "TERM": "xterm-256color",
            },
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.follower = follower
        self.seen = ""
        os.set_blocking(self.leader, False)

    def read(self) -> str:
        """Everything shown so far."""
        try:
            while data := os.read(self.leader, 1 << 16):
                self.seen += data.decode("utf-8", "replace")
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.EIO:  # the program has gone
                raise
        return self.seen

    def wait_for(self, text: str) -> None:
        try:
            wait_until(lambda: text in self.read(), what=f"{text!r} on the terminal")
        except AssertionError as error:
            raise AssertionError(f"{error}; it shows {self.seen[-2000:]!r}") from None

    def press(self, key: bytes) -> None:
        os.write(self.leader, key)

    def end(self) -> int:
        """Wait until it has ended by itself; its exit code."""
        wait_until(lambda: self.read() and self.process.poll() is not None, what="the end of the program")
        self.read()
        return self.process.wait()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.leader)
        os.close(self.follower)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    found: list[Terminal] = []
    yield found
    for terminal in found:
        terminal.close()


def test_a_lone_commands_output_is_its_own(orun: Orun) -> None:
    done = orun.run("run", "--", "sh", "-c", "echo out; echo err >&2; printf 'no end'; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\nno end\n", "err\n")
    assert set((orun.state_dir / "logs" / "sh.log").read_text().splitlines()) == {"out", "err", "no end"}


def test_nothing_of_a_lone_commands_output_is_lost_to_a_slow_reader(orun: Orun) -> None:
    script = "import sys\nfor n in range(400_000): sys.stdout.write(f'{n:050}\\n')"
    expected = hashlib.sha256(b"".join(b"%050d\n" % n for n in range(400_000))).hexdigest()
    with orun.spawn("run", "--", sys.executable, "-c", script, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        # Long before anything is read, more was printed than pipes and queues hold.
        wait_until(lambda: (orun.state_dir / "logs").exists() and list((orun.state_dir / "logs").glob("python*.log")))
        found = hashlib.sha256()
        while data := os.read(process.stdout.fileno(), 1 << 16):
            found.update(data)
        assert process.wait(30) == 0
    assert found.hexdigest() == expected


def test_a_reader_that_goes_ends_a_lone_command(orun: Orun) -> None:
    with orun.spawn("run", "--", "yes", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "y\n"
        process.stdout.close()
        assert process.wait(20) == 141
    wait_until(lambda: not orun.processes(), what="the end of every process")


def test_an_agents_output_carries_its_name(orun: Orun) -> None:
    orun.write(PRINTING)
    with orun.spawn("run", "agent.py", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline().rstrip().endswith("Z ready: talker")
        orun.call("say", {"text": "one\ntwo"})
        assert [process.stdout.readline() for _ in range(2)] == ["talker | one\n", "talker | two\n"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143


def test_a_quiet_foreground_says_nothing(orun: Orun) -> None:
    orun.write(PRINTING)
    with orun.spawn("run", "agent.py", "-q", stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        wait_until(lambda: (orun.state_dir / "run" / "runtime.json").exists(), what="a running agent")
        orun.call("say", {"text": "one"})
        orun.ok("stop")
        assert process.communicate(timeout=20)[0] == ""
        assert process.returncode == 0


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (40, 10), (200, 50)])
def test_the_live_view_fits_and_leaves_the_terminal_as_it_was(
    orun: Orun, terminals: list[Terminal], columns: int, rows: int
) -> None:
    orun.write(PRINTING)
    terminals.append(terminal := Terminal(orun, "run", "agent.py", columns=columns, rows=rows))
    terminal.wait_for("running")
    orun.call("say", {"text": "hello \x1b[2J there"})
    terminal.wait_for("talker | hello  there")
    terminal.press(b"\x03")
    assert terminal.end() == 130
    assert "stopped after" in terminal.seen
    assert terminal.seen.count("\x1b[?25l") == terminal.seen.count("\x1b[?25h") == 1
    assert termios.tcgetattr(terminal.follower) == terminal.settings
    pictures = terminal.seen.split("\x1b[2K")
    plain = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for text in pictures for line in text.splitlines()]
    assert [line for line in plain if len(line) > columns and "starting" not in line and "stopped" not in line] == []
    wait_until(lambda: not orun.processes(), what="the end of every process")


def test_a_stopped_terminal_does_not_stop_the_runtime(orun: Orun, terminals: list[Terminal]) -> None:
    """Ctrl-S, and nothing is read: the view stands still, the agent does not."""
    orun.write(COUNTER)
    terminals.append(terminal := Terminal(orun, "run", "agent.py"))
    terminal.wait_for("running")
    terminal.press(b"\x13")
    runtime = orun.status()["runtime_pid"]
    # As long as it takes the guard to call a runtime hung, and a bit more.
    until = time.monotonic() + 7
    total = 0
    wait_until(lambda: time.monotonic() > until, what="the time")
    for amount in range(3):
        total += amount
        assert orun.call("add", {"amount": amount}) == {"total": total}
    assert orun.status()["runtime_pid"] == runtime
    terminal.press(b"\x11")
    terminal.press(b"\x03")
    assert terminal.end() == 130


def test_a_second_interrupt_does_not_wait(orun: Orun, terminals: list[Terminal]) -> None:
    orun.write(
        """
        import time
        from orun import Agent
        agent = Agent("slow")

        @agent.handler
        def nap(state, request):
            open("napping", "w").close()
            time.sleep(60)
        """
    )
    terminals.append(terminal := Terminal(orun, "run", "agent.py", "--set", "runtime.shutdown=60"))
    terminal.wait_for("running")
    with orun.spawn("call", "nap", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as caller:
        wait_until((orun.folder / "napping").exists, what="a busy handler")
        terminal.press(b"\x03")
        terminal.wait_for("once more ends at once")
        terminal.press(b"\x03")
        assert terminal.end() == 130
        assert "may still be carried out" in caller.communicate(timeout=20)[1]
        assert caller.returncode == 3


def test_a_restore_asks_on_a_terminal(orun: Orun, terminals: list[Terminal]) -> None:
    orun.write(COUNTER)
    orun.start("agent.py")
    orun.call("add", {"amount": 1})
    orun.ok("checkpoint", "create")
    orun.call("add", {"amount": 1})
    for answer, code, total in ((b"\n", 1, 2), (b"y\n", 0, 1)):
        terminals.append(terminal := Terminal(orun, "restore", "--checkpoint"))
        terminal.wait_for("Go on? [y/N]")
        terminal.press(answer)
        assert terminal.end() == code
        assert orun.call("total") == {"total": total}


def test_a_command_that_cannot_be_run_says_so_once(orun: Orun) -> None:
    done = orun.run("run", "--", "no-such-program")
    assert done.returncode == 1
    first, *rest = done.stderr.splitlines()
    assert first == "error: no-such-program cannot be run: No such file or directory: no-such-program"
    assert len(rest) <= 1
