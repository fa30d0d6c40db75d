"""Starts the agent for real, kills its worker, and finds every acknowledged amount in place."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


def orun(*arguments):
    """Run an orun command and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "orun", *arguments], cwd=HERE, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def running(tmp_path, monkeypatch):
    """The agent, running on a state of its own."""
    monkeypatch.setenv("ORUN_STATE_DIR", str(tmp_path / "state"))
    orun("run", "--detach")
    yield
    orun("stop")


def test_a_killed_worker_loses_nothing(running):
    assert json.loads(orun("call", "add", '{"amount": 2}')) == {"total": 2}
    worker = json.loads(orun("status", "--json"))["agents"][0]["pid"]
    os.kill(worker, signal.SIGKILL)
    assert json.loads(orun("call", "add", '{"amount": 3}')) == {"total": 5}
    assert json.loads(orun("call", "total")) == {"total": 5}
