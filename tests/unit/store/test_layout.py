from __future__ import annotations

import socket
from pathlib import Path

import pytest

from orun.errors import Damaged, NotFound, UsageError
from orun.store import layout
from orun.store.layout import FORMAT, StateDir, socket_address, write_durably


def test_create_may_be_repeated(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "deep" / "state")
    state.create()
    state.create()
    state.require()
    assert state.format_file.read_text() == '{"format": 1}'
    assert all(folder.is_dir() for folder in (state.journal, state.rings, state.run, state.exports))


def test_newer_format_is_refused_with_both_numbers(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.create()
    state.format_file.write_text('{"format": 7}')
    for act in (state.create, state.require, state.check_format):
        with pytest.raises(Damaged, match=rf"format 7.*up to {FORMAT}") as raised:
            act()
        assert raised.value.code == 12
    assert state.format_file.read_text() == '{"format": 7}'


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": "1"}', '{"format": 0}', "\x00\x00"])
def test_format_file_that_says_nothing_is_damage(tmp_path: Path, content: str) -> None:
    state = StateDir(tmp_path)
    state.create()
    state.format_file.write_text(content)
    with pytest.raises(Damaged):
        state.check_format()


def test_missing_state_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no orun state"):
        StateDir(tmp_path).require()


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file/state"):
        StateDir(tmp_path / "file" / "state").create()


@pytest.mark.parametrize(
    ("magic", "name"), [(0x6969, "NFS"), (0xFF534D42, "CIFS"), (0x65735546, "FUSE"), (0x01021997, "9p")]
)
def test_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, magic: int, name: str) -> None:
    monkeypatch.setattr(layout, "filesystem_magic", lambda path: magic)
    with pytest.raises(UsageError, match=name):
        StateDir(tmp_path).create()
    assert list(tmp_path.iterdir()) == []


def test_filesystem_magic_is_that_of_the_kernel() -> None:
    assert layout.filesystem_magic(Path("/proc")) == 0x9FA0


def test_socket_with_a_long_path_can_be_used(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 90) / ("e" * 90)
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        with socket_address(folder / "a.sock") as address:
            server.bind(address)
        server.listen()
        with socket_address(folder / "a.sock") as address:
            assert len(address) < 60
            client.connect(address)
    assert (folder / "a.sock").exists()


def test_socket_with_a_short_path_is_used_as_it_is() -> None:
    with socket_address(Path("/run/a.sock")) as address:
        assert address == "/run/a.sock"


def test_durable_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_durably(tmp_path / "file", b"one")
    write_durably(tmp_path / "file", b"two")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"two")]
