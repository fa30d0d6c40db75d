"""Starts the agent for real, feeds it documents, kills its worker half-way, and searches."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


def orun(*arguments, text=None):
    """Run an orun command and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "orun", *arguments],
        cwd=HERE,
        capture_output=True,
        text=True,
        input=text,
        timeout=120,
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


def put(first, last):
    """Put numbered documents; every one has a word of its own."""
    lines = [json.dumps({"id": f"d{n}", "text": f"common words and word{n}"}) for n in range(first, last)]
    return orun("call", "put", "--lines", text="\n".join(lines)).splitlines()


def test_every_document_is_found_after_a_kill(running):
    assert len(put(0, 100)) == 100
    worker = json.loads(orun("status", "--json"))["agents"][0]["pid"]
    os.kill(worker, signal.SIGKILL)
    put(100, 130)
    assert json.loads(orun("call", "stats")) == {"documents": 130}
    for number in (0, 63, 64, 129):
        hits = json.loads(orun("call", "search", json.dumps({"query": f"word{number}"})))["hits"]
        assert [hit["id"] for hit in hits] == [f"d{number}"]


def test_a_removed_document_is_not_found(running):
    put(0, 3)
    assert json.loads(orun("call", "remove", '{"id": "d1"}')) == {"removed": True}
    hits = json.loads(orun("call", "search", '{"query": "common"}'))["hits"]
    assert [hit["id"] for hit in hits] == ["d0", "d2"]
