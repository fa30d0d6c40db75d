"""Checkpoints: markers in the database, each with the list of the blocks that it changed.

A checkpoint is the state after one LSN. Its blocks are versions filed under that LSN (blocks.py);
the marker is written last, in one transaction with the last of them, so what has a marker is whole.

The marker also names the records of requests that were open at that moment: a worker that starts
from the checkpoint delivers them again, and the log keeps them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from orun.errors import Damaged, NotFound
from orun.store import rows
from orun.store.environment import Txn
from orun.store.rows import LSN

_CHUNK = struct.Struct(">QI")


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """One checkpoint."""

    id: str
    agent: str
    lsn: int
    number: int
    """The how-manieth of its agent it is."""
    time: float
    """Unix time at which it was complete."""
    blocks: int
    """Blocks changed since the one before."""
    bytes: int
    """What these take in the database."""
    total: int
    """Blocks that have a value."""
    reason: str
    version: str
    exported: bool = False
    open: tuple[int, ...] = ()
    """LSNs of the records (deliveries and steps) of requests not yet answered."""

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        result = asdict(self)
        result["open"] = len(self.open)
        return result

    @property
    def needed_lsn(self) -> int:
        """The oldest LSN that the log must have for this checkpoint."""
        return min(self.lsn + 1, *self.open) if self.open else self.lsn + 1


def checkpoint_id(agent: str, lsn: int) -> str:
    """The name a person types."""
    return f"{agent}-{lsn}"


def _markers(agent: str) -> str:
    return f"ckpt/{agent}"


def _dirty(agent: str) -> str:
    return f"dirty/{agent}"


def put(txn: Txn, info: CheckpointInfo) -> None:
    """Write or replace the marker."""
    content = asdict(info)
    del content["id"], content["agent"], content["lsn"]
    key = LSN.pack(info.lsn)
    txn.put(_markers(info.agent), key, rows.pack(key, content))


def load(txn: Txn, agent: str) -> list[CheckpointInfo]:
    """The checkpoints of an agent whose markers are sound, oldest first."""
    result: list[CheckpointInfo] = []
    for key, value in txn.rows(_markers(agent)):
        # One that is damaged is passed over: the one before it and a longer log serve as well.
        with suppress(Damaged):
            result.append(decode(agent, key, value))
    return result


def damaged(txn: Txn, agent: str) -> list[int]:
    """LSNs of checkpoints whose markers are damaged."""
    sound = {info.lsn for info in load(txn, agent)}
    return [lsn for lsn in all_lsns(txn, agent) if lsn not in sound]


def all_lsns(txn: Txn, agent: str) -> list[int]:
    """LSNs of all checkpoints, damaged ones included."""
    return [LSN.unpack(key)[0] for key, _ in txn.rows(_markers(agent))]


def decode(agent: str, key: bytes, value: bytes | memoryview) -> CheckpointInfo:
    """A marker from its row; Damaged when it does not match its checksum."""
    lsn = LSN.unpack(key)[0]
    name = checkpoint_id(agent, lsn)
    content = rows.unpack(key, value, f"checkpoint {name}")
    content["open"] = tuple(content["open"])
    return CheckpointInfo(id=name, agent=agent, lsn=lsn, **content)


def drop(txn: Txn, agent: str, lsn: int) -> None:
    """Remove the marker; its blocks are collected by their dirty lists."""
    txn.delete(_markers(agent), LSN.pack(lsn))


def find(infos: Sequence[CheckpointInfo], wanted: str) -> CheckpointInfo:
    """A checkpoint by ``latest``, ``previous``, its id or an unambiguous beginning of it."""
    if not infos:
        raise NotFound("there is no checkpoint yet", hint="make one with `orun checkpoint create`")
    if wanted == "latest":
        return infos[-1]
    if wanted == "previous":
        if len(infos) < 2:
            raise NotFound(f"{infos[-1].id} is the only checkpoint, there is none before it")
        return infos[-2]
    exact = [info for info in infos if info.id == wanted]
    found = exact or [info for info in infos if info.id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise NotFound(f"there is no checkpoint {wanted}", hint="`orun checkpoint list` shows what can be restored")
    names = ", ".join(info.id for info in found[:5])
    raise NotFound(f"{wanted} could be any of {names}", hint="type more of the id")


def put_dirty(txn: Txn, agent: str, lsn: int, chunk: int, keys: Sequence[bytes]) -> None:
    """Write one part of a checkpoint's dirty list."""
    key = _CHUNK.pack(lsn, chunk)
    txn.put(_dirty(agent), key, rows.pack(key, list(keys)))


def dirty_chunk(txn: Txn, agent: str, upto_lsn: int) -> tuple[bytes, list[bytes] | None] | None:
    """The oldest part of a dirty list of a checkpoint up to an LSN: row key and block keys (None: damaged)."""
    for key, value in txn.rows(_dirty(agent)):
        if _CHUNK.unpack(key)[0] > upto_lsn:
            return None
        try:
            return key, rows.unpack(key, value, f"dirty list of {agent}")
        except Damaged:
            return key, None
    return None


def drop_dirty(txn: Txn, agent: str, row_key: bytes) -> None:
    """Remove one part of a dirty list."""
    txn.delete(_dirty(agent), row_key)


def drop_unfinished(txn: Txn, agent: str, after_lsn: int) -> int:
    """Remove the dirty lists of checkpoints that were never completed; returns how many parts."""
    doomed = [key for key, _ in txn.rows(_dirty(agent), _CHUNK.pack(after_lsn + 1, 0))]
    for key in doomed:
        drop_dirty(txn, agent, key)
    return len(doomed)


def verify_rows(txn: Txn, agent: str) -> Iterator[tuple[int, str]]:
    """LSN and complaint for each marker and dirty list that is damaged."""
    for database in (_markers(agent), _dirty(agent)):
        for key, value in txn.rows(database):
            try:
                rows.unpack(key, value, database)
            except Damaged as error:
                yield LSN.unpack_from(key)[0], error.message
