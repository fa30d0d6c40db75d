"""Fixtures for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import Orun, orun_in


@pytest.fixture
def orun(tmp_path: Path) -> Iterator[Orun]:
    """The command line in a folder of its own; whatever it started is ended."""
    with orun_in(tmp_path) as running:
        yield running
