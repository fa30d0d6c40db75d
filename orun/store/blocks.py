"""Blocks by version: the value of each key of an agent's state at each checkpoint.

Key in LMDB: the block's key with 0x00 escaped as 0x00 0xFF, then 0x00 0x01, then ~LSN big endian.
So keys sort as the blocks' keys do, and the first entry at or behind (key, LSN) is the newest
version that is not newer than LSN. Value: u8 flags, u8 codec, u16 0, u32 CRC32C of the LMDB key and
everything else in the value, then the data. A deletion is a version, too.

Only the oldest checkpoint is ever retired. Then of each key that changed up to the next one, only
the newest version at that one is still reachable; which keys these are, the dirty lists say.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import final

import zstandard

from orun.engine.journal import crc32c
from orun.errors import Damaged
from orun.store.environment import KEY_BYTES_MAX, Txn
from orun.store.records import KEY_STORED_MAX

_LSN = struct.Struct(">Q")
_VALUE = struct.Struct("<BBHI")
_HEAD = struct.Struct("<BBH")
_LSN_MAX = (1 << 64) - 1
_END = b"\x00\x01"
_DELETED = 1
_RAW = 0
_ZSTD = 1
_COMPRESS_FROM = 128
BLOCK_BYTES_MAX = 1 << 30

assert KEY_STORED_MAX + len(_END) + _LSN.size <= KEY_BYTES_MAX


def database(agent: str) -> str:
    """The named database of an agent's blocks."""
    return f"blk/{agent}"


def prefix_of(key: bytes) -> bytes:
    """What all versions of a block begin with."""
    return key.replace(b"\x00", b"\x00\xff") + _END


def version_key(key: bytes, lsn: int) -> bytes:
    """The LMDB key of one version."""
    return prefix_of(key) + _LSN.pack(_LSN_MAX - lsn)


def split_key(stored: bytes) -> tuple[bytes, int]:
    """Block key and LSN of an LMDB key."""
    split = len(stored) - _LSN.size
    if split < len(_END) or stored[split - 2 : split] != _END:
        raise Damaged(f"block key {stored.hex()} is not one of ours")
    key = stored[: split - 2].replace(b"\x00\xff", b"\x00")
    return key, _LSN_MAX - _LSN.unpack_from(stored, split)[0]


@final
class BlockCodec:
    """Encodes and decodes block values; one for each thread."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._decompressor = zstandard.ZstdDecompressor()

    def encode(self, stored_key: bytes, data: bytes | None) -> bytes:
        """The stored value; None is a deletion."""
        flags = codec = 0
        if data is None:
            flags, data = _DELETED, b""
        elif len(data) >= _COMPRESS_FROM:
            packed = self._compressor.compress(data)
            if len(packed) < len(data):
                data, codec = packed, _ZSTD
        crc = crc32c(data, crc32c(_HEAD.pack(flags, codec, 0), crc32c(stored_key)))
        return _VALUE.pack(flags, codec, 0, crc) + data

    def decode(self, stored_key: bytes, value: bytes | memoryview) -> bytes | None:
        """What was encoded; Damaged when it is not that any more."""
        view = memoryview(value)
        if len(view) < _VALUE.size:
            raise _damaged(stored_key, "is cut off")
        flags, codec, reserved, crc = _VALUE.unpack_from(view)
        data = view[_VALUE.size :]
        if crc32c(data, crc32c(_HEAD.pack(flags, codec, reserved), crc32c(stored_key))) != crc:
            raise _damaged(stored_key, "does not match its checksum")
        if flags & _DELETED:
            return None
        if codec == _RAW:
            return bytes(data)
        if codec != _ZSTD:
            raise _damaged(stored_key, f"has codec {codec}, which this orun does not know")
        try:
            return self._decompressor.decompress(data, max_output_size=BLOCK_BYTES_MAX)
        except zstandard.ZstdError as error:
            raise _damaged(stored_key, f"cannot be decompressed: {error}") from error


def _damaged(stored_key: bytes, what: str) -> Damaged:
    key, lsn = split_key(stored_key)
    return Damaged(f"block {show(key)} of checkpoint LSN {lsn} {what}")


def show(key: bytes) -> str:
    """A block's key for people."""
    return repr(key.decode("utf-8", "backslashreplace"))


def put(txn: Txn, agent: str, codec: BlockCodec, key: bytes, lsn: int, data: bytes | None) -> int:
    """Store a version; returns the bytes it takes."""
    stored_key = version_key(key, lsn)
    value = codec.encode(stored_key, data)
    txn.put(database(agent), stored_key, value)
    return len(stored_key) + len(value)


def find(txn: Txn, agent: str, key: bytes, lsn: int) -> tuple[bytes, memoryview] | None:
    """LMDB key and value of the newest version at or before ``lsn``; the value is valid in the transaction."""
    cursor = txn.cursor(database(agent))
    if cursor is None or not cursor.set_range(version_key(key, lsn)):
        return None
    stored_key = bytes(cursor.key())
    return (stored_key, cursor.value()) if stored_key.startswith(prefix_of(key)) else None


def get(txn: Txn, agent: str, codec: BlockCodec, key: bytes, lsn: int) -> bytes | None:
    """The value of a block at a checkpoint, None when it has none."""
    found = find(txn, agent, key, lsn)
    return None if found is None else codec.decode(*found)


def is_deletion(value: bytes | memoryview) -> bool:
    """Whether a stored value is a deletion."""
    return bool(value[0] & _DELETED)


def versions(txn: Txn, agent: str, lsn: int, after: bytes | None = None) -> Iterator[tuple[bytes, bytes, memoryview]]:
    """Key, LMDB key and value of each block's version at ``lsn``, in key order, deletions included.

    ``after``: begin behind this key. The values are valid inside the transaction.
    """
    cursor = txn.cursor(database(agent))
    if cursor is None:
        return
    valid = cursor.first() if after is None else cursor.set_range(_behind(prefix_of(after)))
    while valid:
        stored_key = bytes(cursor.key())
        key, version = split_key(stored_key)
        prefix = stored_key[: -_LSN.size]
        if version > lsn:
            valid = cursor.set_range(prefix + _LSN.pack(_LSN_MAX - lsn))
            continue
        yield key, stored_key, cursor.value()
        valid = cursor.next()
        if valid and bytes(cursor.key()).startswith(prefix):
            valid = cursor.set_range(_behind(prefix))


def _behind(prefix: bytes) -> bytes:
    # No version key of this block is greater: ~LSN has eight bytes.
    return prefix + b"\xff" * 9


def keys(txn: Txn, agent: str, lsn: int, after: bytes | None = None) -> Iterator[bytes]:
    """The keys that have a value at ``lsn``, in order."""
    for key, _, value in versions(txn, agent, lsn, after):
        if not is_deletion(value):
            yield key


def collect(txn: Txn, agent: str, key: bytes, oldest_lsn: int) -> int:
    """Remove the versions of a block that no checkpoint from ``oldest_lsn`` on can reach; returns how many."""
    cursor = txn.cursor(database(agent))
    prefix = prefix_of(key)
    if cursor is None or not cursor.set_range(version_key(key, oldest_lsn)):
        return 0
    removed = 0
    # The newest version stays, unless it is a deletion: behind it nothing is left to hide.
    if bytes(cursor.key()).startswith(prefix) and not is_deletion(cursor.value()) and not cursor.next():
        return 0
    while bytes(cursor.key()).startswith(prefix):
        # Deleting moves the cursor to the next entry.
        cursor.delete()
        removed += 1
    return removed
