"""The short way past Typer: it means the same, and it loads next to nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orun.cli import quick, quick_run
from tests.unit.cli.service import Cli, Service, echo

HEAVY = {
    "asyncio",
    "rich",
    "lmdb",
    "cffi",
    "typer",
    "dataclasses",
    "inspect",
    "subprocess",
    "tomllib",
    "zstandard",
    "uvicorn",
}


def loaded_by(cli: Cli, *arguments: str) -> set[str]:
    """The modules that a command had loaded when it ended."""
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: sys.stderr.write('\\n@'.join(['', *sys.modules])))\n"
        f"sys.argv = ['orun', *{list(arguments)!r}]\n"
        "from orun.__main__ import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cli.folder, env=cli.environment, capture_output=True, text=True, check=False
    )
    return {line[1:] for line in done.stderr.splitlines() if line.startswith("@")}


def test_the_version_loads_nothing_but_output(cli: Cli) -> None:
    before = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert loaded_by(cli, "--version") - set(before.stdout.split()) == {
        "atexit",
        "orun",
        "orun.__main__",
        "orun.cli",
        "orun.cli.output",
        "__future__",
    }


@pytest.mark.parametrize(
    "arguments", [("status",), ("status", "--json"), ("call", "echo", "1"), ("stop", "--timeout", "1s")]
)
def test_quick_commands_load_nothing_heavy(cli: Cli, service: Service, arguments: tuple[str, ...]) -> None:
    service.agent("a", {"echo": echo})
    service.operations["status"] = lambda args: {"pid": 1, "state_dir": "x", "agents": []}
    found = loaded_by(cli, *arguments)
    assert "orun.worker.plain" in found
    assert found & HEAVY == set()


def test_help_loads_no_work(cli: Cli) -> None:
    for arguments in (("--help",), ("run", "--help"), ("restore", "--help")):
        found = loaded_by(cli, *arguments)
        assert "typer" in found
        assert found & {"asyncio", "rich", "lmdb", "cffi", "tomllib", "zstandard", "uvicorn", "msgpack"} == set()
        assert not any(name.startswith(("orun.store", "orun.engine", "orun.runtime", "orun.worker")) for name in found)


COMMAND_LINES = [
    ["status"],
    ["status", "--json"],
    ["status", "--state-dir", "x", "--json"],
    ["status", "--state-dir=x"],
    ["stop", "--timeout", "5s"],
    ["stop", "--quiet", "--json", "--state-dir", "y"],
    ["call", "add"],
    ["call", "add", '{"a": 1}'],
    ["call", "add", "-"],
    ["call", "--agent", "b", "add", "--timeout=2s", "[1]"],
    ["call", "add", "--lines", "--json", "--state-dir", "z"],
    ["call", "--key", "k", "add", "1"],
]


@pytest.mark.parametrize("arguments", COMMAND_LINES, ids=" ".join)
def test_both_ways_mean_the_same(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from orun.cli import app

    seen: list[dict[str, Any]] = []
    defaults = {
        "status": {"state_dir": None, "json": False},
        "stop": {"state_dir": None, "json": False, "quiet": False, "timeout": quick.STOP_TIMEOUT},
        "call": {
            "payload": None, "agent": None, "key": None, "timeout": quick.CALL_TIMEOUT, "lines": False,
            "state_dir": None, "json": False,
        },
    }  # fmt: skip
    positional = {"status": ("state_dir",), "stop": ("state_dir",), "call": ("handler", "payload")}

    def spy(name: str) -> Any:
        def record(*values: Any, **named: Any) -> int:
            seen.append(defaults[name] | dict(zip(positional[name], values, strict=False)) | named)
            return 0

        return record

    for name in quick.OPTIONS:
        monkeypatch.setattr(quick, name, spy(name))
    assert quick.shortcut(arguments) == 0
    assert app.run(arguments) == 0
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["status", "--help"],
        ["status", "--watch"],
        ["status", "extra"],
        ["status", "--state-dir"],
        ["status", "--json=yes"],
        ["stop", "-q"],
        ["call"],
        ["call", "a", "b", "c"],
        ["call", "a", "-1"],
        ["call", "a", "--", "b"],
        ["call", "a", "--key", "--json"],
    ],
    ids=" ".join,
)
def test_anything_unusual_goes_to_typer(arguments: list[str]) -> None:
    assert quick.shortcut(arguments) is None


RUN_LINES = [
    ["run"],
    ["run", "agent.py"],
    ["run", "a.py", "--detach", "b.py"],
    ["run", "-d", "agent.py", "--http", "127.0.0.1:0", "--state-dir=x"],
    ["run", "agent.py", "--set", "store.checkpoints_kept=20", "--set=runtime.intensity=10", "--durability", "process"],
    ["run", "--watch", "--quiet", "--json", "agent.py"],
    ["run", "-q", "--token-file", "t", "--", "ls", "-l", "--", "--json"],
    ["run", "--"],
]


@pytest.mark.parametrize("arguments", RUN_LINES, ids=" ".join)
def test_both_ways_to_run_mean_the_same(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from orun.cli import app, starting

    seen: list[Any] = []

    def start(wish: Any) -> int:
        seen.append(wish)
        return 0

    monkeypatch.setattr(starting, "start", start)
    assert quick.shortcut(arguments) == 0
    assert app.run(arguments) == 0
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["-dq"], ["a.py", "--detatch"], ["--http"], ["--http", "--detach"], ["--detach=yes"], ["-"]],
    ids=" ".join,
)
def test_an_unusual_run_goes_to_typer(arguments: list[str]) -> None:
    assert quick_run.read(arguments) is None


def test_a_start_loads_neither_typer_nor_what_the_runtime_needs(cli: Cli) -> None:
    found = loaded_by(cli, "run", "nowhere.py", "--detach")
    assert "orun.cli.starting" in found
    assert found & {"asyncio", "rich", "lmdb", "cffi", "typer", "zstandard", "uvicorn"} == set()


def test_the_table_knows_only_options_that_typer_has() -> None:
    from orun.cli.generators.tree import read

    commands = {command.name: command for command in read().walk()}
    for name, options in quick.OPTIONS.items():
        real = {spelling: option for option in commands[f"orun {name}"].options for spelling in option.spellings}
        for spelling, kind in options.items():
            assert bool(real[spelling].value) == (kind is quick.TEXT), (name, spelling)
    real = {spelling: option for option in commands["orun run"].options for spelling in option.spellings}
    for spellings, takes_text in ((quick_run.FLAGS, False), (quick_run.TEXTS, True)):
        assert all(bool(real[spelling].value) == takes_text for spelling in spellings)


def test_the_state_directory_is_found_from_inside_a_project(cli: Cli, service: Service, tmp_path: Path) -> None:
    service.operations["status"] = lambda args: {"pid": 1, "state_dir": "x", "agents": []}
    (tmp_path / "orun.toml").write_text('state_dir = "state"\n')
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    environment = {name: value for name, value in cli.environment.items() if name != "ORUN_STATE_DIR"}
    done = subprocess.run(
        [sys.executable, "-m", "orun", "status", "--json"], cwd=inner, env=environment, capture_output=True, check=False
    )
    assert json.loads(done.stdout)["pid"] == 1


def test_status_that_nobody_answers_ends(cli: Cli, tmp_path: Path) -> None:
    """A runtime file left by a process that lives but does not listen: its guard may be restarting it."""
    run = tmp_path / "state" / "run"
    run.mkdir(parents=True)
    (run / "runtime.json").write_text(json.dumps({"pid": os.getpid(), "agents": []}))
    error = cli.error("status", code=3)
    assert "nothing answers" in error["message"]
