"""Which records of a ring that was left behind continue the log.

After the death of a process the ring has everything that was appended. After a power cut it has
what reached the disk, in any order: old pages beside new ones, torn ones, a head or tail that lags.
So nothing in it is believed but records that are sound, follow each other without a gap, and
continue the checksum chain where the committed log ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from orun.engine.journal import (
    RECORD_HEADER_BYTES,
    CorruptRecord,
    Drained,
    JournalReader,
    RecordView,
    scan,
)
from orun.errors import Damaged


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a ring adds to the log, and what was wrong behind it (empty: nothing)."""

    batches: tuple[Drained, ...]
    problem: str = ""

    @property
    def count(self) -> int:
        """Records added."""
        return sum(batch.count for batch in self.batches)


def continuation(reader: JournalReader, last_lsn: int, last_crc: int) -> Continuation:
    """Drain a ring to its end or to the first record that does not fit."""
    batches: list[Drained] = []
    problem = ""
    while True:
        try:
            drained = reader.drain()
            if drained is None:
                break
            rest = behind(drained, last_lsn, last_crc)
        except CorruptRecord as error:
            problem = error.message
            break
        except Damaged as error:
            problem = error.message
            break
        if rest is not None:
            batches.append(rest)
            last_lsn, last_crc = rest.last_lsn, rest.last_crc
    return Continuation(tuple(batches), problem)


def behind(drained: Drained, last_lsn: int, last_crc: int) -> Drained | None:
    """The part of verified records behind ``last_lsn``, None when there is none; Damaged when it does not fit."""
    if drained.last_lsn <= last_lsn:
        return None
    if drained.first_lsn > last_lsn + 1:
        raise Damaged(f"LSN {last_lsn + 1} is missing, the journal goes on with {drained.first_lsn}")
    if drained.first_lsn == last_lsn + 1:
        scan(drained.data, last_crc)  # CorruptRecord when it does not continue the chain
        return drained
    views = scan(drained.data, None)
    known = last_lsn - drained.first_lsn + 1
    if views[known - 1].crc != last_crc:
        raise Damaged(f"LSN {last_lsn} in the journal is not the one in the log")
    return join(drained.data[sum(_size(view) for view in views[:known]) :], views[known:])


def join(data: bytes, views: list[RecordView]) -> Drained:
    """What the engine would say about these records."""
    flags = kinds = 0
    for view in views:
        flags |= view.flags
        kinds |= 1 << view.kind
    first, last = views[0], views[-1]
    count = last.lsn - first.lsn + 1
    assert count == len(views)
    return Drained(data, first.lsn, last.lsn, count, flags, kinds, first.time_ms, last.time_ms, last.crc)


def _size(view: RecordView) -> int:
    return RECORD_HEADER_BYTES + (len(view.payload) + 7 & ~7)
