"""What a worker reads from the store: its blocks, the log behind the last checkpoint, stored replies.

Opened in the worker, after the fork: LMDB must not be used through an environment that a parent
opened. Every transaction is short, because one that stays open holds back the reuse of pages.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import final

from orun.engine.journal import RecordView
from orun.store import agents, blocks, checkpoints, idempotency, log
from orun.store.blocks import BlockCodec
from orun.store.checkpoints import CheckpointInfo
from orun.store.environment import Environment
from orun.store.frames import FrameCodec
from orun.store.layout import StateDir
from orun.store.repair import Warn, read_block

_BATCH_BYTES = 1 << 20
_KEYS_BATCH = 1024


@final
class AgentReader:
    """The stored part of one agent, read only. ``warn`` is told when something was read past damage.

    ``environment``: where this process has the database open already; LMDB forbids a second time.
    """

    def __init__(
        self, state: StateDir, agent: str, warn: Warn | None = None, *, environment: Environment | None = None
    ) -> None:
        agents.check_name(agent)
        self.agent = agent
        self._environment = environment or Environment.for_reader(state.journal)
        self._warn = warn or logging.getLogger("orun.store").warning
        self._blocks = BlockCodec()
        self._frames = FrameCodec()

    def _newest(self) -> CheckpointInfo | None:
        with self._environment.read() as txn:
            infos = checkpoints.load(txn, self.agent)
            damaged = checkpoints.damaged(txn, self.agent)
        if damaged and damaged[-1] > (infos[-1].lsn if infos else 0):
            self._warn(
                f"{self.agent}: the marker of the checkpoint at LSN {damaged[-1]} is damaged; using the one before"
            )
        return infos[-1] if infos else None

    def base(self) -> int:
        """LSN of the newest checkpoint, 0 when there is none."""
        newest = self._newest()
        return newest.lsn if newest else 0

    def pending(self) -> list[int]:
        """LSNs of the records, at or before ``base()``, of requests that were not answered by then."""
        newest = self._newest()
        return list(newest.open) if newest else []

    def last_lsn(self) -> int:
        """Where the stored log ends."""
        with self._environment.read() as txn:
            return log.find_end(txn, self.agent, self._frames).last_lsn

    def block(self, key: bytes, lsn: int) -> bytes | None:
        """The value of a block at a checkpoint, None when it has none."""
        with self._environment.read() as txn:
            return read_block(txn, self.agent, self._blocks, self._frames, key, lsn, self._warn)

    def keys(self, lsn: int) -> Iterator[bytes]:
        """The keys that have a value at a checkpoint, in order."""
        after: bytes | None = None
        while True:
            with self._environment.read() as txn:
                found: list[bytes] = []
                for key in blocks.keys(txn, self.agent, lsn, after):
                    found.append(key)
                    if len(found) == _KEYS_BATCH:
                        break
            yield from found
            if len(found) < _KEYS_BATCH:
                return
            after = found[-1]

    def count(self, lsn: int) -> int:
        """How many blocks have a value at a checkpoint."""
        with self._environment.read() as txn:
            for info in checkpoints.load(txn, self.agent):
                if info.lsn == lsn:
                    return info.total
        return sum(1 for _ in self.keys(lsn))

    def records(self, after_lsn: int, upto_lsn: int | None = None) -> Iterator[list[RecordView]]:
        """The records after an LSN up to another, frame by frame; Damaged with the place when one is not sound."""
        while True:
            with self._environment.read() as txn:
                end = log.last_lsn(txn, self.agent, self._frames)
                if upto_lsn is not None:
                    end = min(end, upto_lsn)
                batch = log.read(
                    txn, self.agent, self._frames, after_lsn, upto_lsn=end, bytes_max=_BATCH_BYTES, whole=True
                )
            if not batch:
                return
            yield from batch
            after_lsn = batch[-1][-1].lsn

    def reply_for(self, key: bytes) -> tuple[bool, bytes] | None:
        """The reply that was given to an idempotency key, unless it has expired."""
        with self._environment.read() as txn:
            stored = idempotency.get(txn, self.agent, key, int(time.time() * 1000))
        return None if stored is None else (stored.ok, stored.reply)

    def close(self) -> None:
        """Close the database."""
        self._environment.close()
