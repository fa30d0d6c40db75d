"""Beginning the log anew when what is behind the last checkpoint can no longer be read.

The damaged log is kept in a file for whoever wants to look into it. Then, in one transaction, all
segments go, RESTORE records with the whole state begin a new one, and a checkpoint is made of the
same state, so that nobody has to read across the gap. LSNs go on: none is ever used twice. Older
checkpoints stay and can be restored; what was between them is only in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orun.errors import Damaged
from orun.store import blocks, checkpoints, log
from orun.store.agents import AgentRow
from orun.store.archive import ArchiveWriter
from orun.store.blocks import BlockCodec
from orun.store.checkpoints import CheckpointInfo
from orun.store.environment import Txn
from orun.store.frames import FrameCodec
from orun.store.jobs import SLICE_BLOCKS
from orun.store.log import LogEnd
from orun.store.restore import Changes, RestorePlan, restore_records

KIND = "log"


def keep_log(txn: Txn, agent: str, folder: Path, lsn: int) -> Path:
    """Write the log as it is to a file: ``[segment, key, frame]`` values."""
    path = folder / f"{agent}-{lsn}.log.orun"
    with ArchiveWriter(path, {"kind": KIND, "agent": agent, "lsn": lsn}) as writer:
        for segment in log.segments(txn, agent):
            for key, value in txn.rows(log.segment_name(agent, segment)):
                writer.add([segment, key, bytes(value)])
        writer.finish()
    return path


def begin_anew(
    txn: Txn, row: AgentRow, infos: Sequence[CheckpointInfo], plan: RestorePlan, *, time_ms: int
) -> tuple[LogEnd, CheckpointInfo]:
    """Replace the log by the state of the plan; returns its new end and the checkpoint."""
    agent = plan.agent
    codec = FrameCodec()
    for segment in log.segments(txn, agent):
        log.drop(txn, agent, segment)
    end = LogEnd(last_lsn=plan.from_lsn)
    for drained in restore_records(plan, end, epoch=row.epoch, time_ms=time_ms):
        end = log.append(txn, agent, end, drained, codec, segment_bytes=1 << 62)
    written, size = _write_blocks(txn, agent, end.last_lsn, plan.changes)
    for start in range(0, len(written), SLICE_BLOCKS):
        checkpoints.put_dirty(txn, agent, end.last_lsn, start, written[start : start + SLICE_BLOCKS])
    info = CheckpointInfo(
        id=checkpoints.checkpoint_id(agent, end.last_lsn),
        agent=agent,
        lsn=end.last_lsn,
        number=infos[-1].number + 1 if infos else 1,
        time=time_ms / 1000,
        blocks=len(written),
        bytes=size,
        total=len(plan.changes),
        reason="the log began anew",
        version=row.version,
    )
    checkpoints.put(txn, info)
    return end, info


def _write_blocks(txn: Txn, agent: str, lsn: int, state: Changes) -> tuple[list[bytes], int]:
    codec = BlockCodec()
    changes = dict(state)
    # Against all versions there are, those of unfinished and damaged checkpoints included.
    for key, stored_key, value in blocks.versions(txn, agent, lsn):
        try:
            stored = codec.decode(stored_key, value)
        except Damaged:
            changes.setdefault(key, None)
            continue
        if key not in state:
            if stored is not None:
                changes[key] = None
        elif stored == state[key]:
            del changes[key]
    size = sum(blocks.put(txn, agent, codec, key, lsn, value) for key, value in sorted(changes.items()))
    return sorted(changes), size
