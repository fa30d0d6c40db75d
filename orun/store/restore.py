"""Going back to an earlier state, by going forward: what a restore does is logged as RESTORE records.

They hold the earlier value of every block changed since, so a restore can itself be undone. What it
has to change, planning.py finds out. The agent must not have a worker meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from orun.engine.journal import Drained, frame, scan
from orun.store.log import LogEnd
from orun.store.records import FLAG_MORE, Kind, encode_effect
from orun.store.recovery import join

_RECORD_BYTES = 256 << 10
"""Changes gathered in one RESTORE record; one block may exceed it."""
_FRAME_BYTES = 4 << 20

Changes = dict[bytes, bytes | None]


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore does, or did when ``applied``."""

    agent: str
    from_lsn: int
    """Where the log ended; restoring to it undoes the restore."""
    target_lsn: int
    checkpoint: str | None
    """The checkpoint that the values come from; None: from the beginning of the log, or from a file."""
    source: str | None
    blocks_changed: int
    replayed_records: int
    """Log records read behind the checkpoint."""
    rebase: bool = False
    """The log behind the last checkpoint is damaged: it is left behind, and begins anew with this state."""
    applied: bool = False
    lsn: int = 0
    """Where the log ends after it."""
    changes: Changes = field(default_factory=dict, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        result = asdict(replace(self, changes={}))
        del result["changes"]
        return result


def restore_records(plan: RestorePlan, end: LogEnd, *, epoch: int, time_ms: int) -> Iterator[Drained]:
    """The RESTORE records of a plan, as what a ring would have given."""
    assert end.last_lsn == plan.from_lsn
    lsn, crc = end.last_lsn, end.last_crc
    data: list[bytes] = []
    groups = list(_groups(sorted(plan.changes.items())))
    for number, group in enumerate(groups):
        lsn += 1
        flags = FLAG_MORE if number + 1 < len(groups) else 0
        payload = encode_effect(b"", True, group)
        record = frame(
            Kind.RESTORE,
            lsn,
            payload,
            ref=plan.target_lsn,
            flags=flags,
            epoch=epoch,
            time_ms=time_ms,
            prev_crc=crc,
        )
        crc = int.from_bytes(record[4:8], "little")
        data.append(record)
        if sum(map(len, data)) >= _FRAME_BYTES or number + 1 == len(groups):
            yield _drained(data)
            data = []


def _drained(records: list[bytes]) -> Drained:
    data = b"".join(records)
    return join(data, scan(data, None))


def _groups(changes: list[tuple[bytes, bytes | None]]) -> Iterator[list[tuple[bytes, bytes | None]]]:
    group: list[tuple[bytes, bytes | None]] = []
    size = 0
    for key, value in changes:
        group.append((key, value))
        size += len(key) + len(value or b"")
        if size >= _RECORD_BYTES:
            yield group
            group, size = [], 0
    # A restore that changes nothing is a record, too: it says that it happened.
    if group or not changes:
        yield group
