"""Thousands of crashes in a few seconds; see simulator.py."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from tests.faults import simulator
from tests.faults.simulator import Outcome, Violation, run_seed

SEEDS = 3000


@pytest.fixture
def folder() -> Iterator[Path]:
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None, prefix="orun-simulator-"))
    yield path
    shutil.rmtree(path)


def _run_seeds(count: int, folder: Path) -> Outcome:
    total = Outcome()
    for seed in range(count):
        outcome = run_seed(seed, folder)
        for name in Outcome.__slots__:
            setattr(total, name, getattr(total, name) + getattr(outcome, name))
    return total


def test_no_seed_breaks_a_promise(folder: Path) -> None:
    total = _run_seeds(SEEDS, folder)
    # The simulator does see something: all that can happen has happened often.
    assert total.lives > SEEDS
    assert total.committed > 10 * SEEDS
    assert total.recovered > SEEDS
    assert total.lost > SEEDS // 4
    assert total.refused > SEEDS // 10
    assert list(folder.iterdir()) == []


def test_a_seed_is_repeatable(folder: Path) -> None:
    assert run_seed(42, folder) == run_seed(42, folder)


def test_simulator_sees_a_recovery_that_believes_too_much(folder: Path) -> None:
    """Without the check against the committed log, lost and repeated records go through."""

    def credulous(drained: object, last_lsn: int, last_crc: int) -> object:
        return drained

    with mock.patch("orun.store.recovery.behind", credulous), pytest.raises(Violation):
        _run_seeds(300, folder)


def test_simulator_sees_a_recovery_that_believes_too_little(folder: Path) -> None:
    with mock.patch("orun.store.recovery.behind", return_value=None), pytest.raises(Violation):
        _run_seeds(300, folder)


def test_sectors_are_mixed_from_all_versions(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    disk = simulator._Disk(path)
    for number in range(5):
        path.write_bytes(bytes([number]) * simulator.SECTOR * 8)
        disk.remember()
    seen = {byte for seed in range(20) for byte in disk.after_power_cut(random.Random(seed))}
    assert seen >= {0, 1, 2, 3, 4}
