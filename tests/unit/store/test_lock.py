from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orun.errors import InUse
from orun.store.layout import StateDir
from orun.store.lock import StateLock, boot_id, holder, process_started
from tests.unit.store.harness import state_dir

_HOLD = """
import sys
from orun.store.layout import StateDir
from orun.store.lock import StateLock
lock = StateLock(StateDir(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def _hold(state: StateDir) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(state.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_second_orun_is_told_who_holds_the_state(tmp_path: Path) -> None:
    state = state_dir(tmp_path)
    process = _hold(state)
    try:
        with pytest.raises(InUse, match=rf"pid {process.pid}, started \d{{4}}-") as raised:
            StateLock(state)
        assert raised.value.code == 11
        assert str(tmp_path) in raised.value.message
        found = holder(state)
        assert found is not None
        assert found["pid"] == process.pid
        assert found["boot_id"] == boot_id()
        assert found["started"] == pytest.approx(process_started(process.pid), abs=1)
    finally:
        _end(process)


def test_lock_of_a_killed_holder_is_free(tmp_path: Path) -> None:
    state = state_dir(tmp_path)
    _end(_hold(state))
    assert holder(state) is None
    assert state.lock_file.exists()
    with StateLock(state):
        pass


def test_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """An orphan that inherits the descriptor must not keep the directory locked."""
    state = state_dir(tmp_path)
    script = _HOLD.replace(
        'print("held", flush=True)',
        "import os, time\npid = os.fork()\nif pid == 0:\n    time.sleep(60)\nprint(pid, flush=True)",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(state.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    orphan = int(process.stdout.readline())
    try:
        assert holder(state) is not None
        process.kill()
        process.wait()
        assert holder(state) is None
    finally:
        os.kill(orphan, 9)
        _end(process)


def test_state_without_a_lock_has_no_holder(tmp_path: Path) -> None:
    assert holder(StateDir(tmp_path)) is None


def test_lock_can_be_released(tmp_path: Path) -> None:
    state = state_dir(tmp_path)
    StateLock(state).release()
    with StateLock(state) as lock:
        assert lock.state is state


def test_start_of_a_process_that_is_gone_is_zero() -> None:
    assert process_started(2**22 + 1) == 0.0
