"""The next runtime ends what a tree that died as a whole has left, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orun.runtime.leftovers import FILE_NAME, TREE_VARIABLE, sweep


def sleeper(token: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"],
        env={**os.environ, TREE_VARIABLE: token},
        start_new_session=True,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    return process


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(TREE_VARIABLE, "new" + tmp_path.name)
    return "old" + tmp_path.name


def test_what_carries_the_last_trees_token_is_killed_and_others_are_not(tmp_path: Path, token: str) -> None:
    ours, other, nested = sleeper(token), sleeper(token + "x"), sleeper(f"outer.{token}")
    try:
        (tmp_path / FILE_NAME).write_text(token)
        assert sweep(tmp_path) == 1
        assert ours.wait(5) == -9
        assert other.poll() is None
        assert nested.poll() is None
        assert (tmp_path / FILE_NAME).read_text() == os.environ[TREE_VARIABLE]
    finally:
        for process in (ours, other, nested):
            process.kill()
            process.wait()


def test_a_runtime_that_the_guard_started_again_spares_its_own_tree(tmp_path: Path, token: str) -> None:
    own = sleeper(os.environ[TREE_VARIABLE])
    try:
        (tmp_path / FILE_NAME).write_text(os.environ[TREE_VARIABLE])
        assert sweep(tmp_path) == 0
        assert own.poll() is None
    finally:
        own.kill()
        own.wait()


def test_the_first_runtime_of_a_directory_has_nothing_to_sweep(tmp_path: Path, token: str) -> None:
    assert sweep(tmp_path) == 0
