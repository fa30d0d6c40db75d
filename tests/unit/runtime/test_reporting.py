"""What the store tells, as lines for people."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from orun.runtime import reporting


@pytest.mark.parametrize(
    ("kind", "fields", "level", "text"),
    [
        (
            "checkpoint",
            {"agent": "a", "id": "a-7", "blocks": 1, "reason": "stop"},
            logging.INFO,
            "checkpoint a-7 made (stop), 1 block",
        ),
        ("recovered", {"agent": "a", "records": 2}, logging.INFO, "a: 2 records taken over from the journal"),
        (
            "restored",
            {"agent": "a", "from_lsn": 9, "target_lsn": 3, "blocks_changed": 0, "source": None},
            logging.INFO,
            "a: restored from log position 9 to 3, 0 blocks changed",
        ),
        ("dead_letter", {"agent": "a", "lsn": 5, "attempts": 3}, logging.WARNING, "a: request 5 is set aside"),
        ("log_damaged", {"agent": "a", "problem": "x"}, logging.WARNING, "a: log damaged problem=x"),
    ],
)
def test_an_event_of_the_store(kind: str, fields: dict[str, Any], level: int, text: str) -> None:
    assert reporting.event_level(kind) == level
    assert reporting.event_text(kind, fields).startswith(text)
