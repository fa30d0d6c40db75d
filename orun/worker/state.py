"""An agent's state: blocks on disk, the changes since the last checkpoint, and one view per request.

``Blocks`` is the committed state. It reads a block from the store when it is first wanted, so that a
recovering worker starts without loading anything, and keeps every change since the checkpoint that it
reads from in an overlay of encoded values. A ``View`` is what a handler sees. It decodes its own copy of
each block, so a handler that fails, or runs beside another, cannot leave traces in anybody's objects;
a block mutated in place is noticed because its encoding is compared when the handler ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, Protocol, final

from orun.store.records import KEY_BYTES_MAX, KEY_STORED_MAX
from orun.worker import wire


class BlockSource(Protocol):
    """What ``Blocks`` needs of the store."""

    def block(self, key: bytes, lsn: int) -> bytes | None:
        """The newest value at or below ``lsn``."""

    def keys(self, lsn: int) -> Iterator[bytes]:
        """Every key that has a value at ``lsn``."""


class Unencodable(ValueError):
    """A value in the state has no MessagePack encoding."""


@final
class Blocks:
    """The committed state of one agent, as encoded values."""

    def __init__(self, source: BlockSource, base_lsn: int, cache_bytes_max: int) -> None:
        self._source = source
        self.base_lsn = base_lsn
        self._overlay: dict[bytes, tuple[int, bytes | None]] = {}
        self._cache: dict[bytes, bytes | None] = {}
        self._cache_bytes = 0
        self._cache_bytes_max = cache_bytes_max
        self._stale: list[bytes] = []
        self.commits = 0
        """How many sets of changes were applied; a view compares it to see whether anybody else was."""
        self.keys_changed = 0
        """The value of ``commits`` at which a key last appeared or went."""

    def get(self, key: bytes) -> bytes | None:
        """The encoded value of a block, or None."""
        found = self._overlay.get(key)
        if found is not None:
            return found[1]
        if key in self._cache:
            return self._cache[key]
        value = self._source.block(key, self.base_lsn)
        self._remember(key, value)
        return value

    def names(self) -> Iterator[bytes]:
        """Every key that has a value, those on disk first."""
        on_disk: set[bytes] = set()
        for key in self._source.keys(self.base_lsn):
            changed = self._overlay.get(key)
            if changed is None:
                yield key
            else:
                on_disk.add(key)
                if changed[1] is not None:
                    yield key
        for key, (_, value) in list(self._overlay.items()):
            if value is not None and key not in on_disk:
                yield key

    def apply(self, lsn: int, changes: list[tuple[bytes, bytes | None]]) -> None:
        """Take in the changes of one effect."""
        self.commits += 1
        overlay = self._overlay
        for key, value in changes:
            if value is None or key not in overlay or overlay[key][1] is None:
                self.keys_changed = self.commits
            overlay[key] = (lsn, value)
            if key in self._cache:
                self._forget(key)

    def replay(self, lsn: int, changes: list[tuple[bytes, bytes | None]]) -> None:
        """Take in the changes of an effect found in the log, before any view exists."""
        for key, value in changes:
            self._overlay[key] = (lsn, value)

    def rebase(self, checkpoint_lsn: int) -> None:
        """Read from a newer checkpoint. What it holds is dropped from memory later, by ``shed``."""
        if checkpoint_lsn <= self.base_lsn:
            return
        self.base_lsn = checkpoint_lsn
        self._stale = list(self._overlay)

    def shed(self, count_max: int) -> None:
        """Drop up to ``count_max`` overlay entries that the checkpoint holds: a little at a time, between requests."""
        stale = self._stale
        for _ in range(min(count_max, len(stale))):
            key = stale.pop()
            entry = self._overlay.get(key)
            if entry is not None and entry[0] <= self.base_lsn:
                del self._overlay[key]

    @property
    def shedding(self) -> bool:
        """Whether ``shed`` has anything left to do."""
        return bool(self._stale)

    def _remember(self, key: bytes, value: bytes | None) -> None:
        size = len(key) + len(value or b"") + 100
        while self._cache and self._cache_bytes + size > self._cache_bytes_max:
            self._forget(next(iter(self._cache)))
        if size <= self._cache_bytes_max:
            self._cache[key] = value
            self._cache_bytes += size

    def _forget(self, key: bytes) -> None:
        value = self._cache.pop(key)
        self._cache_bytes -= len(key) + len(value or b"") + 100


_ABSENT: Any = object()


@final
class View(MutableMapping[str, Any]):
    """The state as one request sees it. Nothing leaves it before ``changes`` is taken and applied."""

    __slots__ = ("_blocks", "_encode", "_listed", "_local", "_origin", "_readonly", "_started")

    def __init__(self, blocks: Blocks, *, readonly: bool = False, encode: Callable[[Any], bytes] = wire.pack) -> None:
        self._blocks = blocks
        self._encode = encode
        self._readonly = readonly
        self._local: dict[str, Any] = {}
        self._origin: dict[str, bytes | None] = {}
        self._started = blocks.commits
        self._listed = False

    def __getitem__(self, key: str) -> Any:
        value = self._local.get(key, self)
        if value is self:
            value = self._load(key)
        if value is _ABSENT:
            raise KeyError(key)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """The block's value, or ``default``."""
        value = self._local.get(key, self)
        if value is self:
            value = self._load(key)
        return default if value is _ABSENT else value

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.get(key, _ABSENT) is not _ABSENT

    def __setitem__(self, key: str, value: Any) -> None:
        self._check_writable()
        if key not in self._origin:
            self._origin[key] = self._blocks.get(_encode_key(key))
        self._local[key] = value

    def __delitem__(self, key: str) -> None:
        self._check_writable()
        if self[key] is not _ABSENT:
            self._local[key] = _ABSENT

    def __iter__(self) -> Iterator[str]:
        self._listed = True
        local = self._local
        for encoded in self._blocks.names():
            key = encoded.decode()
            if local.get(key) is not _ABSENT:
                yield key
        for key, value in list(local.items()):
            if value is not _ABSENT and self._origin.get(key) is None:
                yield key

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<state of {len(self)} blocks>"

    def changes(self) -> list[tuple[bytes, bytes | None]]:
        """What the request changed. Raises Unencodable, with the block's name."""
        if self._readonly:
            return []
        found: list[tuple[bytes, bytes | None]] = []
        for key, value in self._local.items():
            origin = self._origin.get(key)
            if value is _ABSENT:
                if origin is not None:
                    found.append((key.encode(), None))
                continue
            try:
                encoded = self._encode(value)
            except (TypeError, ValueError, OverflowError) as error:
                raise Unencodable(f"block {key!r}: {error}") from error
            except Exception as error:  # a class of the user's may raise anything while it is encoded
                raise Unencodable(f"block {key!r}: {type(error).__name__}") from error
            if encoded != origin:
                found.append((key.encode(), encoded))
        return found

    def conflicts(self) -> bool:
        """Whether a block that this request read has changed since, or a key came or went after it listed them."""
        blocks = self._blocks
        if blocks.commits == self._started:
            return False
        if self._listed and blocks.keys_changed > self._started:
            return True
        return any(blocks.get(key.encode()) != value for key, value in self._origin.items())

    def _load(self, key: str) -> Any:
        encoded = self._blocks.get(_encode_key(key))
        value = _ABSENT if encoded is None else wire.unpack(encoded)
        self._origin[key] = encoded
        # An absent block is looked up again: caching it would make it look deleted by this request.
        if value is not _ABSENT:
            self._local[key] = value
        return value

    def _check_writable(self) -> None:
        if self._readonly:
            raise ReadOnly("the state of a read-only handler cannot be changed")


class ReadOnly(TypeError):
    """A read-only handler tried to change the state."""


def _encode_key(key: str) -> bytes:
    if not isinstance(key, str):
        raise TypeError(f"a block's key is a str, not {type(key).__name__}: {key!r}")
    encoded = key.encode()
    size = len(encoded)
    if size > KEY_BYTES_MAX or (size > KEY_STORED_MAX // 2 and size + encoded.count(0) > KEY_STORED_MAX):
        raise ValueError(
            f"a block's key is at most {KEY_BYTES_MAX} bytes of UTF-8, this one is {len(encoded)}: {key[:40]!r}…"
        )
    return encoded
