"""Backups: everything that is needed to go on elsewhere, in one archive, written beside a running orun.

The values after the header are ``["db", name]`` and, below it, ``[key, value]`` rows as the database
holds them, each with its own checksum inside; they come from one read transaction, so the archive
is one moment. Left out: log segments that no checkpoint needs, and pages, which LMDB makes anew.
What a worker has journaled but the recorder not yet committed (0.02 s at most) is not in it.
"""

from __future__ import annotations

import shutil
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orun.errors import Damaged, UsageError
from orun.settings import StoreSettings
from orun.store import checkpoints, log
from orun.store.agents import agent_names
from orun.store.archive import ArchiveWriter, read_archive, read_header
from orun.store.environment import Environment, Txn
from orun.store.layout import StateDir, sync_folder
from orun.store.lock import StateLock
from orun.store.verify import verify

KIND = "backup"
_BATCH_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class BackupInfo:
    """What a backup holds."""

    path: str
    bytes: int
    rows: int
    agents: tuple[str, ...]
    time: float


def write_backup(environment: Environment, path: Path) -> BackupInfo:
    """Write everything of one moment; beside a running recorder, or in its process through its environment."""
    with environment.read() as txn:
        return _write(txn, path, time.time())


def _write(txn: Txn, path: Path, now: float) -> BackupInfo:
    agents = agent_names(txn)
    needless = {name for agent in agents for name in _needless(txn, agent)}
    rows = 0
    with ArchiveWriter(path, {"kind": KIND, "time": now, "agents": list(agents)}) as writer:
        for database in txn.names(""):
            if database in needless:
                continue
            writer.add(["db", database])
            for key, value in txn.rows(database):
                writer.add([key, bytes(value)])
                rows += 1
        size = writer.finish()
    return BackupInfo(str(path), size, rows, tuple(agents), now)


def _needless(txn: Txn, agent: str) -> list[str]:
    infos = checkpoints.load(txn, agent)
    if not infos:
        return []
    found = log.segments(txn, agent)
    needed = bisect_right(found, min(info.needed_lsn for info in infos)) - 1
    return [log.segment_name(agent, first) for first in found[: max(needed, 0)]]


def restore_backup(path: Path, state: StateDir, settings: StoreSettings) -> BackupInfo:
    """Fill an empty state directory from a backup, and check every record of it."""
    if (state.journal / "data.mdb").exists():
        raise UsageError(
            f"{state.path} already holds a state", hint="restore a backup into a new directory: --state-dir DIR"
        )
    state.create()
    unfinished = state.path / "journal.partial"
    with StateLock(state):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            info = unpack_backup(path, unfinished, settings.map_bytes)
            unfinished.rename(state.journal)  # onto the empty folder: all of it or nothing
            sync_folder(state.path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return info


def unpack_backup(path: Path, folder: Path, map_bytes: int) -> BackupInfo:
    """A database with what the backup holds, in an empty folder, checked record by record."""
    environment = Environment.for_writer(folder, map_bytes)
    try:
        info = _fill(environment, path)
        summary = verify(environment)
    finally:
        environment.close()
    if summary.problems:
        raise Damaged(f"{path}: {summary.problems[0].describe()}")
    return info


def _fill(environment: Environment, path: Path) -> BackupInfo:
    values = read_archive(path)
    header = read_header(path, values, KIND)
    database = ""
    rows = 0
    for batch in _batches(values):

        def write(txn: Txn, batch: list[Any] = batch, database: str = database) -> str:
            for first, second in batch:
                if first == "db":
                    database = second
                    txn.handle(database, create=True)
                else:
                    txn.append(database, first, second)
            return database

        size = sum(len(second) for _, second in batch)
        database = environment.write(write, expected_bytes=size)
        rows += sum(1 for first, _ in batch if first != "db")
    return BackupInfo(str(path), path.stat().st_size, rows, tuple(header["agents"]), header["time"])


def _batches(values: Iterator[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    size = 0
    for value in values:
        batch.append(value)
        size += len(value[1])
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def verify_backup(path: Path) -> BackupInfo:
    """Read a backup to its end; Damaged with the byte offset."""
    values = read_archive(path)
    header = read_header(path, values, KIND)
    rows = sum(1 for first, _ in values if first != "db")
    return BackupInfo(str(path), path.stat().st_size, rows, tuple(header["agents"]), header["time"])
