"""Exports: one checkpoint as a file that needs nothing else, beside the database for redundancy.

Values after the header: ``[key, value]`` for each block, in key order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from orun.errors import OrunError
from orun.store import blocks, checkpoints
from orun.store.archive import ArchiveWriter, read_archive, read_header
from orun.store.blocks import BlockCodec
from orun.store.checkpoints import CheckpointInfo
from orun.store.environment import Txn
from orun.store.jobs import SLICE_S, Job
from orun.store.layout import StateDir

KIND = "checkpoint"
SUFFIX = ".orun"


def export_path(state: StateDir, checkpoint_id: str) -> Path:
    """Where a checkpoint is exported to."""
    return state.exports / f"{checkpoint_id}{SUFFIX}"


@final
class ExportJob(Job):
    """Writes one checkpoint to its file. The final sync, which may take long, is another thread's."""

    name = "export"

    def __init__(
        self,
        state: StateDir,
        info: CheckpointInfo,
        *,
        executor: Executor,
        wake: Callable[[], None],
        kept: int,
        monotonic: Callable[[], float],
    ) -> None:
        super().__init__(info.agent)
        self.info = info
        self.path = export_path(state, info.id)
        self._state = state
        self._kept = kept
        self._executor = executor
        self._wake = wake
        self._monotonic = monotonic
        self._codec = BlockCodec()
        header = {"kind": KIND, "agent": info.agent, "id": info.id, "lsn": info.lsn, "time": info.time}
        self._writer = ArchiveWriter(self.path, {**header, "version": info.version, "total": info.total})
        self._after: bytes | None = None
        self._finishing: Future[int] | None = None

    def prepare(self, txn: Txn) -> None:
        """Write some blocks; after the last hand the file over to be synced."""
        if self._finishing is not None:
            self._check_finished(self._finishing)
            return
        if all(info.lsn != self.info.lsn for info in checkpoints.load(txn, self.agent)):
            self.fail(OrunError(f"checkpoint {self.info.id} was retired before its export was written"))
            return
        deadline = self._monotonic() + SLICE_S
        for key, stored_key, value in blocks.versions(txn, self.agent, self.info.lsn, self._after):
            data = self._codec.decode(stored_key, value)
            if data is not None:
                self._writer.add([key, data])
            self._after = key
            if self._monotonic() > deadline:
                return
        self._finishing = self._executor.submit(self._writer.finish)
        self._finishing.add_done_callback(lambda _: self._wake())

    @property
    def waits(self) -> bool:
        """Whether the other thread is still at it."""
        return self._finishing is not None and not self._finishing.done()

    def _check_finished(self, finishing: Future[int]) -> None:
        if not finishing.done():
            return
        error = finishing.exception()
        if isinstance(error, OrunError):
            self.fail(error)
        elif error is not None:
            raise error
        else:
            self.ready = True

    def write(self, txn: Txn) -> None:
        """Note in the marker that the file is there."""
        current = {info.lsn: info for info in checkpoints.load(txn, self.agent)}
        if self.info.lsn in current:
            checkpoints.put(txn, replace(current[self.info.lsn], exported=True))

    def written(self) -> None:
        """Remove exports beyond those kept."""
        self.ready = False
        self.finished = True
        found = sorted(
            (path for path in self._state.exports.glob(f"{self.agent}-*{SUFFIX}") if _lsn_of(self.agent, path)),
            key=lambda path: _lsn_of(self.agent, path),
        )
        for path in found[: -max(self._kept, 1)]:
            path.unlink(missing_ok=True)

    def fail(self, error: OrunError) -> None:
        """Give up and leave no half file behind."""
        super().fail(error)
        self._writer.abort()


def _lsn_of(agent: str, path: Path) -> int:
    number = path.name.removeprefix(f"{agent}-").removesuffix(SUFFIX)
    return int(number) if number.isdigit() else 0


def read_export(path: Path) -> tuple[dict[str, Any], Iterator[tuple[bytes, bytes]]]:
    """Header and blocks of an exported checkpoint."""
    values = read_archive(path)
    header = read_header(path, values, KIND)
    return header, ((key, value) for key, value in values)


def verify_export(path: Path) -> int:
    """Read an export to its end; returns the number of blocks, Damaged with the byte offset."""
    header, items = read_export(path)
    count = sum(1 for _ in items)
    assert count == header["total"], (count, header["total"])
    return count
