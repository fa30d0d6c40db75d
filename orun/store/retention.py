"""Retention: old checkpoints are retired, then what only they needed is collected, in slices.

Retiring removes the markers in one commit; from then on nobody can ask for these checkpoints. Which
block versions became unreachable is in the dirty lists up to the oldest checkpoint left, and a part
of a list is removed with the versions that it named: a crash in between resumes there. Last, log
segments that no checkpoint needs are dropped, as far as they exceed what is kept for reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from orun.settings import StoreSettings
from orun.store import blocks, checkpoints, log
from orun.store.checkpoints import CheckpointInfo
from orun.store.environment import Txn
from orun.store.frames import FrameCodec
from orun.store.jobs import Job


@final
class RetentionJob(Job):
    """Bring an agent's checkpoints and log down to what the settings keep."""

    name = "retention"

    def __init__(self, agent: str, infos: Sequence[CheckpointInfo], settings: StoreSettings) -> None:
        super().__init__(agent)
        kept = max(settings.checkpoints_kept, 1)
        self.retired = list(infos[:-kept])
        self.kept = list(infos[-kept:])
        self.versions_removed = 0
        self.segments_removed = 0
        self.log_bytes_removed = 0
        self.problems: list[str] = []
        """What could not be collected because of damage."""
        self._settings = settings
        self._codec = FrameCodec()
        self._markers_left = bool(self.retired)
        self._chunk: tuple[bytes, list[bytes] | None] | None = None
        self._segments: list[tuple[int, int]] = []
        self._removed = 0

    def prepare(self, txn: Txn) -> None:
        """Find what goes next; finished when there is nothing."""
        if not self.kept:
            self.finished = True
            return
        oldest = self.kept[0]
        if self._markers_left:
            self.ready = True
            return
        self._chunk = checkpoints.dirty_chunk(txn, self.agent, oldest.lsn)
        if self._chunk is None:
            needed = min(info.needed_lsn for info in self.kept)
            kept_bytes = self._settings.log_bytes_kept
            # One segment for each commit: freeing a thousand pages is work, too.
            self._segments = log.droppable(txn, self.agent, self._codec, needed, kept_bytes)[:1]
        self.ready = self._chunk is not None or bool(self._segments)
        self.finished = not self.ready

    def write(self, txn: Txn) -> None:
        """Remove what was found."""
        if self._markers_left:
            for lsn in checkpoints.all_lsns(txn, self.agent):
                if lsn < self.kept[0].lsn:
                    checkpoints.drop(txn, self.agent, lsn)
            return
        self._removed = 0
        if self._chunk is not None:
            row_key, keys = self._chunk
            for key in keys or ():
                self._removed += blocks.collect(txn, self.agent, key, self.kept[0].lsn)
            checkpoints.drop_dirty(txn, self.agent, row_key)
        for segment, _ in self._segments:
            log.drop(txn, self.agent, segment)

    def written(self) -> None:
        """Count, and look for more."""
        self.ready = False
        if self._markers_left:
            self._markers_left = False
            return
        if self._chunk is not None and self._chunk[1] is None:
            self.problems.append("a list of changed blocks is damaged: their old versions stay")
        self.versions_removed += self._removed
        self.segments_removed += len(self._segments)
        self.log_bytes_removed += sum(size for _, size in self._segments)
        self._chunk, self._segments = None, []
