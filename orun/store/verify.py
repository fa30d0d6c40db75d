"""Checking everything that is stored, and saying where what is wrong.

Every byte that we store stands under a checksum: frames under theirs and each record in them under
its own, block versions, markers and other rows under theirs together with their keys. The chain of
LSNs, positions and checksums shows what is missing or in the wrong place.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from orun.engine.journal import CorruptRecord
from orun.errors import Damaged
from orun.store import agents, blocks, checkpoints, deadletters, idempotency, log
from orun.store.blocks import BlockCodec
from orun.store.checkpoints import CheckpointInfo
from orun.store.environment import Environment, Txn
from orun.store.frames import Frame, FrameCodec
from orun.store.records import Kind, iterate_changes
from orun.store.rows import LSN


@dataclass(frozen=True, slots=True)
class Problem:
    """One place that is damaged."""

    agent: str
    where: str
    """``log``, ``block``, ``checkpoint``, ``reply``, ``dead letter`` or ``entry``."""
    lsn: int
    what: str
    segment: int = 0
    """First LSN of the log segment."""
    offset: int = 0
    """Byte offset in the log segment."""

    def describe(self) -> str:
        """One line for people."""
        place = f" (segment {self.segment}, byte {self.offset})" if self.where == "log" else ""
        return f"{self.agent}: {self.where} at LSN {self.lsn}{place}: {self.what}"


@dataclass(slots=True)
class Summary:
    """What was checked."""

    agents: int = 0
    segments: int = 0
    frames: int = 0
    records: int = 0
    log_bytes: int = 0
    blocks: int = 0
    checkpoints: int = 0
    problems: list[Problem] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return asdict(self)


def verify(environment: Environment, agent: str | None = None) -> Summary:
    """Check everything, of one agent or of all."""
    summary = Summary()
    with environment.read() as txn:
        for name in agents.agent_names(txn):
            if agent is None or name == agent:
                summary.agents += 1
                summary.problems += verify_agent(txn, name, summary)
    return summary


def verify_agent(txn: Txn, agent: str, summary: Summary) -> Iterator[Problem]:
    """The problems of one agent; counts what was checked in ``summary``."""
    try:
        agents.load(txn, agent)
    except Damaged as error:
        yield Problem(agent, "entry", 0, error.message)
    yield from verify_log(txn, agent, summary)
    yield from verify_blocks(txn, agent, summary)
    for lsn, what in checkpoints.verify_rows(txn, agent):
        yield Problem(agent, "checkpoint", lsn, what)
    for lsn, what in idempotency.verify(txn, agent):
        yield Problem(agent, "reply", lsn, what)
    for lsn, what in deadletters.verify(txn, agent):
        yield Problem(agent, "dead letter", lsn, what)


def verify_log(txn: Txn, agent: str, summary: Summary) -> Iterator[Problem]:
    """Walk over every record of the log."""
    codec = FrameCodec()
    previous: Frame | None = None
    for segment in log.segments(txn, agent):
        summary.segments += 1
        start: int | None = None
        for key, value in txn.rows(log.segment_name(agent, segment)):
            lsn = LSN.unpack(key)[0]
            summary.frames += 1
            summary.log_bytes += len(value)
            offset = previous.end - start if previous is not None and start is not None else 0
            try:
                frame = codec.header(value)
                start = frame.position if start is None else start
                offset = frame.position - start
                _check_link(previous, frame, lsn)
                _check_records(codec, frame, value)
                summary.records += frame.count
                previous = frame
            except CorruptRecord as error:
                yield Problem(agent, "log", error.lsn or lsn, error.why, segment, offset + error.offset)
                previous = None
            except Damaged as error:
                yield Problem(agent, "log", lsn, error.message, segment, offset)
                previous = None


def _check_link(previous: Frame | None, frame: Frame, key_lsn: int) -> None:
    if frame.first_lsn != key_lsn:
        raise Damaged(f"the frame of LSN {frame.first_lsn} is filed as {key_lsn}")
    if previous is None:
        return
    if frame.first_lsn != previous.last_lsn + 1:
        raise Damaged(f"LSN {previous.last_lsn + 1} to {frame.first_lsn - 1} are missing before it")
    if frame.prev_crc != previous.last_crc or frame.position != previous.end:
        raise Damaged("it does not continue the frame before it")


def _check_records(codec: FrameCodec, frame: Frame, value: memoryview) -> None:
    views = codec.records(frame, value)
    if len(views) != frame.count or views[0].lsn != frame.first_lsn or views[-1].lsn != frame.last_lsn:
        raise Damaged("its header and its records contradict each other")
    for view in views:
        if view.kind in (Kind.EFFECT, Kind.DEAD, Kind.RESTORE):
            try:
                for _ in iterate_changes(view.payload):
                    pass
            except (ValueError, struct.error) as error:
                raise Damaged(f"the payload of LSN {view.lsn} cannot be read: {error}") from error


def verify_blocks(txn: Txn, agent: str, summary: Summary) -> Iterator[Problem]:
    """Check every version of every block."""
    codec = BlockCodec()
    for stored_key, value in txn.rows(blocks.database(agent)):
        summary.blocks += 1
        try:
            key, lsn = blocks.split_key(stored_key)
        except Damaged as error:
            yield Problem(agent, "block", 0, error.message)
            continue
        try:
            codec.decode(stored_key, value)
        except Damaged as error:
            yield Problem(agent, "block", lsn, f"{blocks.show(key)}: {error.message}")
    summary.checkpoints += len(checkpoints.all_lsns(txn, agent))


def verify_checkpoint(txn: Txn, info: CheckpointInfo) -> list[Problem]:
    """Check every block that can be reached from a checkpoint, and that none is missing."""
    codec = BlockCodec()
    problems: list[Problem] = []
    total = 0
    for key, stored_key, value in blocks.versions(txn, info.agent, info.lsn):
        try:
            total += codec.decode(stored_key, value) is not None
        except Damaged as error:
            total += not blocks.is_deletion(value)
            lsn = blocks.split_key(stored_key)[1]
            problems.append(Problem(info.agent, "block", lsn, f"{blocks.show(key)}: {error.message}"))
    if total != info.total and not problems:
        what = f"{info.id} has {total} blocks instead of {info.total}"
        problems.append(Problem(info.agent, "checkpoint", info.lsn, what))
    return problems
