"""Finding out what a restore has to change, in short transactions, beside whatever else is going on.

The values come from the checkpoint at or before the target and the log behind it. Which blocks to
look at, the log since the target tells. Where that part of the log is damaged or gone, all blocks
are compared; and where even the present state cannot be read, because the log behind the last
checkpoint is damaged, the restore becomes a rebase: the log begins anew with the state restored.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from orun.engine.journal import RecordView
from orun.errors import Damaged, NotFound
from orun.store import blocks, checkpoints, log, targets
from orun.store.archive import read_archive, read_header
from orun.store.backup import KIND as BACKUP
from orun.store.backup import unpack_backup
from orun.store.blocks import BlockCodec
from orun.store.checkpoints import CheckpointInfo
from orun.store.environment import Environment
from orun.store.exports import KIND as EXPORT
from orun.store.exports import read_export
from orun.store.frames import FrameCodec
from orun.store.records import Kind, iterate_changes
from orun.store.repair import Warn, read_block
from orun.store.restore import Changes, RestorePlan
from orun.store.targets import Target

_BATCH_BYTES = 256 << 10
_KEYS_BATCH = 512


class Planner:
    """Reads what a restore has to change."""

    def __init__(self, environment: Environment, agent: str, warn: Warn) -> None:
        self._environment = environment
        self._agent = agent
        self._warn = warn
        self._frames = FrameCodec()
        self._blocks = BlockCodec()

    def plan(self, target: Target) -> RestorePlan:
        """The plan for a target; NotFound when it is out of reach."""
        with self._environment.read() as txn:
            infos = checkpoints.load(txn, self._agent)
            last_lsn = log.last_lsn(txn, self._agent, self._frames)
            if target.source is None:
                lsn = targets.resolve(txn, self._agent, self._frames, infos, target, last_lsn)
                base = self._base(infos, log.first_lsn(txn, self._agent), lsn)
        if target.source is not None:
            wanted, lsn = read_source(target.source, self._agent)
            return self._compare(wanted, RestorePlan(self._agent, last_lsn, lsn, None, str(target.source), 0, 0))
        base_lsn = base.lsn if base else 0
        plan = RestorePlan(self._agent, last_lsn, lsn, base.id if base else None, None, 0, lsn - base_lsn)
        try:
            newer = self._changes(lsn, last_lsn)
        except Damaged as error:
            self._warn(f"{self._agent}: {error.message}; all blocks are compared instead")
            return self._compare(self._state(base_lsn, lsn), plan)
        older = self._changes(base_lsn, lsn, newer)
        old = self._values(sorted(newer.keys() - older.keys()), base_lsn) | older
        changes = {key: old[key] for key, value in newer.items() if value != old[key]}
        return replace(plan, blocks_changed=len(changes), changes=changes)

    def _base(self, infos: list[CheckpointInfo], first_lsn: int, lsn: int) -> CheckpointInfo | None:
        before = [info for info in infos if info.lsn <= lsn]
        base = before[-1] if before else None
        base_lsn = base.lsn if base else 0
        if (lsn != base_lsn and first_lsn > base_lsn + 1) or (base is None and first_lsn > 1):
            oldest = f"{infos[0].id} (LSN {infos[0].lsn})" if infos else "the end of the log"
            raise NotFound(f"LSN {lsn} of {self._agent} is no longer kept; the oldest is {oldest}")
        return base

    def _compare(self, wanted: Changes, plan: RestorePlan) -> RestorePlan:
        try:
            current = self.state()
        except Damaged as error:
            self._warn(f"{self._agent}: {error.message}; the log begins anew with the state restored")
            return replace(plan, blocks_changed=len(wanted), changes=wanted, rebase=True)
        changes: Changes = {key: None for key in current if key not in wanted}
        changes.update((key, value) for key, value in wanted.items() if current.get(key) != value)
        return replace(plan, blocks_changed=len(changes), changes=changes)

    def state(self) -> Changes:
        """Every block as it is at the end of the log."""
        with self._environment.read() as txn:
            infos = checkpoints.load(txn, self._agent)
            last_lsn = log.last_lsn(txn, self._agent, self._frames)
        return self._state(infos[-1].lsn if infos else 0, last_lsn)

    def _state(self, base_lsn: int, lsn: int) -> Changes:
        with self._environment.read() as txn:
            keys = list(blocks.keys(txn, self._agent, base_lsn)) if base_lsn else []
        result = self._values(keys, base_lsn) | self._changes(base_lsn, lsn)
        return {key: value for key, value in result.items() if value is not None}

    def _values(self, keys: list[bytes], lsn: int) -> Changes:
        result: Changes = {}
        for start in range(0, len(keys), _KEYS_BATCH):
            with self._environment.read() as txn:
                for key in keys[start : start + _KEYS_BATCH]:
                    result[key] = read_block(txn, self._agent, self._blocks, self._frames, key, lsn, self._warn)
        return result

    def _changes(self, after_lsn: int, upto_lsn: int, only: Changes | None = None) -> Changes:
        result: Changes = {}
        for record in self._records(after_lsn, upto_lsn):
            if record.kind in (Kind.EFFECT, Kind.RESTORE):
                for key, value in iterate_changes(record.payload):
                    if only is None or key in only:
                        result[key] = value
        return result

    def _records(self, after_lsn: int, upto_lsn: int) -> Iterator[RecordView]:
        while after_lsn < upto_lsn:
            with self._environment.read() as txn:
                batch = log.read(
                    txn, self._agent, self._frames, after_lsn, upto_lsn=upto_lsn, bytes_max=_BATCH_BYTES, whole=True
                )
            for records in batch:
                yield from records
            after_lsn = batch[-1][-1].lsn


def read_source(path: Path, agent: str) -> tuple[Changes, int]:
    """An agent's blocks in an exported checkpoint or a backup, and the LSN they are from."""
    kind = read_header(path, read_archive(path)).get("kind")
    if kind == EXPORT:
        header, items = read_export(path)
        if header["agent"] != agent:
            raise NotFound(f"{path} is a checkpoint of {header['agent']}, not of {agent}")
        return dict(items), int(header["lsn"])
    if kind != BACKUP:
        raise Damaged(f"{path} is neither an exported checkpoint nor a backup")
    with tempfile.TemporaryDirectory(prefix="orun-restore-") as folder:
        info = unpack_backup(path, Path(folder), 1 << 20)
        if agent not in info.agents:
            raise NotFound(f"{path} has no agent {agent}, only {', '.join(info.agents) or 'none'}")
        environment = Environment.for_reader(Path(folder))
        try:
            planner = Planner(environment, agent, lambda _: None)
            with environment.read() as txn:
                lsn = log.last_lsn(txn, agent, FrameCodec())
            return planner.state(), lsn
        finally:
            environment.close()
