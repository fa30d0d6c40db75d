"""The LMDB environment: opened for the writer or for readers, transactions, growth, and what its errors mean.

- The engine is pinned (``lib_version=0``): py-lmdb bundles two with mutually unreadable files.
- ``sync=True`` and no writable map: with ``sync=False`` 9 of 20 simulated power cuts left the database
  unreadable or silently wrong, and a full disk under a writable map kills the process (SIGBUS).
- After a failed sync later commits were seen to report success, because the kernel had marked the
  pages clean. So the first failed commit closes the environment; nothing can be written after it.
- Database handles live as long as a transaction. Opening one costs 0.3 us, and a handle kept from a
  transaction that was aborted would name whatever database comes next.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, final

from orun.errors import Damaged, NotFound, OrunError, StorageFailed

T = TypeVar("T")

DATABASES_MAX = 4096
"""Named databases that can be open at once: a few for each agent, and one for each log segment."""
READERS_MAX = 1024
MAP_BYTES_MIN = 1 << 20
KEY_BYTES_MAX = 511
"""LMDB's own limit."""
_PAGE = 4096
_MAGIC = (0xBEEFC0DE).to_bytes(4, "little")
_MAGIC_AT = 16
_FULL_BYTES = 1 << 16


@final
class Txn:
    """One transaction, and the named databases it has opened."""

    __slots__ = ("_environment", "_handles", "raw")

    def __init__(self, raw: Any, environment: Any) -> None:
        self.raw = raw
        self._environment = environment
        self._handles: dict[str, Any] = {}

    def handle(self, name: str, *, create: bool = False) -> Any | None:
        """The database of that name, or None when there is none."""
        handle = self._handles.get(name)
        if handle is None:
            import lmdb

            try:
                handle = self._environment.open_db(name.encode(), txn=self.raw, create=create)
            except lmdb.NotFoundError:
                return None
            self._handles[name] = handle
        return handle

    def get(self, name: str, key: bytes) -> bytes | None:
        """The value, or None when the key or the database is missing."""
        handle = self.handle(name)
        if handle is None:
            return None
        value = self.raw.get(key, db=handle)
        return None if value is None else bytes(value)

    def put(self, name: str, key: bytes, value: bytes) -> None:
        """Store or replace."""
        self.raw.put(key, value, db=self.handle(name, create=True))

    def append(self, name: str, key: bytes, value: bytes) -> None:
        """Store behind every other key of the database."""
        # LMDB drops an entry that is out of order and says so by False only.
        if not self.raw.put(key, value, db=self.handle(name, create=True), append=True):
            raise Damaged(f"{name}: key {key.hex()} is not behind the keys already stored")

    def delete(self, name: str, key: bytes) -> bool:
        """Whether there was such a key."""
        handle = self.handle(name)
        return handle is not None and bool(self.raw.delete(key, db=handle))

    def cursor(self, name: str) -> Any | None:
        """A cursor, or None when there is no such database."""
        handle = self.handle(name)
        return None if handle is None else self.raw.cursor(db=handle)

    def rows(self, name: str, from_key: bytes = b"") -> Iterator[tuple[bytes, memoryview]]:
        """Keys and values from a key on, in order; a value is valid until the next step."""
        cursor = self.cursor(name)
        valid = cursor is not None and (cursor.set_range(from_key) if from_key else cursor.first())
        while cursor is not None and valid:
            yield bytes(cursor.key()), cursor.value()
            valid = cursor.next()

    def drop(self, name: str) -> None:
        """Remove a database whole; its pages are free in one step."""
        handle = self.handle(name)
        if handle is not None:
            self.raw.drop(handle, delete=True)
            del self._handles[name]

    def names(self, prefix: str) -> list[str]:
        """The named databases that begin with ``prefix``, in order."""
        found: list[str] = []
        cursor = self.raw.cursor()
        valid = cursor.set_range(prefix.encode())
        while valid and bytes(cursor.key()).startswith(prefix.encode()):
            found.append(bytes(cursor.key()).decode())
            valid = cursor.next()
        return found

    def used_bytes(self, name: str) -> int:
        """The pages that a database occupies, in bytes."""
        handle = self.handle(name)
        if handle is None:
            return 0
        stat = self.raw.stat(handle)
        return int(stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]))


@final
class Environment:
    """The journal database, opened for one process. Use ``for_writer`` or ``for_reader``."""

    def __init__(self, raw: Any, path: Path, *, readonly: bool) -> None:
        self._raw = raw
        self._path = path
        self.readonly = readonly
        # The map can only be grown while no transaction of this process lives; transactions that
        # read (a backup, a restore that is being planned) are counted for that.
        self._quiet = threading.Condition()
        self._readers = 0

    @classmethod
    def for_writer(cls, path: Path, map_bytes: int) -> Environment:
        """Open, and create when missing; the caller holds the state lock."""
        import lmdb

        _remove_unfinished(path)
        try:
            raw = lmdb.open(
                str(path),
                map_size=max(map_bytes, MAP_BYTES_MIN),
                max_dbs=DATABASES_MAX,
                max_readers=READERS_MAX,
                lib_version=0,
                max_spare_txns=0,
                mode=0o600,
            )
            # Readers that died with a transaction open keep pages from being used again.
            raw.reader_check()
        except lmdb.Error as error:
            raise explain(error, f"cannot open {path}", path) from error
        return cls(raw, path, readonly=False)

    @classmethod
    def for_reader(cls, path: Path) -> Environment:
        """Open to read, beside a writer in another process or without one."""
        import lmdb

        if not (path / "data.mdb").exists():
            raise NotFound(f"{path} holds no journal database yet", hint="start an agent with `orun run`")
        try:
            raw = lmdb.open(
                str(path),
                readonly=True,
                create=False,
                map_size=0,  # whatever the writer has
                max_dbs=DATABASES_MAX,
                max_readers=READERS_MAX,
                lib_version=0,
                max_spare_txns=1,
            )
        except lmdb.Error as error:
            raise explain(error, f"cannot open {path}") from error
        return cls(raw, path, readonly=True)

    @contextmanager
    def read(self) -> Iterator[Txn]:
        """A read transaction; keep it short, it holds back the reuse of pages."""
        import lmdb

        with self._quiet:
            raw = self._begin_read()
            self._readers += 1
        try:
            yield Txn(raw, self._raw)
        except lmdb.Error as error:
            raise explain(error, "cannot read the journal database") from error
        finally:
            raw.abort()
            with self._quiet:
                self._readers -= 1
                self._quiet.notify_all()

    def _begin_read(self) -> Any:
        import lmdb

        self._check_open()
        try:
            while True:
                try:
                    return self._raw.begin(buffers=True)
                except lmdb.MapResizedError:
                    # The writer has grown the map: take its size, once nobody looks at the old one.
                    while self._readers:
                        self._quiet.wait()
                    self._raw.set_mapsize(0)
        except lmdb.Error as error:
            raise explain(error, "cannot read the journal database") from error

    def _check_open(self) -> None:
        if self._raw is None:
            raise StorageFailed("the journal database is closed")

    def write(self, build: Callable[[Txn], T], *, expected_bytes: int = 0) -> T:
        """Run ``build`` in a write transaction and make it durable. It may run again, when the map had to grow.

        When it fails, the environment is closed for good: what was to be written is written nowhere.
        """
        import lmdb

        assert not self.readonly
        self._check_open()
        done = False
        try:
            self._grow_ahead(expected_bytes)
            while not done:
                try:
                    with self._raw.begin(write=True, buffers=True) as raw:
                        result = build(Txn(raw, self._raw))
                    done = True
                except lmdb.MapFullError:
                    self._grow()
        except (lmdb.Error, OSError) as error:
            raise explain(error, f"cannot write the journal database {self._path}", self._path) from error
        finally:
            if not done:
                self.close()
        return result

    def _grow_ahead(self, expected_bytes: int) -> None:
        info = self._raw.info()
        while (info["last_pgno"] + 2) * _PAGE + 4 * expected_bytes > info["map_size"] // 4 * 3:
            self._grow()
            info = self._raw.info()

    def _grow(self) -> None:
        with self._quiet:
            while self._readers:
                self._quiet.wait()
            self._raw.set_mapsize(self._raw.info()["map_size"] * 2)

    @property
    def closed(self) -> bool:
        """Nothing can be read or written any more."""
        return self._raw is None

    def file_bytes(self) -> int:
        """Size of the database up to the last page used."""
        self._check_open()
        return int((self._raw.info()["last_pgno"] + 1) * _PAGE)

    def reader_check(self) -> int:
        """Free the slots of readers that died; returns how many."""
        self._check_open()
        return int(self._raw.reader_check())

    def close(self) -> None:
        """No transaction can begin after this. Waits for those that read."""
        with self._quiet:
            raw, self._raw = self._raw, None
            while self._readers:
                self._quiet.wait()
            if raw is not None:
                raw.close()


def _remove_unfinished(path: Path) -> None:
    """Remove a database whose making was cut short: it has less than its first two pages, so it never held anything."""
    data = path / "data.mdb"
    if not data.exists() or data.stat().st_size > 2 * _PAGE:
        return
    content = data.read_bytes()
    begun = len(content) < 2 * _PAGE and content[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC
    if begun or not content.strip(b"\0"):
        data.unlink()


def explain(error: Exception, what: str, path: Path | None = None) -> OrunError:
    """An error of LMDB or of the system in our words; ``path`` is where it was written."""
    import lmdb

    corrupted = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.PanicError, lmdb.BadTxnError)
    if isinstance(error, corrupted):
        return Damaged(
            f"{what}: the database is damaged ({error})",
            hint="`orun wal verify` shows what can be read; `orun restore --from FILE` starts from a backup",
        )
    if isinstance(error, lmdb.VersionMismatchError):
        return Damaged(f"{what}: it was written by another LMDB engine ({error})")
    if isinstance(error, lmdb.ReadersFullError):
        return OrunError(f"{what}: more than {READERS_MAX} processes read it", hint="stop some of them")
    # A write that was cut short by a full disk comes back from LMDB as an input/output error.
    full = isinstance(error, lmdb.DiskError) or _mentions(error, errno.ENOSPC) or _is_full(path)
    if full:
        return StorageFailed(
            f"{what}: the disk is full ({error})", hint="free some space, then start orun again: nothing is lost"
        )
    return StorageFailed(f"{what}: {error}", hint="check the disk, then start orun again")


def _mentions(error: Exception, number: int) -> bool:
    return getattr(error, "errno", None) == number or os.strerror(number) in str(error)


def _is_full(path: Path | None) -> bool:
    if path is None:
        return False
    try:
        found = os.statvfs(path)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _FULL_BYTES
