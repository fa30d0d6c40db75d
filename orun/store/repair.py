"""Reading a block past damage: what the version held is in the log, too.

A version filed under an LSN holds the last change of its block at or before that LSN. So when the
version is damaged, the newest change in the log at or before it is the same value, as far back as
the log reaches; it reaches at least to the oldest checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable

from orun.errors import Damaged
from orun.store import blocks, log
from orun.store.blocks import BlockCodec
from orun.store.environment import Txn
from orun.store.frames import FrameCodec
from orun.store.records import Kind, iterate_changes

Warn = Callable[[str], None]


def read_block(
    txn: Txn, agent: str, codec: BlockCodec, frames: FrameCodec, key: bytes, lsn: int, warn: Warn
) -> bytes | None:
    """The value of a block at a checkpoint; a damaged version is read from the log, and ``warn`` says so."""
    found = blocks.find(txn, agent, key, lsn)
    if found is None:
        return None
    try:
        return codec.decode(*found)
    except Damaged as error:
        version = blocks.split_key(found[0])[1]
        value, change_lsn = last_change(txn, agent, frames, key, version, error)
        warn(f"{agent}: {error.message}; its value was read from the log at LSN {change_lsn}")
        return value


def last_change(
    txn: Txn, agent: str, codec: FrameCodec, key: bytes, upto_lsn: int, damage: Damaged
) -> tuple[bytes | None, int]:
    """The newest change of a block at or before an LSN, and its LSN; ``damage`` is raised when the log has none."""
    for frame, value in log.frames_backward(txn, agent, codec, upto_lsn):
        if not frame.has(Kind.EFFECT, Kind.RESTORE):
            continue
        for record in reversed(log.records(codec, agent, frame, value)):
            if record.lsn > upto_lsn or record.kind not in (Kind.EFFECT, Kind.RESTORE):
                continue
            changes = dict(iterate_changes(record.payload))
            if key in changes:
                return changes[key], record.lsn
    raise Damaged(
        f"{damage.message}, and the log no longer reaches back to where it was written",
        hint="`orun restore --from FILE` starts from an exported checkpoint or a backup",
    )
