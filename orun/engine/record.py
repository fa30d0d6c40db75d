"""Records: framing, checking and reading them, wherever they stand.

A record in a worker's journal and in the log has the same bytes; zig/record.zig has the layout.
"""

from __future__ import annotations

import functools
import gc
import struct
from typing import Any, NamedTuple

from orun.engine.load import engine
from orun.errors import Damaged

RECORD_HEADER_BYTES = 48

WHY = {
    -5: "the data ends inside the record",
    -6: "its sizes contradict each other",
    -7: "its bytes do not match its checksum",
    -8: "its number does not follow the record before it",
    -9: "it does not continue the record before it",
    -10: "it has a layout that this version does not know",
    -11: "it belongs to another epoch",
    -12: "the header is not that of an orun journal, or it is damaged",
    -13: "it was made by a newer orun",
    -14: "its head and tail contradict each other",
}
"""What the engine's statuses mean."""


class CorruptRecord(Damaged):
    """A record that is not what was written.

    ``offset`` counts from the start of the scanned data, or of the ring's file; ``lsn`` is the number
    that the record should have, 0 when the data does not tell.
    """

    def __init__(self, where: str, offset: int, lsn: int, why: str) -> None:
        number = f" (LSN {lsn})" if lsn else ""
        super().__init__(f"{where}: the record at byte {offset}{number} is damaged: {why}")
        self.offset = offset
        self.lsn = lsn
        self.why = why


class RecordView(NamedTuple):
    """One record, its payload not copied."""

    lsn: int
    kind: int
    flags: int
    ref: int
    time_ms: int
    epoch: int
    payload: memoryview
    crc: int


_ENTRY = struct.Struct("<QQQIIIIBB6x")


@functools.cache
def _new_entries() -> Any:
    """Makes ``Entry[]``, not cleared: the engine fills what is read."""
    return engine().ffi.new_allocator(should_clear_after_alloc=False)


def scan(data: bytes | memoryview, prev_crc: int | None, where: str = "the log") -> list[RecordView]:
    """All records in ``data``, verified; ``prev_crc`` is what the first must continue, None: anything.

    Raises CorruptRecord at the first that is not sound.
    """
    loaded = engine()
    ffi = loaded.ffi
    room = len(data) // RECORD_HEADER_BYTES + 1
    entries = _new_entries()("Entry[]", room)
    summary = ffi.new("Summary *")
    source = ffi.from_buffer(data)
    status = loaded.lib.orun_scan(source, len(data), prev_crc is not None, prev_crc or 0, entries, room, summary)
    if status:
        lsn = summary.last_lsn + 1 if summary.count else 0
        raise CorruptRecord(where, summary.size, lsn, WHY[status])
    listed = _ENTRY.iter_unpack(ffi.buffer(entries, summary.count * _ENTRY.size))
    view = memoryview(data)
    make = tuple.__new__  # a NamedTuple's own constructor takes twice as long
    collecting = gc.isenabled()
    gc.disable()  # or the collector walks the growing list again and again: half the time with 10,000 records
    try:
        return [
            make(RecordView, (lsn, kind, flags, ref, time_ms, epoch, view[start:end], crc))
            for lsn, time_ms, ref, start, end, epoch, crc, kind, flags in listed
        ]
    finally:
        if collecting:
            gc.enable()


def frame(
    kind: int,
    lsn: int,
    payload: bytes,
    *,
    ref: int,
    flags: int,
    epoch: int,
    time_ms: int,
    prev_crc: int,
) -> bytes:
    """One record, for those that the recorder writes itself."""
    loaded = engine()
    size = RECORD_HEADER_BYTES + (len(payload) + 7 & ~7)
    out = loaded.ffi.new("uint8_t[]", size)
    written = loaded.lib.orun_frame(out, size, kind, flags, lsn, ref, epoch, time_ms, prev_crc, payload, len(payload))
    if written != size:
        raise ValueError(f"a record of kind {kind} with {len(payload)} bytes cannot be framed")
    return bytes(loaded.ffi.buffer(out, size))


def crc32c(data: bytes | bytearray | memoryview, seed: int = 0) -> int:
    """CRC-32C; ``seed`` is the checksum of what stands before ``data``."""
    loaded = engine()
    source = data if type(data) is bytes else loaded.ffi.from_buffer(data)
    return loaded.lib.orun_crc32c(source, len(data), seed)  # type: ignore[no-any-return]
