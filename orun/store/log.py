"""The log of an agent: frames in segments, one named database each.

A segment is named after its first LSN, so the list of names is the index: the segment that holds
an LSN is the last one that begins at or before it. Retention drops whole segments, which takes a
fraction of a millisecond where deleting the records one by one takes tens.

Functions take a transaction, and return bytes of their own: nothing read here points into the
map after the transaction.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orun.engine.journal import CorruptRecord, Drained, RecordView
from orun.errors import Damaged
from orun.store.environment import Txn
from orun.store.frames import Frame, FrameCodec
from orun.store.rows import LSN

_PREFIX = "seg/"
LSN_MAX = (1 << 63) - 1
FRAME_RECORDS_MAX = 1 << 26
"""More records than fit into a frame: half of the largest ring, in records of the smallest size."""


def segment_name(agent: str, first_lsn: int) -> str:
    """The named database of the segment that begins at ``first_lsn``."""
    return f"{_PREFIX}{agent}/{first_lsn:020d}"


def segments(txn: Txn, agent: str) -> list[int]:
    """First LSNs of the agent's segments, ascending."""
    return [int(name.rpartition("/")[2]) for name in txn.names(f"{_PREFIX}{agent}/")]


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Where the next frame of an agent's log goes."""

    last_lsn: int = 0
    last_crc: int = 0
    position: int = 0
    segment: int = 0
    """First LSN of the open segment; 0: none is open."""
    segment_position: int = 0
    last_ms: int = 0


def find_end(txn: Txn, agent: str, codec: FrameCodec) -> LogEnd:
    """Where the stored log ends."""
    found = segments(txn, agent)
    if not found:
        return LogEnd()
    segment = found[-1]
    cursor = txn.cursor(segment_name(agent, segment))
    if cursor is None or not cursor.last():
        raise Damaged(f"log of {agent}: segment {segment} is empty")
    last = _checked(codec, agent, segment, cursor)
    cursor.first()
    first = _checked(codec, agent, segment, cursor)
    return LogEnd(last.last_lsn, last.last_crc, last.end, segment, first.position, last.last_ms)


def last_lsn(txn: Txn, agent: str, codec: FrameCodec) -> int:
    """Where the stored log ends; when its last frame is damaged, an LSN that lies behind all that can be in it."""
    found = segments(txn, agent)
    cursor = txn.cursor(segment_name(agent, found[-1])) if found else None
    if cursor is None or not cursor.last():
        return 0
    try:
        return _checked(codec, agent, found[-1], cursor).last_lsn
    except Damaged:
        return int(LSN.unpack(bytes(cursor.key()))[0]) + FRAME_RECORDS_MAX


def append(txn: Txn, agent: str, end: LogEnd, drained: Drained, codec: FrameCodec, *, segment_bytes: int) -> LogEnd:
    """Write one frame at ``end``; returns the new end. The caller keeps it only once committed."""
    assert drained.first_lsn == end.last_lsn + 1, (drained.first_lsn, end.last_lsn)
    segment, segment_position = end.segment, end.segment_position
    if segment == 0 or end.position - segment_position >= segment_bytes:
        segment, segment_position = drained.first_lsn, end.position
    value = codec.encode(drained, end.last_crc, end.position)
    txn.append(segment_name(agent, segment), LSN.pack(drained.first_lsn), value)
    position = end.position + len(value)
    return LogEnd(drained.last_lsn, drained.last_crc, position, segment, segment_position, drained.last_ms)


def frames(
    txn: Txn, agent: str, codec: FrameCodec, after_lsn: int = 0, upto_lsn: int = LSN_MAX
) -> Iterator[tuple[Frame, memoryview]]:
    """The frames that hold ``after_lsn + 1`` to ``upto_lsn``; the views are valid inside the transaction.

    A frame behind ``upto_lsn`` is not looked at: it may be damaged.
    """
    found = segments(txn, agent)
    start = max(bisect_right(found, after_lsn + 1) - 1, 0)
    expected: int | None = None
    for segment in found[start:]:
        cursor = txn.cursor(segment_name(agent, segment))
        valid = cursor is not None and _seek(cursor, after_lsn + 1)
        while cursor is not None and valid:
            if LSN.unpack(bytes(cursor.key()))[0] > upto_lsn:
                return
            frame = _checked(codec, agent, segment, cursor)
            if expected is not None and frame.first_lsn != expected:
                raise Damaged(f"log of {agent}: LSN {expected} is missing, the next is {frame.first_lsn}")
            expected = frame.last_lsn + 1
            if frame.last_lsn > after_lsn:
                yield frame, cursor.value()
            valid = cursor.next()


def frames_backward(txn: Txn, agent: str, codec: FrameCodec, from_lsn: int) -> Iterator[tuple[Frame, memoryview]]:
    """The frames from the one that holds ``from_lsn`` down to the oldest."""
    found = segments(txn, agent)
    for segment in reversed(found[: bisect_right(found, from_lsn)]):
        cursor = txn.cursor(segment_name(agent, segment))
        valid = cursor is not None and _seek(cursor, from_lsn)
        while cursor is not None and valid:
            frame = _checked(codec, agent, segment, cursor)
            if frame.first_lsn <= from_lsn:
                yield frame, cursor.value()
            valid = cursor.prev()


def _seek(cursor: Any, lsn: int) -> bool:
    """To the last frame that begins at or before ``lsn``, else to the first."""
    place = cursor.set_range(LSN.pack(lsn))
    if not place:
        return bool(cursor.last())
    if bytes(cursor.key()) == LSN.pack(lsn):
        return True
    return bool(cursor.prev() or cursor.first())


def _checked(codec: FrameCodec, agent: str, segment: int, cursor: Any) -> Frame:
    key = bytes(cursor.key())
    lsn = LSN.unpack(key)[0]
    try:
        frame = codec.header(cursor.value())
    except Damaged as error:
        raise Damaged(f"log of {agent}, segment {segment}, LSN {lsn}: {error.message}", hint=_HINT) from error
    if frame.first_lsn != lsn:
        raise Damaged(f"log of {agent}, segment {segment}: LSN {frame.first_lsn} is filed as {lsn}", hint=_HINT)
    return frame


_HINT = "`orun wal verify` shows all damage; `orun restore` goes back to a state before it"


def records(codec: FrameCodec, agent: str, frame: Frame, value: memoryview) -> list[RecordView]:
    """The records of a frame, or Damaged with the LSN."""
    try:
        return codec.records(frame, value)
    except CorruptRecord as error:
        raise Damaged(f"log of {agent}, LSN {error.lsn}: {error.why}", hint=_HINT) from error


def read(
    txn: Txn,
    agent: str,
    codec: FrameCodec,
    after_lsn: int,
    *,
    upto_lsn: int,
    bytes_max: int,
    whole: bool = False,
) -> list[list[RecordView]]:
    """Records after one LSN up to another, frame by frame, until ``bytes_max`` is reached; empty at the end.

    ``whole``: the record behind ``after_lsn`` must be there if any is.
    """
    result: list[list[RecordView]] = []
    size = 0
    for frame, value in frames(txn, agent, codec, after_lsn, upto_lsn):
        size += frame.raw_size
        found = records(codec, agent, frame, value)
        if frame.first_lsn <= after_lsn or frame.last_lsn > upto_lsn:
            found = [record for record in found if after_lsn < record.lsn <= upto_lsn]
        if not found:
            continue  # the end that is asked for lies inside this frame, and everything up to it was read before
        result.append(found)
        if size >= bytes_max:
            break
    if whole and after_lsn < upto_lsn and (not result or result[0][0].lsn != after_lsn + 1):
        raise Damaged(f"log of {agent}: LSN {after_lsn + 1} is missing", hint=_HINT)
    return result


def record_at(txn: Txn, agent: str, codec: FrameCodec, lsn: int) -> RecordView | None:
    """One record, or None when the log no longer (or not yet) has it."""
    for frame, value in frames(txn, agent, codec, lsn - 1, lsn):
        return records(codec, agent, frame, value)[lsn - frame.first_lsn]
    return None


def first_lsn(txn: Txn, agent: str) -> int:
    """The oldest LSN the log has, 0 when it is empty."""
    found = segments(txn, agent)
    return found[0] if found else 0


def droppable(txn: Txn, agent: str, codec: FrameCodec, needed_lsn: int, kept_bytes: int) -> list[tuple[int, int]]:
    """Segments wholly before ``needed_lsn`` and beyond ``kept_bytes`` of such, with their sizes."""
    found = segments(txn, agent)
    starts: list[int] = []
    for segment in found:
        cursor = txn.cursor(segment_name(agent, segment))
        if cursor is None or not cursor.first():
            raise Damaged(f"log of {agent}: segment {segment} is empty")
        starts.append(_checked(codec, agent, segment, cursor).position)
    # A segment ends where the next one begins; the last one is open and stays.
    spare = bisect_right(found, needed_lsn) - 1
    if spare <= 0:
        return []
    limit = starts[spare] - kept_bytes
    return [(found[i], starts[i + 1] - starts[i]) for i in range(spare) if starts[i + 1] <= limit]


def drop(txn: Txn, agent: str, segment: int) -> None:
    """Remove a segment."""
    txn.drop(segment_name(agent, segment))
