"""Going back to an earlier state, by going forward: what a restore does is logged as RESTORE records.

They hold the earlier value of every block changed since, so a restore can itself be undone. The
values come from the checkpoint at or before the target and the log behind it. The agent must not
have a worker meanwhile.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from orun.engine.journal import Drained, RecordView, frame
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
from orun.store.log import LogEnd
from orun.store.records import FLAG_MORE, Kind, encode_effect, iterate_changes
from orun.store.recovery import join
from orun.store.repair import Warn, read_block
from orun.store.targets import Target

_BATCH_BYTES = 256 << 10
_RECORD_BYTES = 256 << 10
"""Changes gathered in one RESTORE record; one block may exceed it."""
_FRAME_BYTES = 4 << 20
_KEYS_BATCH = 512

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
    applied: bool = False
    lsn: int = 0
    """Where the log ends after it."""
    changes: Changes = field(default_factory=dict, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        result = asdict(replace(self, changes={}))
        del result["changes"]
        return result


class Planner:
    """Reads what a restore has to change, in short transactions."""

    def __init__(self, environment: Environment, agent: str, warn: Warn) -> None:
        self._environment = environment
        self._agent = agent
        self._warn = warn
        self._frames = FrameCodec()
        self._blocks = BlockCodec()

    def plan(self, target: Target) -> RestorePlan:
        """The plan for a target; NotFound when it is out of reach."""
        if target.source is not None:
            return self._plan_file(target.source)
        with self._environment.read() as txn:
            infos = checkpoints.load(txn, self._agent)
            last_lsn = log.find_end(txn, self._agent, self._frames).last_lsn
            lsn = targets.resolve(txn, self._agent, self._frames, infos, target, last_lsn)
            base = self._base(infos, log.first_lsn(txn, self._agent), lsn)
        base_lsn = base.lsn if base else 0
        newer, _ = self._changes(lsn, last_lsn)
        older, replayed = self._changes(base_lsn, lsn, newer)
        changes: Changes = {}
        for batch in _batches(sorted(newer)):
            with self._environment.read() as txn:
                for key in batch:
                    value = (
                        older[key]
                        if key in older
                        else read_block(txn, self._agent, self._blocks, self._frames, key, base_lsn, self._warn)
                    )
                    if value != newer[key]:
                        changes[key] = value
        return RestorePlan(
            self._agent, last_lsn, lsn, base.id if base else None, None, len(changes), replayed, changes=changes
        )

    def _base(self, infos: list[CheckpointInfo], first_lsn: int, lsn: int) -> CheckpointInfo | None:
        before = [info for info in infos if info.lsn <= lsn]
        base = before[-1] if before else None
        if first_lsn > (base.lsn if base else 0) + 1:
            oldest = f"{infos[0].id} (LSN {infos[0].lsn})" if infos else "the end of the log"
            raise NotFound(f"LSN {lsn} of {self._agent} is no longer kept; the oldest is {oldest}")
        return base

    def state(self) -> Changes:
        """Every block as it is at the end of the log."""
        with self._environment.read() as txn:
            infos = checkpoints.load(txn, self._agent)
            last_lsn = log.find_end(txn, self._agent, self._frames).last_lsn
        base_lsn = infos[-1].lsn if infos else 0
        result: Changes = {}
        if base_lsn:
            with self._environment.read() as txn:
                keys = list(blocks.keys(txn, self._agent, base_lsn))
            for batch in _batches(keys):
                with self._environment.read() as txn:
                    for key in batch:
                        result[key] = read_block(
                            txn, self._agent, self._blocks, self._frames, key, base_lsn, self._warn
                        )
        newer, _ = self._changes(base_lsn, last_lsn)
        result.update(newer)
        return {key: value for key, value in result.items() if value is not None}

    def _changes(self, after_lsn: int, upto_lsn: int, only: Changes | None = None) -> tuple[Changes, int]:
        result: Changes = {}
        count = 0
        for record in self._records(after_lsn, upto_lsn):
            count += 1
            if record.kind in (Kind.EFFECT, Kind.RESTORE):
                for key, value in iterate_changes(record.payload):
                    if only is None or key in only:
                        result[key] = value
        return result, count

    def _records(self, after_lsn: int, upto_lsn: int) -> Iterator[RecordView]:
        while after_lsn < upto_lsn:
            with self._environment.read() as txn:
                batch = log.read(txn, self._agent, self._frames, after_lsn, upto_lsn=upto_lsn, bytes_max=_BATCH_BYTES)
            if not batch:
                raise Damaged(f"log of {self._agent}: LSN {after_lsn + 1} is missing")
            for records in batch:
                yield from records
            after_lsn = batch[-1][-1].lsn

    def _plan_file(self, path: Path) -> RestorePlan:
        wanted, lsn = read_source(path, self._agent)
        current = self.state()
        with self._environment.read() as txn:
            last_lsn = log.find_end(txn, self._agent, self._frames).last_lsn
        changes: Changes = {key: None for key in current if key not in wanted}
        changes.update((key, value) for key, value in wanted.items() if current.get(key) != value)
        return RestorePlan(self._agent, last_lsn, lsn, None, str(path), len(changes), 0, changes=changes)


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
                lsn = log.find_end(txn, agent, FrameCodec()).last_lsn
            return planner.state(), lsn
        finally:
            environment.close()


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
    from orun.engine.journal import scan

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


def _batches(keys: list[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(keys), _KEYS_BATCH):
        yield keys[start : start + _KEYS_BATCH]
