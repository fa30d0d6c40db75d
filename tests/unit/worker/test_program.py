"""Snapshots of an agent's files, and what goes wrong when they are loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orun.errors import Damaged, NotFound
from orun.worker.program import load_snapshot, snapshot

AGENT = """from orun import Agent
agent = Agent("counter")

@agent.handler
def add(state, request):
    return 1
"""


def load_in_process(folder: Path, source: str) -> str:
    """Load an agent file in a process of its own; returns what it printed."""
    (folder / "agent.py").write_text(source)
    script = (
        "import sys\n"
        "from orun.errors import OrunError\n"
        "from orun.worker.program import load, snapshot\n"
        "try:\n"
        "    agent = load(snapshot(sys.argv[1]))\n"
        "    state = {}\n"
        "    print(agent.name, sorted(agent.handlers), [h.function(state, {}) for h in agent.handlers.values()])\n"
        "except OrunError as error:\n"
        "    print(error.code, error.message, error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder / "agent.py")], capture_output=True, text=True, check=True
    )
    return done.stdout.replace(str(folder), "DIR")


def test_a_version_is_the_content_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(AGENT)
    first = snapshot(str(tmp_path / "agent.py")).version
    assert snapshot(str(tmp_path / "agent.py")).version == first
    (tmp_path / "agent.py").write_text(AGENT + "\n")
    assert snapshot(str(tmp_path / "agent.py")).version != first


def test_local_imports_belong_to_the_version(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text("import helper\nfrom pack import part\nimport json\n" + AGENT)
    (tmp_path / "helper.py").write_text("import deeper\n")
    (tmp_path / "deeper.py").write_text("x = 1\n")
    (tmp_path / "unused.py").write_text("y = 1\n")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("from . import part\n")
    (tmp_path / "pack" / "part.py").write_text("z = 1\n")
    names = set(snapshot(str(tmp_path / "agent.py")).files)
    assert names == {
        "agent.py",
        "helper.py",
        "deeper.py",
        os.path.join("pack", "__init__.py"),
        os.path.join("pack", "part.py"),
    }


def test_a_snapshot_runs_although_the_files_were_edited_since(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("answer = 1\n")
    (tmp_path / "agent.py").write_text("import helper\n" + AGENT.replace("return 1", "return helper.answer"))
    home = snapshot(str(tmp_path / "agent.py")).save(str(tmp_path / "versions"))
    (tmp_path / "helper.py").write_text("answer = 2\n")
    (tmp_path / "agent.py").write_text("broken(")
    script = (
        "import sys\nfrom orun.worker.program import load, load_snapshot\n"
        "print(load(load_snapshot(sys.argv[1])).handlers['add'].function({}, {}))"
    )
    done = subprocess.run([sys.executable, "-c", script, home], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_a_snapshot_that_was_changed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(AGENT)
    home = snapshot(str(tmp_path / "agent.py")).save(str(tmp_path / "versions"))
    Path(home, "files", "agent.py").write_text(AGENT + "# edited\n")
    with pytest.raises(Damaged, match="has been changed"):
        load_snapshot(home)


def test_a_missing_file_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no agent file"):
        snapshot(str(tmp_path / "none.py"))


def test_an_agent_loads(tmp_path: Path) -> None:
    assert load_in_process(tmp_path, AGENT) == "counter ['add'] [1]\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(:\n", "2 DIR/agent.py:1: invalid syntax"),
        ("x = 1\n", "2 DIR/agent.py defines no agent"),
        ("\nimport nothing_like_this\n", "2 DIR/agent.py:2: ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("raise SystemExit(3)\n", "2 DIR/agent.py:1: SystemExit: 3"),
        ("from orun import Agent\na = Agent('a')\n", "2 DIR/agent.py: agent a has no handler"),
        ("from orun import Agent\na = Agent('a')\nb = Agent('b')\n", "2 DIR/agent.py defines 2 agents"),
        ("from orun import Agent\na = Agent('no good')\n", "2 DIR/agent.py:2: 'no good' cannot name an agent"),
        (
            "from orun import Agent\na = Agent('a')\n@a.handler\ndef f(state): pass\n",
            "2 DIR/agent.py:3: handler f: takes 1 positional arguments",
        ),
        (AGENT + "\n@agent.handler(name='add')\ndef g(s, r): pass\n", "2 DIR/agent.py:8: agent counter: two handlers"),
    ],
)
def test_what_is_wrong_with_an_agent_file_is_said_with_its_line(tmp_path: Path, source: str, expected: str) -> None:
    assert load_in_process(tmp_path, source).startswith(expected)
