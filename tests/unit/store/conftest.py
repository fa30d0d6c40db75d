"""Fixtures of the store's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.store.harness import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A store driven by hand."""
    desk = Desk(tmp_path / "state")
    yield desk
    desk.close()
