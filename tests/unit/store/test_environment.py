from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import lmdb
import pytest

from orun.errors import Damaged, NotFound, OrunError, StorageFailed
from orun.store import environment as module
from orun.store.environment import Environment, Txn

_READ = """
import sys
from pathlib import Path
from orun.store.environment import Environment
environment = Environment.for_reader(Path(sys.argv[1]))
for line in sys.stdin:
    with environment.read() as txn:
        print(sum(1 for _ in txn.rows("a")), flush=True)
"""


def _fill(txn: Txn, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        txn.put("a", b"%08d" % number, b"v" * 9000)


def test_map_grows_under_a_reader_in_another_process(tmp_path: Path) -> None:
    environment = Environment.for_writer(tmp_path, 1 << 20)
    environment.write(lambda txn: _fill(txn, 1))
    reader = subprocess.Popen(
        [sys.executable, "-c", _READ, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    try:
        for step in range(8):
            reader.stdin.write("\n")
            reader.stdin.flush()
            assert int(reader.stdout.readline()) == 1 + step * 100
            # 1.2 MB in one transaction: more than was announced, so it is repeated in a larger map.
            environment.write(lambda txn, step=step: _fill(txn, 100, 1 + step * 100))
    finally:
        reader.kill()
        reader.communicate()
    assert environment.reader_check() == 1
    environment.close()


def test_map_grows_ahead_of_what_is_announced(tmp_path: Path) -> None:
    environment = Environment.for_writer(tmp_path, 1 << 20)
    runs: list[int] = []

    def build(txn: Txn) -> None:
        runs.append(1)
        _fill(txn, 500)

    environment.write(build, expected_bytes=500 * 9000)
    assert len(runs) == 1
    environment.close()


def test_growth_waits_for_readers_of_the_same_process(tmp_path: Path) -> None:
    environment = Environment.for_writer(tmp_path, 1 << 20)
    environment.write(lambda txn: _fill(txn, 1))
    done = threading.Event()

    def write() -> None:
        environment.write(lambda txn: _fill(txn, 300))
        done.set()

    with environment.read() as txn:
        thread = threading.Thread(target=write)
        thread.start()
        assert not done.wait(0.2)
        assert sum(1 for _ in txn.rows("a")) == 1
    thread.join()
    assert done.is_set()
    environment.close()


def test_failed_write_closes_the_environment(tmp_path: Path) -> None:
    environment = Environment.for_writer(tmp_path, 1 << 20)
    environment.write(lambda txn: _fill(txn, 1))

    def fail(txn: Txn) -> None:
        txn.put("a", b"other", b"")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageFailed) as raised:
        environment.write(fail)
    assert "the disk is full" in raised.value.message
    assert environment.closed
    with pytest.raises(StorageFailed):
        environment.write(lambda txn: _fill(txn, 1))
    with pytest.raises(StorageFailed), environment.read():
        pass
    again = Environment.for_writer(tmp_path, 1 << 20)
    with again.read() as txn:
        assert [key for key, _ in txn.rows("a")] == [b"00000000"]
    again.close()


def test_reader_of_nothing_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Environment.for_reader(tmp_path)


def test_file_that_is_no_database_is_damage(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"\x01" * 8192)
    with pytest.raises(Damaged, match="damaged"):
        Environment.for_reader(tmp_path)
    with pytest.raises(Damaged, match="damaged"):
        Environment.for_writer(tmp_path, 1 << 20)


def test_database_of_the_other_lmdb_engine_is_refused(tmp_path: Path) -> None:
    lmdb.open(str(tmp_path), lib_version=1).close()
    with pytest.raises(OrunError):
        Environment.for_writer(tmp_path, 1 << 20)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (lmdb.CorruptedError("x"), Damaged),
        (lmdb.PageNotFoundError("x"), Damaged),
        (lmdb.VersionMismatchError("x"), Damaged),
        (lmdb.DiskError("No space left on device"), StorageFailed),
        (lmdb.Error("Input/output error"), StorageFailed),
        (OSError(30, "Read-only file system"), StorageFailed),
        (lmdb.ReadersFullError("x"), OrunError),
    ],
)
def test_errors_are_explained(error: Exception, kind: type[OrunError]) -> None:
    explained = module.explain(error, "cannot write")
    assert type(explained) is kind
    assert explained.message.startswith("cannot write")


def test_names_and_missing_databases(tmp_path: Path) -> None:
    environment = Environment.for_writer(tmp_path, 1 << 20)
    environment.write(lambda txn: [txn.put(name, b"k", b"v") for name in ("x/1", "x/2", "y")])
    with environment.read() as txn:
        assert txn.names("x/") == ["x/1", "x/2"]
        assert txn.names("") == ["x/1", "x/2", "y"]
        assert txn.get("none", b"k") is None
        assert txn.get("y", b"none") is None
        assert list(txn.rows("none")) == []
        assert txn.used_bytes("none") == 0
        assert txn.used_bytes("y") == 4096
    environment.write(lambda txn: txn.drop("x/1"))
    with environment.read() as txn:
        assert txn.names("x/") == ["x/2"]
    environment.close()
