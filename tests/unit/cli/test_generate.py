"""The generated files: fresh, well formed, and completions that complete."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest

from orun.cli.generators import completion, files, man, release, schema
from orun.cli.generators.tree import read
from tests.unit.cli.service import Cli, Service, echo

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = sysconfig.get_path("scripts")


def need(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def test_the_repositorys_files_are_fresh(cli: Cli) -> None:
    done = cli("generate", "all", str(ROOT), "--check")
    assert done.returncode == 0, f"stale, run `make generate`:\n{done.stdout.decode()}"


def test_check_names_what_is_stale_and_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    done = cli("generate", "man", "pages", "--check")
    assert done.returncode == 1
    assert b"pages/man1/orun.1\n" in done.stdout
    assert not (tmp_path / "pages").exists()
    assert cli("generate", "man", "pages").returncode == 0
    assert cli("generate", "man", "pages", "--check").returncode == 0
    assert (tmp_path / "pages/man1/orun.1").read_bytes() == (ROOT / "man/man1/orun.1").read_bytes()


def test_the_bytes_do_not_depend_on_the_terminal(cli: Cli) -> None:
    plain = cli("generate", "man")
    for environment in ({"COLUMNS": "40"}, {"TERM": "xterm-256color", "FORCE_COLOR": "1"}, {"NO_COLOR": "1"}):
        assert cli("generate", "man", **environment).stdout == plain.stdout


def test_the_date_and_version_are_those_of_the_changelog() -> None:
    from orun import __version__

    latest = re.search(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert latest is not None
    assert latest.groups() == (__version__, release.DATE)


def test_every_command_and_setting_has_its_place_in_the_manual() -> None:
    from orun import settings_file

    pages = man.pages()
    for command in read().walk():
        page = pages[f"man1/{'-'.join(command.path[:2])}.1"]
        for option in command.options:
            for spelling in option.spellings:
                assert spelling.replace("-", "\\-") in page, (command.name, spelling)
    for name in settings_file.keys():  # noqa: SIM118 - a function, not a mapping's method
        assert f".B {name.rpartition('.')[2]}\n" in pages["man5/orun.toml.5"]


def test_the_manual_passes_mandocs_lint(tmp_path: Path) -> None:
    program = need("mandoc")
    for name, text in man.pages().items():
        page = tmp_path / Path(name).name
        page.write_text(text)
        done = subprocess.run(
            [program, "-T", "lint", "-W", "warning", page], capture_output=True, text=True, check=False
        )
        assert done.stdout == ""


def test_lexgrog_finds_every_name(tmp_path: Path) -> None:
    program = need("lexgrog")
    for name, text in man.pages().items():
        page = tmp_path / Path(name).name
        page.write_text(text)
        done = subprocess.run([program, page], capture_output=True, text=True, check=True)
        assert f'"{Path(name).stem} - ' in done.stdout


def test_every_option_with_a_value_is_known_to_the_completions() -> None:
    free = {"--http", "--key", "--timeout", "--lines", "--since", "--limit", "--at", "--to"}
    known = free | set(completion.OPTION_VALUES)
    for command in read().walk():
        for option in command.options:
            if option.value:
                assert known & set(option.spellings), (command.name, option.spellings)
        if command.arguments and not command.children:
            assert command.name in completion.POSITIONALS or command.name == "orun init"


@pytest.mark.parametrize(("shell", "flag"), [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")])
def test_the_shells_accept_their_scripts(shell: str, flag: str) -> None:
    subprocess.run([need(shell), flag, ROOT / "completions" / completion.FILES[shell]], check=True)


@pytest.fixture
def names(service: Service) -> Service:
    service.agent("counter", {"add": echo, "total": echo})
    return service


CASES = [
    ("orun ", {"run", "call", "checkpoint", "generate"}),
    ("orun re", {"reload", "restore"}),
    ("orun run --det", {"--detach"}),
    ("orun checkpoint ", {"create", "list", "show", "verify"}),
    ("orun call ", {"add", "total"}),
    ("orun call --agent ", {"counter"}),
    ("orun call --agent counter a", {"add"}),
    ("orun run --durability ", {"disk", "process"}),
    ("orun init --template ", {"counter", "index", "service"}),
    ("orun run --set store.ring", {"store.ring_bytes="}),
    ("orun generate completion z", {"zsh"}),
]


def environment(cli: Cli) -> dict[str, str]:
    return {**cli.environment, "PATH": f"{SCRIPTS}:{os.environ['PATH']}"}


@pytest.mark.parametrize(("line", "expected"), CASES, ids=[line for line, _ in CASES])
def test_bash_completes(cli: Cli, names: Service, line: str, expected: set[str]) -> None:
    words = line.split(" ")
    script = f"""
        compopt() {{ :; }}
        source {ROOT}/completions/orun.bash
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
        COMP_CWORD={len(words) - 1}
        _orun
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        [need("bash"), "-c", script], env=environment(cli), capture_output=True, text=True, check=True
    )
    found = set(done.stdout.split())
    assert expected <= found
    assert all(word.startswith(words[-1]) for word in found)


@pytest.mark.parametrize(("line", "expected"), CASES, ids=[line for line, _ in CASES])
def test_fish_completes(cli: Cli, names: Service, line: str, expected: set[str]) -> None:
    script = f"source {ROOT}/completions/orun.fish; complete -C '{line}'"
    done = subprocess.run(
        [need("fish"), "--no-config", "-c", script],
        env={**environment(cli), "HOME": str(cli.folder)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert expected <= {found.split("\t")[0] for found in done.stdout.splitlines()}


def typed(program: str, setup: str, line: str, expected: str, env: dict[str, str]) -> str:
    """What a shell on a terminal shows after a line and a TAB; ends early once the expected text is there."""
    on_a_terminal = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])", program, "-f", "-i"]
    shown = b""
    with subprocess.Popen(on_a_terminal, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        # The marker is not what is typed, so its echo does not count.
        os.write(shell.stdin.fileno(), setup.encode() + b"\nprint -r S''ET\n")
        for wanted, then in ((b"SET", line.encode() + b"\t\t"), (expected.encode(), b"")):
            deadline = time.monotonic() + 20
            while wanted not in shown and time.monotonic() < deadline:
                if select.select([shell.stdout], [], [], 0.1)[0]:
                    shown += os.read(shell.stdout.fileno(), 1 << 16)
            os.write(shell.stdin.fileno(), then)
        shell.kill()
    return shown.decode(errors="replace")


def test_zsh_completes(cli: Cli, names: Service) -> None:
    """On a terminal of its own, as zsh completes nowhere else."""
    program = need("zsh")
    setup = f"autoload -U compinit; compinit -D -u; source {ROOT}/completions/_orun"
    for line, expected in (
        ("orun checkpoint ", "verify"),
        ("orun call --agent ", "counter"),
        ("orun call ", "total"),
        ("orun run --det", "--detach"),
    ):
        assert expected in typed(program, setup, line, expected, environment(cli) | {"TERM": "xterm"})


def test_the_schema_accepts_the_templates_and_names_every_key() -> None:
    document = schema.schema()
    assert document["additionalProperties"] is False
    import tomllib

    for path in (ROOT / "orun/templates").glob("*/orun.toml"):
        table = tomllib.loads(path.read_text())
        for section, content in table.items():
            properties: dict[str, Any] = document["properties"][section]
            keys = properties.get("items", properties)["properties"]
            for entry in content if isinstance(content, list) else [content]:
                assert set(entry) <= set(keys)
    assert json.loads(schema.text()) == document


def test_a_unit_quotes_what_systemd_would_take_apart(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "my 100% agent"
    folder.mkdir()
    text = cli("generate", "unit", f"{folder}/agent.py", "--http", "127.0.0.1:0").stdout.decode()
    assert "Type=notify\n" in text
    assert '/my 100%% agent/agent.py"' in text
    assert "--http 127.0.0.1:0" in text


def test_a_dockerfile_starts_the_agent(cli: Cli) -> None:
    text = cli("generate", "dockerfile").stdout.decode()
    assert 'CMD ["orun", "run", "agent.py"]' in text
    assert cli("generate", "dockerfile", "/abs/agent.py").returncode == 2


def test_everything_is_what_files_settles() -> None:
    assert set(files.everything(str(ROOT))) >= {"README.md", "man/man1/orun.1", "completions/_orun"}
