"""Every template makes a project whose own test passes, as a newcomer would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orun.cli import scaffold
from tests.support import Orun


@pytest.mark.parametrize("template", [entry.name for entry in scaffold.templates()])
def test_a_new_project_passes_its_test(orun: Orun, template: str) -> None:
    orun.ok("init", "my-project", "--template", template)
    folder = orun.folder / "my-project"
    assert {"agent.py", "orun.toml", "README.md", "test_agent.py"} <= {path.name for path in folder.iterdir()}
    assert "__NAME__" not in "".join(path.read_text() for path in folder.iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"],
        cwd=folder, env=orun.environment, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_init_never_overwrites(orun: Orun) -> None:
    folder = orun.folder / "mine"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    done = orun.run("init", "mine")
    assert done.returncode == 2
    assert "README.md exists already" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("arguments", "text"), [(("x", "-t", "nope"), "counter, index, service"), ((), "orun init my-agent")]
)
def test_init_says_what_it_needs(orun: Orun, arguments: tuple[str, ...], text: str) -> None:
    done = orun.run("init", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr


def test_a_folders_name_becomes_an_agents(orun: Orun) -> None:
    orun.ok("init", "my agent 2")
    assert 'Agent("my-agent-2")' in (Path(orun.folder) / "my agent 2" / "agent.py").read_text()
    assert orun.run("init", "...").returncode == 2


def test_the_list_names_each_template_with_its_summary(orun: Orun) -> None:
    entries = orun.json("init", "--list")["templates"]
    assert [entry["name"] for entry in entries] == ["counter", "index", "service"]
    assert all(entry["summary"].endswith(".") for entry in entries)
