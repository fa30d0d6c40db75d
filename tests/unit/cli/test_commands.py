"""Every command as a program: exit codes, what goes where, and what is asked of the runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orun.cli import output
from orun.cli.generators.tree import Command, read
from tests.unit.cli.service import Cli, Service, refuse

COMMANDS = [command for command in read().walk() if not command.children]
STATUS: dict[str, Any] = {
    "schema": 1,
    "pid": 7,
    "state_dir": "/s",
    "agents": [
        {
            "name": "counter", "pid": 8, "state": "running", "restarts": 1, "version": "abc", "lsn": 9,
            "last_checkpoint": {"id": "counter-5", "lsn": 5, "time": 0}, "requests": 3, "errors": 0,
        }
    ],
    "tree": {"name": "main", "kind": "one_for_one", "pid": None, "state": "running", "children": []},
    "events": [{"time": 1.0, "text": "ready"}],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_a_short_summary_an_example_and_documented_options(command: Command) -> None:
    assert 0 < len(command.summary) <= 64
    assert command.summary.endswith(".")
    assert command.examples
    assert all(example.startswith(("orun", "echo", "ORUN_", "source", "man")) for example in command.examples)
    assert all(option.help.endswith(".") for option in command.options), command.options
    assert all(argument.help.endswith(".") for argument in command.arguments)


@pytest.mark.parametrize("arguments", [("-h",), ("--help",), ("run", "-h"), ("checkpoint", "create", "--help")])
def test_help_goes_to_standard_output(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = cli(*arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Usage: orun" in done.stdout


@pytest.mark.parametrize("arguments", [(), ("checkpoint",), ("wal",)])
def test_no_command_shows_help_on_standard_error_and_is_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Usage: orun" in done.stderr


@pytest.mark.parametrize("arguments", [("--version",), ("-V",), ("--version", "status")])
def test_the_version_is_one_line(cli: Cli, arguments: tuple[str, ...]) -> None:
    from orun import __version__

    done = cli(*arguments)
    assert (done.returncode, done.stdout.decode()) == (0, f"orun {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("rnu",), "did you mean 'run'"),
        (("run", "--detatch"), "--detach"),
        (("checkpoint", "lst"), "did you mean 'list'"),
        (("call",), "missing argument"),
        (("wal", "show", "--from", "x"), "not a valid int"),
    ],
)
def test_a_usage_error_is_2_says_what_was_meant_and_is_json_on_demand(
    cli: Cli, arguments: tuple[str, ...], text: str
) -> None:
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: ")
    assert text in done.stderr.decode().lower()
    assert b"--help" in done.stderr
    assert cli.error(*arguments, code=2)["type"] == "usage"


RUNNING = [
    ("status",),
    ("stop",),
    ("reload",),
    ("checkpoint", "create"),
    ("call", "x"),
    ("deadletters", "retry", "--all"),
]


@pytest.mark.parametrize("arguments", RUNNING, ids=" ".join)
def test_without_a_runtime_is_3_and_without_a_state_directory_10(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    assert cli.error(*arguments, code=10)["hint"]
    (tmp_path / "state").mkdir()
    assert cli.error(*arguments, code=3)["hint"]


def test_status_for_people_and_for_programs(cli: Cli, service: Service) -> None:
    service.operations["status"] = lambda args: STATUS
    assert json.loads(cli("status", "--json").stdout) == STATUS
    text = cli("status").stdout.decode()
    assert "orun pid 7" in text
    assert "counter" in text
    assert "counter-5" in text
    assert "main (one_for_one) running" in text


def test_an_error_of_the_runtime_keeps_its_exit_code(cli: Cli, service: Service) -> None:
    service.operations["checkpoint"] = lambda args: refuse("in_use", "it is taken", hint="wait", code=11)
    error = cli.error("checkpoint", "create", code=11)
    assert (error["message"], error["hint"]) == ("it is taken", "wait")


def test_checkpoint_create_prints_id_and_position(cli: Cli, service: Service) -> None:
    entry = {"id": "counter-5", "lsn": 5, "agent": "counter"}
    seen: list[Any] = []

    def create(args: dict[str, Any]) -> Any:
        seen.append(args)
        return {**entry, "checkpoints": [entry]}

    service.operations["checkpoint"] = create
    document = json.loads(cli("checkpoint", "create", "--json").stdout)
    assert (document["schema"], document["id"], document["lsn"]) == (1, "counter-5", 5)
    done = cli("checkpoint", "create", "--agent", "counter")
    assert done.stdout == b"counter-5\n"
    assert b"log position 5" in done.stderr
    assert [args["agent"] for args in seen] == [None, "counter"]


def test_stop_waits_for_the_end_of_the_process(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        service = Service(tmp_path, pid=process.pid)

        def stop(args: dict[str, Any]) -> Any:
            process.terminate()
            return {}

        service.operations["stop"] = stop
        done = Cli(tmp_path)("stop", "--json")
        assert json.loads(done.stdout)["stopped"] is True
        assert process.wait(10) != 0
        service.close()


def test_stop_that_takes_too_long_is_124(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        service = Service(tmp_path, pid=process.pid)
        service.operations["stop"] = lambda args: {}
        error = Cli(tmp_path).error("stop", "--timeout", "100ms", code=124)
        assert str(process.pid) in error["message"]
        process.kill()
        service.close()


def test_reload_says_what_runs_now(cli: Cli, service: Service) -> None:
    service.operations["reload"] = lambda args: {
        "agents": [{"agent": args["agent"] or "all", "version": "v2", "changed": args["agent"] is not None}]
    }
    done = cli("reload", "counter")
    assert (done.stdout, done.stderr) == (b"", b"counter: now version v2\n")
    assert json.loads(cli("reload", "--json").stdout)["agents"][0]["version"] == "v2"
    assert cli("reload").stderr == b"all: nothing has changed\n"
    assert cli("reload", "--quiet").stderr == b""


def test_dropping_dead_letters_asks_and_without_a_terminal_wants_yes(cli: Cli, service: Service) -> None:
    service.operations["deadletters_drop"] = lambda args: {"ids": args["ids"] or ["a-1", "a-2"]}
    done = cli("deadletters", "drop", "--all", stdin=b"y\n")
    assert done.returncode == 2
    assert b"--yes" in done.stderr
    assert cli("deadletters", "drop", "--all", "--yes").stdout == b"a-1\na-2\n"
    assert cli.error("deadletters", "drop", code=2)["type"] == "usage"
    assert cli.error("deadletters", "drop", "a-1", "--all", code=2)["type"] == "usage"


def test_an_interrupt_is_130(cli: Cli, service: Service) -> None:
    import signal
    import threading

    entered = threading.Event()
    release = threading.Event()

    def hang(request: list[Any]) -> None:
        entered.set()
        release.wait(30)

    service.agent("a", {"hang": hang})
    with subprocess.Popen(
        [sys.executable, "-m", "orun", "call", "hang"],
        cwd=cli.folder, env=cli.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert entered.wait(30)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    release.set()
    assert (process.returncode, out, err) == (130, b"", b"")


def test_names_for_completion_are_quick_and_silent(cli: Cli, service: Service) -> None:
    assert cli("__names", "agents").stdout == b""
    service.agent("b", {"two": lambda request: None})
    service.agent("a", {"one": lambda request: None})
    assert cli("__names", "agents").stdout == b"b\na\n"
    assert cli("__names", "handlers").stdout == b"one\ntwo\n"
    assert cli("__names", "templates").stdout == b"counter\nindex\nservice\n"
    done = cli("__names", "agents", ORUN_STATE_DIR="/nowhere")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_tables_align_and_show_nothing_as_a_dash() -> None:
    text = output.table(("name", "size"), [("a", "1 B"), ("longer", "10 B"), ("c", None)])
    assert text.splitlines() == ["name    size", "a        1 B", "longer  10 B", "c          -"]


def test_error_types_are_spelled_as_on_the_wire() -> None:
    from orun import errors

    assert output.error_type(errors.UsageError("")) == "usage"
    assert output.error_type(errors.NotRunning("")) == "not_running"
    assert output.error_type(errors.DeadlineExceeded("")) == "deadline_exceeded"
    assert output.error_type(errors.OrunError("")) == "failed"
