"""Small checksummed rows: CRC32C of the key and what follows, then one MessagePack value."""

from __future__ import annotations

import struct
from typing import Any

import msgpack

from orun.engine.journal import crc32c
from orun.errors import Damaged

_CRC = struct.Struct("<I")
LSN = struct.Struct(">Q")
"""LSNs in keys are big endian, so that LMDB's order is theirs."""


def pack(key: bytes, content: Any) -> bytes:
    """The stored form of ``content``. The key is covered too: a row in the wrong place is damage."""
    body: bytes = msgpack.packb(content, use_bin_type=True)
    return _CRC.pack(crc32c(body, crc32c(key))) + body


def unpack(key: bytes, row: bytes | memoryview, what: str) -> Any:
    """The content of a row; ``what`` names it in the error."""
    body = memoryview(row)[_CRC.size :]
    if len(row) < _CRC.size or _CRC.unpack_from(row)[0] != crc32c(body, crc32c(key)):
        raise Damaged(f"{what} does not match its checksum", hint="`orun wal verify` checks everything stored")
    return msgpack.unpackb(body, strict_map_key=False)
