from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orun.engine.journal import Drained, frame, scan
from orun.errors import Damaged
from orun.store.frames import HEADER_SIZE, FrameCodec
from orun.store.records import Kind
from orun.store.recovery import join

payloads = st.lists(
    st.binary(max_size=200) | st.integers(0, 900).map(lambda size: b"x" * size), min_size=1, max_size=20
)


def drained_of(payloads: list[bytes], first_lsn: int = 1, prev_crc: int = 0, epoch: int = 1) -> Drained:
    """Records as a ring would give them."""
    data = b""
    crc = prev_crc
    for number, payload in enumerate(payloads):
        record = frame(
            Kind.REQUEST,
            first_lsn + number,
            payload,
            ref=0,
            flags=0,
            epoch=epoch,
            time_ms=1000 + number,
            prev_crc=crc,
        )
        crc = int.from_bytes(record[4:8], "little")
        data += record
    return join(data, scan(data, prev_crc))


@given(payloads, st.integers(1, 2**60), st.integers(0, 2**32 - 1), st.integers(0, 2**50))
def test_frame_gives_back_what_went_in(payloads: list[bytes], lsn: int, prev_crc: int, position: int) -> None:
    codec = FrameCodec()
    drained = drained_of(payloads, lsn, prev_crc)
    value = codec.encode(drained, prev_crc, position)
    header = codec.header(value)
    assert (header.first_lsn, header.last_lsn, header.count) == (lsn, lsn + len(payloads) - 1, len(payloads))
    assert (header.prev_crc, header.last_crc, header.position) == (prev_crc, drained.last_crc, position)
    assert header.end == position + len(value)
    assert header.has(Kind.REQUEST)
    assert not header.has(Kind.EFFECT, Kind.DEAD)
    assert [bytes(record.payload) for record in codec.records(header, value)] == payloads


@pytest.mark.parametrize("size", [10, 3000])
def test_every_flipped_byte_of_a_frame_is_seen(size: int) -> None:
    codec = FrameCodec()
    value = codec.encode(drained_of([b"a" * size, b"b"]), 0, 0)
    assert codec.header(value).codec == (size > 1000)
    for offset in range(len(value)):
        damaged = bytearray(value)
        damaged[offset] ^= 0x40
        with pytest.raises(Damaged):
            codec.header(bytes(damaged))


def test_every_cut_of_a_frame_is_seen() -> None:
    codec = FrameCodec()
    value = codec.encode(drained_of([b"a" * 100]), 0, 0)
    for size in range(len(value)):
        with pytest.raises(Damaged):
            codec.header(value[:size])


def test_layout_of_a_frame_is_the_documented_one() -> None:
    """The golden frame: a change of the layout needs a new magic."""
    value = FrameCodec().encode(drained_of([b"golden"], first_lsn=5, prev_crc=9), 9, 77)
    assert value[:4] == b"OFR1"
    assert value.hex() == (
        "4f465231"
        + value[4:8].hex()
        + "0500000000000000" * 2
        + "e803000000000000" * 2
        + "4d00000000000000"
        + "01000000"
        + "38000000"
        + "38000000"
        + "09000000"
        + value[HEADER_SIZE + 4 : HEADER_SIZE + 8].hex()
        + "0200"
        + "00"
        + "00"
        + value[HEADER_SIZE:].hex()
    )
    assert value[4:8].hex() == "827c98dd"
