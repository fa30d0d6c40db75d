"""The file format of exports and backups: compressed, checksummed chunks of MessagePack values.

    0  8s  magic "ORUNARC1"
    then chunks: u32 length of the body | u32 CRC32C | body (zstd of MessagePack values end to end)

Each checksum covers the length and continues the checksum of the chunk before, so a chunk that is
missing, repeated or moved is noticed, too. The first value is the header, a map with ``kind`` and
``format``; the last one is the end mark with the number of values, without which the file was cut.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, final

import msgpack
import zstandard

from orun.engine.journal import crc32c
from orun.errors import Damaged, NotFound, StorageFailed
from orun.store.layout import sync_folder

_MAGIC = b"ORUNARC1"
_CHUNK = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_CHUNK_BYTES = 256 << 10
_CHUNK_BYTES_MAX = 1 << 30
_END = "end"
FORMAT = 1


@final
class ArchiveWriter:
    """Writes an archive under a temporary name; ``finish`` gives it its own."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._compressor = zstandard.ZstdCompressor(level=3)
        self._packer = msgpack.Packer(use_bin_type=True)
        self._crc = crc32c(_MAGIC)
        self._values: list[bytes] = []
        self._size = 0
        self._count = 0
        try:
            self._file = self._temporary.open("xb")
        except FileExistsError:
            self._temporary.unlink()  # left behind by a process of our number that died
            self._file = self._temporary.open("xb")
        except OSError as error:
            raise _failed(path, error) from error
        self._guarded(self._file.write, _MAGIC)
        self.add({**header, "format": FORMAT})

    def add(self, value: Any) -> None:
        """One more value."""
        packed = self._packer.pack(value)
        self._values.append(packed)
        self._size += len(packed)
        self._count += 1
        if self._size >= _CHUNK_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._values:
            return
        body = self._compressor.compress(b"".join(self._values))
        self._values, self._size = [], 0
        self._crc = crc32c(body, crc32c(_LENGTH.pack(len(body)), self._crc))
        self._guarded(self._file.write, _CHUNK.pack(len(body), self._crc) + body)

    def finish(self) -> int:
        """Make the file durable under its own name; returns its size."""
        self.add([_END, self._count])
        self._flush()
        self._guarded(self._sync)
        size = self._temporary.stat().st_size
        self._guarded(self._temporary.replace, self.path)
        self._guarded(sync_folder, self.path.parent)
        return size

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _guarded(self, act: Any, *arguments: Any) -> None:
        try:
            act(*arguments)
        except OSError as error:
            self.abort()
            raise _failed(self.path, error) from error

    def abort(self) -> None:
        """Leave nothing behind; harmless after ``finish``."""
        with suppress(OSError):  # what could not be flushed is thrown away here anyway
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def _failed(path: Path, error: OSError) -> StorageFailed:
    return StorageFailed(f"cannot write {path}: {error.strerror}", hint="choose another place, or free some space")


def read_archive(path: Path) -> Iterator[Any]:
    """The values of an archive, header first, end mark left out; Damaged with the byte offset."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}") from error
    with file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise Damaged(f"{path} is not an archive of orun, or its first bytes are damaged (offset 0)")
        for count, value in enumerate(_values(path, file)):
            if isinstance(value, list) and len(value) == 2 and value[0] == _END:
                if value[1] != count or file.read(1):
                    raise Damaged(f"{path}: the end mark at offset {file.tell()} does not fit what is before it")
                return
            yield value
        raise Damaged(f"{path} is cut off at offset {file.tell()}")


def _values(path: Path, file: Any) -> Iterator[Any]:
    decompressor = zstandard.ZstdDecompressor()
    crc = crc32c(_MAGIC)
    while True:
        offset = file.tell()
        head = file.read(_CHUNK.size)
        if not head:
            return
        if len(head) < _CHUNK.size:
            raise Damaged(f"{path} is cut off at offset {offset}")
        length, expected = _CHUNK.unpack(head)
        body = file.read(length) if length <= _CHUNK_BYTES_MAX else b""
        crc = crc32c(body, crc32c(_LENGTH.pack(length), crc))
        if crc != expected or len(body) != length:
            raise Damaged(f"{path} does not match its checksum in the chunk at offset {offset}")
        unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=0)
        unpacker.feed(decompressor.decompress(body))
        yield from unpacker


def read_header(path: Path, values: Iterator[Any], kind: str | None = None) -> dict[str, Any]:
    """The first value, checked."""
    header = next(values, None)
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise Damaged(f"{path} has no header")
    if header["format"] > FORMAT:
        raise Damaged(f"{path} has format {header['format']}, and this orun knows formats up to {FORMAT}")
    if kind is not None and header.get("kind") != kind:
        raise Damaged(f"{path} is a {header.get('kind')}, not a {kind}")
    return header
