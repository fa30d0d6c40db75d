"""The guard, with real processes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orun.engine import build
from tests.support import alive, processes_with, wait_until

RUNTIMES = Path(__file__).with_name("runtimes.py")
ROUNDS = 20


class Guard:
    """A guard over one of the programs in runtimes.py."""

    def __init__(
        self, said: Path, name: str, *options: str, variables: dict[str, str] | None = None, **extra: object
    ) -> None:
        self.said = said
        self.marker = f"ORUN_GUARD_TEST={said}"
        command = [str(build.ensure().guard), *options, "--", sys.executable, "-I", str(RUNTIMES), name, str(said)]
        environment = {**os.environ, **(variables or {}), "ORUN_GUARD_TEST": str(said)}
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            **extra,  # type: ignore[call-overload]
        )

    def lines(self, count: int) -> list[str]:
        """What the runtime has said, once there is that much of it."""

        def read() -> list[str]:
            if not self.said.exists():
                return []
            found = self.said.read_text().splitlines()
            return found if len(found) >= count else []

        return wait_until(read, what=f"{count} lines in {self.said}")

    def end(self) -> tuple[int, str]:
        """The exit code and what was written to stderr."""
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors

    def family(self) -> list[int]:
        """All living processes of this test, the guard and its sentinel too."""
        return processes_with(self.marker)

    def sentinel(self) -> int:
        """The sentinel's pid."""

        def find() -> int:
            for pid in self.family():
                if Path(f"/proc/{pid}/comm").read_text() == "orun-sentinel\n":
                    return pid
            return 0

        return wait_until(find, what="a sentinel")


Start = Callable[..., Guard]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts guards; whatever is left of them is killed."""
    guards: list[Guard] = []

    def begin(name: str, *options: str, **extra: object) -> Guard:
        guards.append(Guard(tmp_path / f"said{len(guards)}", name, *options, **extra))
        return guards[-1]

    yield begin
    for guard in guards:
        while left := guard.family():
            for pid in left:
                kill(pid)
        guard.process.wait()
        if guard.process.stderr is not None:
            guard.process.stderr.close()


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def gone_within(pids: list[int], seconds: float) -> float:
    """Wait until all have ended; returns how many ms that took."""
    before = time.monotonic()
    for pid in pids:
        wait_until(lambda pid=pid: not alive(pid), timeout_s=seconds, what=f"the end of process {pid}")
    return (time.monotonic() - before) * 1000


def test_the_exit_code_and_the_environment_are_passed(start: Start) -> None:
    guard = start("tell")
    assert guard.end() == (7, "")
    (token, guard_pid, descriptor, restarts), (pid, group, parent) = (line.split() for line in guard.lines(2))
    assert len(token) == 32
    assert int(guard_pid) == guard.process.pid == int(parent)
    assert int(descriptor) > 2
    assert restarts == "0"
    assert pid == group, "a process group of its own"
    wait_until(lambda: not guard.family(), what="the end of the sentinel")


def test_a_tree_within_a_tree_carries_both_tokens(start: Start) -> None:
    guard = start("tell", variables={"ORUN_TREE": "outer", "ORUN_RESTARTS": "9"})
    assert guard.end()[0] == 7
    token, _, _, restarts = guard.lines(2)[0].split()
    assert token.startswith("outer.")
    assert restarts == "0"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGQUIT"])
def test_signals_are_passed_on(start: Start, name: str) -> None:
    number = getattr(signal, name)
    guard = start("obedient")
    guard.lines(1)
    guard.process.send_signal(number)
    assert guard.end() == (number, "")
    assert guard.lines(2)[1] == f"got {number}"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_runtime_that_dies_of_a_passed_signal_is_not_started_again(start: Start, name: str) -> None:
    number = getattr(signal, name)
    guard = start("plain")
    guard.lines(1)
    guard.process.send_signal(number)
    assert guard.end() == (128 + number, "")


def test_a_signal_that_the_starter_ignores_is_not_passed(start: Start) -> None:
    guard = start("obedient", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    guard.lines(1)
    guard.process.send_signal(signal.SIGHUP)
    guard.process.send_signal(signal.SIGUSR1)
    assert guard.end()[0] == signal.SIGUSR1


def test_ctrl_c_on_a_terminal_reaches_the_runtime_once_and_it_may_write_there(start: Start) -> None:
    terminal, end = os.openpty()
    settings = termios.tcgetattr(end)
    settings[3] |= termios.TOSTOP  # stops who writes from the background, unless SIGTTOU is ignored
    termios.tcsetattr(end, termios.TCSANOW, settings)
    guard = start(
        "talker",
        stdout=end,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(end, termios.TIOCSCTTY, 0),
        pass_fds=(end,),
    )
    os.close(end)
    guard.lines(1)
    os.write(terminal, b"\x03")
    assert guard.end() == (0, "")
    assert guard.lines(2) == ["ready", "got 2"]
    shown = os.read(terminal, 1000).replace(b"\r", b"")
    assert b"hello\n" in shown
    assert b"bye\n" in shown
    os.close(terminal)


def test_a_runtime_killed_by_9_is_started_again(start: Start) -> None:
    guard = start("tree")
    first = int(guard.lines(1)[0].split()[1])
    before = guard.family()
    kill(first)
    _, second, restarts = guard.lines(2)[1].split()
    assert restarts == "1"
    assert int(second) != first
    keep = {guard.process.pid, guard.sentinel()}
    assert not [pid for pid in before if pid not in keep and alive(pid)], "nothing of the first tree is left"
    guard.process.terminate()
    code, errors = guard.end()
    assert code == 128 + signal.SIGTERM
    assert "the runtime died: killed by SIGKILL; starting it again (1 of 3 within 5000 ms)" in errors


def test_the_fourth_death_within_the_period_gives_up(start: Start) -> None:
    guard = start("crasher")
    code, errors = guard.end()
    assert code == 14
    assert guard.lines(4) == ["0", "1", "2", "3"]
    assert errors.splitlines()[-1] == (
        "orun-guard: the runtime died 4 times within 5000 ms (the last time: killed by SIGSEGV); giving up"
    )


def test_deaths_outside_the_period_do_not_count(start: Start) -> None:
    guard = start("crasher", "--restarts", "1", "--period-ms", "1")
    guard.lines(6)
    guard.process.terminate()
    assert guard.end()[0] in (128 + signal.SIGTERM, 128 + signal.SIGSEGV)


def test_a_silent_runtime_is_killed_and_started_again(start: Start) -> None:
    guard = start("beater", "--heartbeat-ms", "300")
    code, errors = guard.end()
    assert code == 3, "it beats on in its second life, and exits"
    assert [line.split()[2] for line in guard.lines(2)] == ["0", "1"]
    assert "silent for 300 ms" in errors


def test_without_a_first_beat_silence_means_nothing(start: Start) -> None:
    guard = start("plain", "--heartbeat-ms", "20")
    guard.lines(1)
    assert guard.sentinel()
    time.sleep(0.1)
    assert len(guard.lines(1)) == 1
    guard.process.terminate()
    assert guard.end()[0] == 128 + signal.SIGTERM


def test_a_stopped_runtime_is_killed_and_started_again(start: Start) -> None:
    guard = start("beater", "--heartbeat-ms", "200")
    kill(int(guard.lines(1)[0].split()[1]), signal.SIGSTOP)
    assert guard.end()[0] == 3
    assert len(guard.lines(2)) == 2


def test_a_guard_that_was_stopped_itself_blames_nobody(start: Start) -> None:
    guard = start("beater", "--heartbeat-ms", "700")
    first = int(guard.lines(1)[0].split()[1])
    kill(first)
    assert guard.lines(2)[1].split()[2] == "1"  # this one beats for a second and exits with 3
    guard.process.send_signal(signal.SIGSTOP)
    guard.process.send_signal(signal.SIGCONT)
    assert guard.end()[0] == 3


def test_what_an_exiting_runtime_leaves_behind_is_swept(start: Start) -> None:
    guard = start("leaver")
    code, _ = guard.end()
    assert code == 5
    wait_until(lambda: not guard.family(), timeout_s=1, what="an empty tree")


@pytest.mark.parametrize("victims", ["guard", "runtime and guard", "guard and sentinel", "all"])
def test_nothing_is_left_after_kill_9(start: Start, victims: str) -> None:
    for _ in range(ROUNDS):
        guard = start("tree")
        runtime = int(guard.lines(1)[0].split()[1])
        sentinel = guard.sentinel()
        family = wait_until(lambda guard=guard: pids if len(pids := guard.family()) >= 93 else [])
        if victims == "guard and sentinel":
            kill(sentinel)
            wait_until(lambda guard=guard, old=sentinel: guard.sentinel() != old, what="another sentinel")
            sentinel = guard.sentinel()
        if victims == "runtime and guard":
            kill(runtime)
        if victims == "all":
            for pid in family:
                if pid not in (sentinel, guard.process.pid):
                    kill(pid)
        kill(guard.process.pid)
        guard.process.wait()
        gone_within([pid for pid in family if pid != guard.process.pid], 2.0)
        wait_until(lambda guard=guard: not guard.family(), timeout_s=1, what="an empty tree")


def test_a_tree_within_a_tree_falls_with_it(start: Start) -> None:
    guard = start("nested", variables={"ORUN_TEST_GUARD": str(build.ensure().guard)})
    guard.lines(1)
    wait_until(lambda: len(guard.family()) >= 95, what="both trees")
    kill(guard.process.pid)
    guard.process.wait()
    wait_until(lambda: not guard.family(), timeout_s=2, what="an empty tree")


def test_the_sentinel_holds_nothing_of_its_starter(start: Start) -> None:
    read_end, write_end = os.pipe()
    guard = start("plain", pass_fds=(write_end,))
    os.close(write_end)
    guard.lines(1)
    sentinel = guard.sentinel()
    links = {os.readlink(entry) for entry in Path(f"/proc/{sentinel}/fd").iterdir()}
    assert not any(link.startswith("pipe:") for link in links)
    assert os.readlink(f"/proc/{sentinel}/cwd") == "/"
    assert os.getsid(sentinel) == sentinel
    assert Path(f"/proc/{sentinel}/cmdline").read_bytes().strip(b"\0") == b"orun-sentinel"
    os.close(read_end)
    guard.process.terminate()
    guard.end()
    wait_until(lambda: not alive(sentinel), what="the end of the sentinel")


def test_a_child_that_was_there_before_the_guard_is_left_alone(start: Start, tmp_path: Path) -> None:
    said = tmp_path / "elder"
    elder = f"sleep 60 & echo $! > {said}; exec {build.ensure().guard} -- /bin/true"
    done = subprocess.run(["/bin/sh", "-c", elder], stdout=subprocess.DEVNULL, check=False)
    pid = int(said.read_text())
    assert done.returncode == 0
    assert alive(pid)
    kill(pid)


@pytest.mark.parametrize(
    "arguments", [[], ["--"], ["--restarts", "x", "--", "true"], ["--heartbeat-ms", "0", "--", "true"], ["true"]]
)
def test_a_wrong_command_line(arguments: list[str]) -> None:
    done = subprocess.run([str(build.ensure().guard), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("orun-guard: usage: ")


def test_a_program_that_is_not_there() -> None:
    for name in ("/no/such/program", "no-such-program"):
        done = subprocess.run([str(build.ensure().guard), "--", name], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (127, f"orun-guard: cannot start {name}: NOENT\n")


def test_a_program_is_found_in_the_path_and_closed_streams_do_no_harm() -> None:
    script = f'exec {build.ensure().guard} -- sh -c "exit 9" <&- >&- 2>&-'
    assert subprocess.run(["/bin/sh", "-c", script], check=False).returncode == 9
