"""Starting, stopping, restoring and reloading, as a user does it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import COUNTER, Orun, alive, wait_until


def test_detach_returns_once_the_agent_answers_and_stop_leaves_nothing(orun: Orun) -> None:
    orun.start(str(orun.write(COUNTER)), "--http", "127.0.0.1:0")
    assert orun.call("add", {"amount": 1}) == {"total": 1}
    assert orun.processes()
    orun.ok("stop")
    assert orun.run("status").returncode == 3
    wait_until(lambda: not orun.processes(), what="every process to be gone")


def test_a_second_run_on_the_same_state_is_refused_and_names_the_first(orun: Orun) -> None:
    agent = str(orun.write(COUNTER))
    pid = orun.start(agent)["pid"]
    done = orun.run("run", agent, "--detach")
    assert done.returncode == 11
    assert str(pid) in done.stderr or str(orun.status()["runtime_pid"]) in done.stderr
    assert orun.call("add", {"amount": 1}) == {"total": 1}


def test_a_lock_left_by_a_dead_runtime_is_no_obstacle(orun: Orun) -> None:
    agent = str(orun.write(COUNTER))
    orun.start(agent)
    orun.call("add", {"amount": 1})
    for pid in orun.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not orun.processes(), what="every process to be gone")
    assert (orun.state_dir / "lock").exists()
    orun.start(agent)
    assert orun.call("total") == {"total": 1}


def test_a_newer_format_is_refused_with_both_numbers(orun: Orun) -> None:
    agent = str(orun.write(COUNTER))
    orun.start(agent)
    orun.ok("stop")
    (orun.state_dir / "format").write_text('{"format": 99}')
    done = orun.run("run", agent, "--detach")
    assert done.returncode == 12
    assert "99" in done.stderr
    assert "formats up to 1" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_foreground_in_order(orun: Orun, number: signal.Signals, code: int) -> None:
    agent = str(orun.write(COUNTER))
    process = orun.spawn("run", agent, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: orun.run("status").returncode == 0, what="the runtime to answer")
    orun.call("add", {"amount": 5})
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    assert out == ""
    assert "\x1b" not in err
    wait_until(lambda: not orun.processes(), what="every process to be gone")
    orun.start(agent)
    assert orun.call("total") == {"total": 5}


def test_restore_brings_a_checkpoint_back_and_can_be_undone(orun: Orun) -> None:
    orun.start(str(orun.write(COUNTER)))
    orun.call("add", {"amount": 1})
    first = orun.json("checkpoint", "create")
    orun.call("add", {"amount": 10})
    orun.call("add", {"amount": 100})
    after = orun.agent()["lsn"]
    orun.ok("restore", "--checkpoint", first["id"], "--yes")
    assert orun.call("total") == {"total": 1}
    orun.ok("restore", "--at", str(after), "--yes")
    assert orun.call("total") == {"total": 111}
    orun.ok("stop")
    orun.ok("restore", "--checkpoint", first["id"], "--yes")
    orun.start(str(orun.folder / "agent.py"))
    assert orun.call("total") == {"total": 1}


def test_a_bare_checkpoint_means_the_latest(orun: Orun) -> None:
    orun.start(str(orun.write(COUNTER)))
    orun.call("add", {"amount": 1})
    orun.ok("checkpoint", "create")
    orun.call("add", {"amount": 2})
    plan = orun.json("restore", "--checkpoint", "--dry-run")
    assert plan["agents"][0]["blocks"] == 1
    assert orun.call("total") == {"total": 3}
    orun.ok("restore", "--checkpoint", "--yes")
    assert orun.call("total") == {"total": 1}


def test_restore_without_a_terminal_wants_yes(orun: Orun) -> None:
    orun.start(str(orun.write(COUNTER)))
    orun.call("add", {"amount": 1})
    orun.ok("checkpoint", "create")
    done = orun.run("restore", "--checkpoint", stdin="y\n")
    assert done.returncode == 2
    assert "--yes" in done.stderr


def test_a_backup_restores_into_an_empty_directory(orun: Orun, tmp_path: Path) -> None:
    agent = str(orun.write(COUNTER))
    orun.start(agent)
    orun.call("add", {"amount": 7})
    orun.ok("backup", str(tmp_path / "saved.orun"))
    orun.ok("stop")
    other = str(tmp_path / "elsewhere")
    orun.ok("restore", "--from", str(tmp_path / "saved.orun"), "--yes", "--state-dir", other)
    orun.ok("run", agent, "--detach", "--state-dir", other)
    assert json.loads(orun.ok("call", "total", "null", "--state-dir", other)) == {"total": 7}
    orun.ok("stop", "--state-dir", other)


def test_reload_takes_the_new_code_and_keeps_the_state(orun: Orun) -> None:
    agent = orun.write(COUNTER)
    orun.start(str(agent))
    orun.call("add", {"amount": 1})
    version = orun.agent()["version"]
    agent.write_text(COUNTER.replace('{"total": state["total"]}', '{"total": state["total"], "new": True}'))
    orun.ok("reload")
    assert orun.call("add", {"amount": 1}) == {"total": 2, "new": True}
    assert orun.agent()["version"] != version
    assert orun.agent()["restarts"] == 0
    agent.write_text(COUNTER + "\n@agent.handler\ndef hello(state, request):\n    return 'hello'\n")
    orun.ok("reload")
    assert orun.call("hello") == "hello"
    described = json.loads((orun.state_dir / "run" / "runtime.json").read_text())
    assert described["agents"][0]["handlers"] == ["add", "total", "hello"]


def test_a_reload_that_does_not_load_leaves_the_old_version_at_work(orun: Orun) -> None:
    agent = orun.write(COUNTER)
    orun.start(str(agent))
    agent.write_text("def broken(:\n")
    done = orun.run("reload")
    assert done.returncode == 2
    assert "agent.py:1" in done.stderr
    assert orun.call("add", {"amount": 1}) == {"total": 1}


def test_an_agent_that_cannot_stay_alive_ends_the_runtime_with_14_and_its_last_error(orun: Orun) -> None:
    agent = orun.write(
        """
        import os, sys, threading
        from orun import Agent
        agent = Agent("mayfly")

        @agent.handler
        def add(state, request):
            sys.stderr.write("last words\\n")
            sys.stderr.flush()
            os._exit(9)
        """
    )
    process = orun.spawn("run", str(agent), "--set", "agent.attempts_max=100", stderr=subprocess.PIPE)
    wait_until(lambda: orun.run("status").returncode == 0, what="the runtime to answer")
    orun.run("call", "add", "null", "--timeout", "5s")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 14, err
    assert "last words" in err
    assert "exit code 9" in err


@pytest.mark.parametrize(
    ("source", "code", "text"),
    [
        ("def f(:\n", 2, "agent.py:1: invalid syntax"),
        ("x = 1\n", 2, "defines no agent"),
        ("import nowhere_to_be_found\n", 2, "agent.py:1: ModuleNotFoundError"),
    ],
)
def test_an_agent_file_that_cannot_be_used_is_refused_with_its_line(
    orun: Orun, source: str, code: int, text: str
) -> None:
    done = orun.run("run", str(orun.write(source)), "--detach")
    assert done.returncode == code
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not orun.processes()


def test_the_worker_is_replaced_by_its_standby_within_the_same_runtime(orun: Orun) -> None:
    orun.start(str(orun.write(COUNTER)))
    orun.call("add", {"amount": 1})
    wait_until(lambda: orun.agent()["standby"], what="a standby")
    before = orun.agent()
    os.kill(before["pid"], signal.SIGKILL)
    assert orun.call("add", {"amount": 1}) == {"total": 2}
    assert orun.agent()["pid"] == before["standby"]


def test_a_dead_forkserver_and_template_are_replaced(orun: Orun) -> None:
    orun.start(str(orun.write(COUNTER)))
    orun.call("add", {"amount": 1})
    for name in ("forkserver", "template"):
        for pid in orun.processes():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if name in Path(f"/proc/{pid}/comm").read_text():
                    os.kill(pid, signal.SIGKILL)
    os.kill(orun.agent()["pid"], signal.SIGKILL)
    assert orun.call("add", {"amount": 1}) == {"total": 2}
    os.kill(orun.agent()["pid"], signal.SIGKILL)
    assert orun.call("add", {"amount": 1}) == {"total": 3}


def test_a_dead_runtime_is_restarted_by_its_guard(orun: Orun) -> None:
    status = orun.start(str(orun.write(COUNTER)), "--http", "127.0.0.1:0")
    orun.call("add", {"amount": 1})
    os.kill(status["runtime_pid"], signal.SIGKILL)
    assert orun.call("add", {"amount": 1}) == {"total": 2}
    wait_until(lambda: orun.run("status").returncode == 0, what="the runtime to answer")
    again = orun.status()
    assert again["pid"] == status["pid"]
    assert again["runtime_pid"] != status["runtime_pid"]
    assert again["http"] == status["http"]


def test_without_its_guard_the_whole_tree_ends(orun: Orun) -> None:
    status = orun.start(str(orun.write(COUNTER)))
    os.kill(status["pid"], signal.SIGKILL)
    wait_until(lambda: not orun.processes(), 5, "every process to be gone")
    assert orun.run("status").returncode == 3
    assert not alive(status["runtime_pid"])


def test_stop_works_without_the_control_socket(orun: Orun) -> None:
    orun.start(str(orun.write(COUNTER)))
    (orun.state_dir / "run" / "control.sock").unlink()
    orun.ok("stop")
    wait_until(lambda: not orun.processes(), what="every process to be gone")
