"""What a restore goes back to: a checkpoint, a log position, a time, or a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from orun.engine.journal import RecordView
from orun.errors import NotFound, UsageError
from orun.store import checkpoints, log
from orun.store.checkpoints import CheckpointInfo
from orun.store.environment import Txn
from orun.store.frames import FrameCodec

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)(?:\s+ago)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Target:
    """One of the four."""

    checkpoint: str | None = None
    """``latest``, ``previous``, an id, or an unambiguous beginning of one."""
    lsn: int | None = None
    time_ms: int | None = None
    source: Path | None = None
    """An exported checkpoint or a backup."""

    def __post_init__(self) -> None:
        named = (self.checkpoint, self.lsn, self.time_ms, self.source)
        if sum(value is not None for value in named) != 1:
            raise UsageError("name one of checkpoint, log position, time or file")

    @classmethod
    def parse(cls, text: str, *, now: float) -> Target:
        """Read what a person typed: an id, an LSN, an RFC 3339 time, or an age such as ``10m ago``."""
        text = text.strip()
        if text.isdecimal():
            return cls(lsn=int(text))
        ago = _AGO.fullmatch(text)
        if ago is not None:
            return cls(time_ms=int((now - float(ago[1]) * _SECONDS[ago[2]]) * 1000))
        try:
            return cls(time_ms=int(datetime.fromisoformat(text).timestamp() * 1000))
        except ValueError:
            return cls(checkpoint=text)


def resolve(
    txn: Txn, agent: str, codec: FrameCodec, infos: Sequence[CheckpointInfo], target: Target, last_lsn: int
) -> int:
    """The LSN of a checkpoint, position or time."""
    assert target.source is None
    if target.checkpoint is not None:
        return checkpoints.find(infos, target.checkpoint).lsn
    lsn = target.lsn
    if lsn is None:
        assert target.time_ms is not None
        lsn = _lsn_at(txn, agent, codec, target.time_ms, last_lsn)
    if lsn > last_lsn:
        raise NotFound(f"{agent} has no LSN {lsn} yet, the log ends at {last_lsn}")
    return lsn


def _lsn_at(txn: Txn, agent: str, codec: FrameCodec, time_ms: int, last_lsn: int) -> int:
    oldest: RecordView | None = None
    for frame, value in log.frames_backward(txn, agent, codec, last_lsn):
        if min(frame.first_ms, frame.last_ms) > time_ms:
            continue
        for record in reversed(log.records(codec, agent, frame, value)):
            if record.time_ms <= time_ms:
                return record.lsn
            oldest = record
    since = f" (it begins {datetime.fromtimestamp(oldest.time_ms / 1000).isoformat()})" if oldest else ""
    raise NotFound(f"the log of {agent} does not reach back to that time{since}")
