"""Frames survive any splitting, and bytes that are no frames are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orun.worker import wire


@given(st.lists(st.binary(max_size=300)), st.lists(st.integers(1, 50), min_size=1))
def test_frames_survive_any_splitting(payloads: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(wire.encode([7, "h", payload, {}]) for payload in payloads)
    decoder = wire.Decoder(1 << 20)
    bodies: list[bytes] = []
    at = turn = 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        bodies += decoder.feed(stream[at : at + size])
        at += size
        turn += 1
    assert [wire.unpack(body)[2] for body in bodies] == payloads


@pytest.mark.parametrize("split", [1, 3, 4, 5, 1000])
def test_a_frame_over_the_limit_is_refused_before_its_body_arrives(split: int) -> None:
    decoder = wire.Decoder(100)
    frame = wire.encode("x" * 200)[:50]
    pieces = [frame[at : at + split] for at in range(0, len(frame), split)]
    with pytest.raises(wire.FrameTooLarge, match="over the limit of 100"):
        list(map(decoder.feed, pieces))


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x91" * 3000 + b"\x01", b"\xa2\xff\xfe", b"\x01\x02", b"\x92\x01"])
def test_bytes_that_are_no_value_are_refused(body: bytes) -> None:
    with pytest.raises(wire.BadFrame, match=r"not a MessagePack value: ."):
        wire.unpack(body)


@given(st.integers(0, 2**63), st.booleans(), st.text())
def test_a_reply_built_from_an_encoded_body_is_a_frame(seq: int, ok: bool, text: str) -> None:
    (body,) = wire.Decoder(1 << 20).feed(wire.encode_reply(seq, ok, wire.pack({"t": text})))
    assert wire.unpack(body) == [seq, ok, {"t": text}]
