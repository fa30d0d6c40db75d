"""Real children die, hang, flood and leave grandchildren behind; the supervisor copes."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from orun.runtime.child import ChildSpec, StartFailed
from orun.runtime.sweep import child_pids
from tests.integration.supervision.lab import Lab, document, live, states, until
from tests.support import alive

FAMILY = """
import os, sys, time, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pids = [os.getpid()]
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:          # in a session of its own, its parent gone, holding stdout
        os.write(write, b"%d\\n" % os.getpid())
        time.sleep(1000)
    os.write(write, b"%d\\n" % os.getpid())
    os._exit(0) if DOUBLE else time.sleep(1000)
os.close(write)
for line in os.fdopen(read):
    pids.append(int(line))
    if len(pids) == 3: break
print(*pids, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("double", [False, True])
def test_killed_child_is_restarted_and_its_hidden_grandchildren_are_gone(tmp_path: Path, double: bool) -> None:
    async def main(lab: Lab) -> None:
        top = lab.top(lab.python("family", FAMILY.replace("DOUBLE", str(double))))
        await top.start()
        first = await until(lambda: lab.text("family").split(), what="the family is there")
        pids = list(map(int, first))
        assert len(pids) == 3
        family = [pid for pid in pids if alive(pid)]
        assert len(family) == (2 if double else 3)
        os.kill(pids[0], signal.SIGKILL)
        await until(lambda: document(top, "family")["restarts"] == 1 and states(top)["family"] == "running")
        await until(lambda: not any(alive(pid) for pid in pids), what="no survivor", step_s=0.001)
        top.kill()
        await top.wait()

    live(tmp_path, main)


def test_child_that_ignores_sigterm_is_killed_with_everything_below_it(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        top = lab.top(lab.python("family", FAMILY.replace("DOUBLE", "False"), shutdown=0.1))
        await top.start()
        pids = [int(pid) for pid in await until(lambda: lab.text("family").split())]
        top.stop()
        exit = await top.wait()
        assert exit.reason == "stopped"
        await until(lambda: not any(alive(pid) for pid in pids), what="no survivor")

    live(tmp_path, main)


def test_flapping_child_ends_the_supervisor_with_its_last_words(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        flap = lab.command("flap", "/bin/sh", "-c", "echo out; echo why it died >&2; exit 5")
        top = lab.top(flap)
        await top.start()
        exit = await asyncio.wait_for(top.wait(), 10)
        assert exit.reason == "intensity"
        assert exit.root().code == 5
        assert exit.root().stderr == ("why it died",)
        assert lab.text("flap").count("out") == 4

    live(tmp_path, main)


def test_command_that_does_not_exist_says_so(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        top = lab.top(lab.command("nobody", "/no/such/program"))
        with pytest.raises(StartFailed, match="No such file or directory: /no/such/program") as failure:
            await top.start()
        assert failure.value.code == 1

    live(tmp_path, main)


def test_working_folder_that_does_not_exist_says_so(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        top = lab.top(lab.command("lost", "/bin/true", cwd="/no/such/folder"))
        with pytest.raises(StartFailed, match="working folder /no/such/folder"):
            await top.start()

    live(tmp_path, main)


def test_environment_and_working_folder_reach_the_command(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        spec = lab.command(
            "env", "/bin/sh", "-c", 'echo "$COLOUR $PWD"', env={"COLOUR": "blue"}, cwd="/usr", restart="temporary"
        )
        top = lab.top(spec)
        await top.start()
        await until(lambda: lab.text("env"))
        assert lab.text("env") == "blue /usr\n"
        top.stop()
        await top.wait()

    live(tmp_path, main)


LIMITS = [
    ({"memory_max": 1 << 30}, "import resource; print(resource.getrlimit(resource.RLIMIT_AS)[0])", str(1 << 30)),
    ({"files_max": 33}, "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])", "33"),
    ({"cpu_max": 0.5}, "import resource; print(resource.getrlimit(resource.RLIMIT_CPU)[0])", "1"),
]


@pytest.mark.parametrize(("limits", "source", "expected"), LIMITS)
def test_limits_hold_in_the_command(tmp_path: Path, limits: dict[str, float], source: str, expected: str) -> None:
    async def main(lab: Lab) -> None:
        spec = lab.command("limited", "python3", "-I", "-c", source, restart="temporary", **limits)
        top = lab.top(spec)
        await top.start()
        assert (await until(lambda: lab.text("limited"))).strip() == expected
        top.stop()
        await top.wait()

    live(tmp_path, main)


def test_memory_limit_ends_a_command_that_takes_too_much(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        await lab.top().start()
        child = lab.life(lab.python("greedy", "x = b'x' * (1 << 30)", memory_max=200 << 20))
        await child.start()
        exit = await child.wait()
        assert exit.code == 1
        assert exit.stderr[-1] == "MemoryError"

    live(tmp_path, main)


def test_ignored_signals_are_not_handed_down(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        await lab.top().start()
        child = lab.life(lab.command("yes", "/bin/sh", "-c", "yes | head -n 1"))
        await child.start()
        assert (await child.wait()).code == 0
        assert lab.text("yes") == "y\n"

    live(tmp_path, main)


def test_killed_forkserver_is_replaced_and_its_children_live_on(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        top = lab.top(lab.command("sleeper", "/bin/sleep", "1000"))
        await top.start()
        sleeper, forkserver = document(top, "sleeper")["pid"], document(top, "forkserver")["pid"]
        os.kill(forkserver, signal.SIGKILL)
        await until(lambda: document(top, "forkserver")["pid"] not in (None, forkserver))
        await until(lambda: states(top)["forkserver"] == "running")
        assert alive(sleeper)
        assert (document(top, "sleeper")["pid"], document(top, "sleeper")["restarts"]) == (sleeper, 0)
        os.kill(sleeper, signal.SIGKILL)
        await until(lambda: document(top, "sleeper")["pid"] not in (None, sleeper))
        assert lab.processes.leftovers == 0
        top.stop()
        await top.wait()

    live(tmp_path, main)


def test_restart_asked_for_while_the_forkserver_is_away_waits_for_the_next(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        top = lab.top(lab.command("sleeper", "/bin/sleep", "1000"))
        await top.start()
        sleeper, forkserver = document(top, "sleeper")["pid"], document(top, "forkserver")["pid"]
        os.kill(forkserver, signal.SIGKILL)
        os.kill(sleeper, signal.SIGKILL)
        await until(lambda: set(states(top).values()) == {"running"} and document(top, "sleeper")["restarts"] == 1)
        assert document(top, "sleeper")["pid"] != sleeper
        top.stop()
        await top.wait()

    live(tmp_path, main)


def test_stopping_in_order_leaves_no_process(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        before = set(child_pids())
        top = lab.top(*(lab.command(f"sleeper-{n}", "/bin/sleep", "1000") for n in range(5)))
        await top.start()
        assert len(lab.processes.known) == 6
        top.stop()
        await top.wait()
        assert set(child_pids()) == before
        assert lab.processes.leftovers == 0

    live(tmp_path, main)


def test_single_command_passes_its_exit_code_on(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        await lab.top().start()
        command = lab.command("once", "/bin/sh", "-c", "exit 42", restart="temporary")
        spec = ChildSpec(command.id, command.start, restart="temporary", significant=True)
        top = lab.top(spec, auto_shutdown="any_significant")
        await top.start()
        exit = await top.wait()
        assert exit.reason == "shutdown"
        assert exit.root().code == 42

    live(tmp_path, main)


def test_unknown_child_of_the_runtime_is_a_leftover(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        pid = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
        assert lab.processes.sweep() == 1
        await until(lambda: pid not in lab.processes.known)
        assert not alive(pid)
        assert lab.processes.leftovers == 1

    live(tmp_path, main)
