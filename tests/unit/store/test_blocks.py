from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orun.errors import Damaged
from orun.store import blocks
from orun.store.blocks import BlockCodec
from orun.store.environment import Environment
from orun.store.records import KEY_BYTES_MAX, KEY_STORED_MAX, encode_effect

keys = st.binary(max_size=12) | st.lists(st.sampled_from([b"\x00", b"\x01", b"\xff", b"a"]), max_size=6).map(b"".join)
lsns = st.integers(0, 2**63)


@given(keys, lsns, keys, lsns)
def test_stored_keys_sort_by_key_and_then_newest_first(a: bytes, lsn_a: int, b: bytes, lsn_b: int) -> None:
    stored = blocks.version_key(a, lsn_a), blocks.version_key(b, lsn_b)
    expected = (a, -lsn_a) < (b, -lsn_b)
    assert (stored[0] < stored[1]) == expected
    assert blocks.split_key(stored[0]) == (a, lsn_a)


@given(keys, lsns, st.none() | st.binary(max_size=300) | st.integers(0, 3000).map(lambda size: b"v" * size))
def test_value_gives_back_what_went_in(key: bytes, lsn: int, data: bytes | None) -> None:
    codec = BlockCodec()
    stored_key = blocks.version_key(key, lsn)
    assert codec.decode(stored_key, codec.encode(stored_key, data)) == data


@pytest.mark.parametrize("data", [None, b"", b"short", b"long" * 200])
def test_every_flipped_byte_of_a_block_is_seen(data: bytes | None) -> None:
    codec = BlockCodec()
    stored_key = blocks.version_key(b"key", 9)
    value = codec.encode(stored_key, data)
    for offset in range(len(value)):
        damaged = bytearray(value)
        damaged[offset] ^= 1
        with pytest.raises(Damaged, match="block 'key' of checkpoint LSN 9"):
            codec.decode(stored_key, bytes(damaged))
    with pytest.raises(Damaged):
        codec.decode(blocks.version_key(b"key", 8), value)
    with pytest.raises(Damaged):
        codec.decode(stored_key, value[:5])


def test_longest_key_can_be_stored_and_a_longer_one_is_refused(tmp_path: Path) -> None:
    environment = Environment.for_writer(tmp_path, 1 << 20)
    codec = BlockCodec()
    for key in (b"k" * KEY_BYTES_MAX, b"k" * KEY_STORED_MAX, b"\x00" * (KEY_STORED_MAX // 2)):
        encode_effect(b"", True, [(key, b"")])
        environment.write(lambda txn, key=key: blocks.put(txn, "a", codec, key, 1, b"v"))
        with environment.read() as txn:
            assert blocks.get(txn, "a", codec, key, 1) == b"v"
    for key in (b"k" * (KEY_STORED_MAX + 1), b"\x00" * 251):
        with pytest.raises(ValueError, match="too long"):
            encode_effect(b"", True, [(key, b"")])
    environment.close()


operations = st.lists(
    st.tuples(st.sampled_from([b"", b"a", b"a\x00", b"a\x00\x01", b"ab", b"b"]), st.none() | st.binary(max_size=40)),
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(operations, min_size=1, max_size=8), st.data())
def test_versions_are_those_of_a_list_of_dicts(
    checkpoints: list[list[tuple[bytes, bytes | None]]], data: st.DataObject
) -> None:
    """Each checkpoint is read as it was, while the oldest ones are retired one after the other."""
    codec = BlockCodec()
    with tempfile.TemporaryDirectory() as folder:
        environment = Environment.for_writer(Path(folder), 1 << 20)
        states: list[tuple[int, dict[bytes, bytes]]] = []
        dirty: list[set[bytes]] = []
        current: dict[bytes, bytes] = {}
        for number, changes in enumerate(checkpoints):
            lsn = 10 * (number + 1)
            merged = dict(changes)

            def write(txn: object, merged: dict[bytes, bytes | None] = merged, lsn: int = lsn) -> None:
                for key, value in merged.items():
                    blocks.put(txn, "a", codec, key, lsn, value)  # type: ignore[arg-type]

            environment.write(write)
            current = {**current, **{k: v for k, v in merged.items() if v is not None}}
            current = {k: v for k, v in current.items() if merged.get(k, b"") is not None}
            states.append((lsn, current))
            dirty.append(set(merged))
        retired = data.draw(st.integers(0, len(states) - 1))
        oldest = states[retired][0]
        doomed = sorted(set().union(*dirty[: retired + 1]))

        def collect(txn: object) -> None:
            for key in doomed:
                blocks.collect(txn, "a", key, oldest)  # type: ignore[arg-type]

        environment.write(collect)
        with environment.read() as txn:
            for lsn, state in states[retired:]:
                assert list(blocks.keys(txn, "a", lsn + 3)) == sorted(state)
                for key in (b"", b"a", b"a\x00", b"a\x00\x01", b"ab", b"b", b"none"):
                    assert blocks.get(txn, "a", codec, key, lsn) == state.get(key)
                after = data.draw(st.sampled_from([b"", b"a", b"a\x00", b"zz"]))
                assert list(blocks.keys(txn, "a", lsn, after)) == sorted(k for k in state if k > after)
            stored = [blocks.split_key(key) for key, _ in txn.rows(blocks.database("a"))]
        # Nothing is left that no checkpoint can reach.
        old = [key for key, lsn in stored if lsn <= oldest]
        assert sorted(old) == sorted(states[retired][1])
        environment.close()


def test_layout_of_a_block_is_the_documented_one() -> None:
    """The golden block: stores in the field have these bytes."""
    stored_key = blocks.version_key(b"k\x00", 5)
    assert stored_key.hex() == "6b00ff0001fffffffffffffffa"
    assert BlockCodec().encode(stored_key, b"v").hex() == "0000000033f2f14976"
