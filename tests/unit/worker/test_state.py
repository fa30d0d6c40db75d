"""The state view: atomic, isolated, and exact about what changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orun.worker import wire
from orun.worker.state import Blocks, ReadOnly, Unencodable, View


class Disk:
    """Blocks as of a checkpoint; counts reads."""

    def __init__(self, **blocks: object) -> None:
        self.blocks = {key.encode(): wire.pack(value) for key, value in blocks.items()}
        self.reads: list[bytes] = []

    def block(self, key: bytes, lsn: int) -> bytes | None:
        self.reads.append(key)
        return self.blocks.get(key)

    def keys(self, lsn: int) -> Iterator[bytes]:
        return iter(sorted(self.blocks))


def make(**blocks: object) -> Blocks:
    return Blocks(Disk(**blocks), 0, 1 << 20)


def commit(blocks: Blocks, view: View, lsn: int = 1) -> None:
    blocks.apply(lsn, view.changes())


def test_a_change_is_seen_by_the_next_view_only_after_it_was_applied() -> None:
    blocks = make(total=1)
    view = View(blocks)
    view["total"] += 1
    assert View(blocks)["total"] == 1
    commit(blocks, view)
    assert View(blocks)["total"] == 2


def test_a_block_mutated_in_place_is_noticed() -> None:
    blocks = make(items=[1])
    view = View(blocks)
    view["items"].append(2)
    assert view.changes() == [(b"items", wire.pack([1, 2]))]


def test_a_dropped_view_leaves_no_trace_in_mutable_blocks() -> None:
    blocks = make(items=[1])
    View(blocks)["items"].append(2)
    assert View(blocks)["items"] == [1]


def test_reading_or_assigning_the_same_value_changes_nothing() -> None:
    view = View(make(a=1, b=[2]))
    assert view["b"] == [2]
    view["a"] = 1
    assert view.changes() == []


def test_a_block_made_and_deleted_in_one_request_never_existed() -> None:
    view = View(make())
    view["x"] = 1
    del view["x"]
    assert view.changes() == []
    assert "x" not in view
    assert list(view) == []


def test_deleting_an_absent_block_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        del View(make())["x"]


def test_keys_len_and_iteration_merge_disk_overlay_and_own_changes() -> None:
    blocks = make(a=1, b=2, c=3)
    first = View(blocks)
    del first["a"]
    first["d"] = 4
    commit(blocks, first)
    view = View(blocks)
    del view["b"]
    view["e"] = 5
    assert sorted(view) == ["c", "d", "e"]
    assert len(view) == 3
    assert dict(view) == {"c": 3, "d": 4, "e": 5}


def test_a_conflict_is_seen_when_a_read_block_changed_since() -> None:
    blocks = make(a=1, b=1)
    reader, writer = View(blocks), View(blocks)
    assert reader["a"] == 1
    writer["a"] = 2
    commit(blocks, writer)
    assert reader.conflicts()


def test_changes_to_other_blocks_are_no_conflict() -> None:
    blocks = make(a=1, b=1)
    reader, writer = View(blocks), View(blocks)
    assert reader["a"] == 1
    writer["b"] = 2
    commit(blocks, writer)
    assert not reader.conflicts()


def test_listing_conflicts_with_a_new_key() -> None:
    blocks = make(a=1)
    reader, writer = View(blocks), View(blocks)
    assert len(reader) == 1
    writer["b"] = 2
    commit(blocks, writer)
    assert reader.conflicts()


def test_a_read_only_view_refuses_assignment_and_deletion() -> None:
    view = View(make(a=1), readonly=True)
    with pytest.raises(ReadOnly):
        view["a"] = 2
    with pytest.raises(ReadOnly):
        del view["a"]
    assert view.changes() == []


def test_a_value_without_an_encoding_is_named() -> None:
    view = View(make())
    view["tags"] = {1, 2}
    with pytest.raises(Unencodable, match="block 'tags'"):
        view.changes()


@pytest.mark.parametrize("key", [1, None, b"x"])
def test_a_key_that_is_not_text_is_refused(key: object) -> None:
    with pytest.raises(TypeError, match="a block's key is a str"):
        View(make())[key] = 1  # type: ignore[index]


def test_a_key_over_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 400 bytes"):
        View(make())["k" * 401] = 1


def test_shedding_after_a_checkpoint_keeps_newer_changes() -> None:
    disk = Disk()
    blocks = Blocks(disk, 0, 1 << 20)
    blocks.apply(1, [(b"a", wire.pack(1))])
    blocks.apply(2, [(b"b", wire.pack(2))])
    disk.blocks[b"a"] = wire.pack(1)
    blocks.rebase(1)
    while blocks.shedding:
        blocks.shed(1)
    assert View(blocks)["b"] == 2
    assert b"b" not in disk.reads
    assert View(blocks)["a"] == 1
    assert b"a" in disk.reads


operations = st.lists(
    st.tuples(
        st.sampled_from(["set", "delete", "commit", "drop", "checkpoint"]), st.sampled_from("abc"), st.integers(0, 3)
    ),
    max_size=40,
)


@given(operations)
def test_views_and_checkpoints_behave_like_a_dict(steps: list[tuple[str, str, int]]) -> None:
    disk = Disk()
    blocks = Blocks(disk, 0, 300)
    committed: dict[str, int] = {}
    pending = dict(committed)
    view = View(blocks)
    lsn = 0
    for action, key, value in steps:
        if action == "set":
            view[key] = value
            pending[key] = value
        elif action == "delete" and key in pending:
            del view[key]
            del pending[key]
        elif action == "commit":
            lsn += 1
            blocks.apply(lsn, view.changes())
            committed = dict(pending)
            view = View(blocks)
        elif action == "drop":
            pending = dict(committed)
            view = View(blocks)
        elif action == "checkpoint" and pending == committed:
            disk.blocks = {name.encode(): wire.pack(item) for name, item in committed.items()}
            blocks.rebase(lsn)
            blocks.shed(2)
            view = View(blocks)
        assert dict(view) == pending
