"""Starts the service for real, kills the plain command, and waits for its return."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

HERE = pathlib.Path(__file__).parent
PATIENCE_S = 30


def orun(*arguments):
    """Run an orun command and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "orun", *arguments], cwd=HERE, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def running(tmp_path, monkeypatch):
    """The service, running on a state of its own."""
    monkeypatch.setenv("ORUN_STATE_DIR", str(tmp_path / "state"))
    orun("run", "--detach")
    yield
    orun("stop")


def node(name, tree=None):
    """A process in the supervision tree."""
    tree = tree or json.loads(orun("status", "--json"))["tree"]
    if tree["name"] == name:
        return tree
    found = (node(name, child) for child in tree["children"])
    return next((child for child in found if child), None)


def test_a_killed_command_is_started_again(running):
    first = node("ticker")["pid"]
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while (ticker := node("ticker"))["pid"] in (None, first):
        assert time.monotonic() < deadline, ticker
    assert ticker["restarts"] == 1


def test_a_job_is_kept_and_finished(running):
    assert json.loads(orun("call", "submit", '{"name": "first"}')) == {"job": 1}
    assert json.loads(orun("call", "finish", '{"job": 1}'))["done"] is True
    assert json.loads(orun("call", "jobs", '{"open": true}')) == {"jobs": []}
