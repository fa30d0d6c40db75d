"""Settings: where they come from, what is refused and how it is said."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from orun import project, settings_file
from orun.errors import UsageError
from orun.settings import ChildSettings, Settings
from orun.units import format_duration, format_size, parse_duration, parse_size

ROOT = Path(__file__).resolve().parents[2]


def load(folder: Path, text: str | None = None, *, name: str = "orun.toml", **more: Any) -> settings_file.Loaded:
    if text is not None:
        (folder / name).write_text(text)
    return settings_file.load(start=str(folder), environ=more.pop("environ", {}), **more)


def refusal(folder: Path, text: str | None = None, **more: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load(folder, text, **more)
    return caught.value


def test_without_anything_the_defaults_hold(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert loaded.settings == Settings()
    assert set(loaded.origins.values()) == {"default"}


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    text = "[store]\ncheckpoints_kept = 1\nexport_every = 1\nexports_kept = 1\n"
    loaded = load(
        tmp_path,
        text,
        environ={"ORUN_STORE_CHECKPOINTS_KEPT": "2", "ORUN_STORE_EXPORT_EVERY": "2"},
        overrides={"store.checkpoints_kept": "3"},
    )
    store = loaded.settings.store
    assert (store.checkpoints_kept, store.export_every, store.exports_kept) == (3, 2, 1)
    assert loaded.origins["store.checkpoints_kept"] == "--set store.checkpoints_kept"
    assert loaded.origins["store.export_every"] == "ORUN_STORE_EXPORT_EVERY"
    assert loaded.origins["store.exports_kept"] == f"{tmp_path}/orun.toml:4"


def test_the_nearest_file_counts_and_orun_toml_wins_over_pyproject(tmp_path: Path) -> None:
    (tmp_path / "orun.toml").write_text("[logs]\nfiles = 1\n")
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert load(inner).settings.logs.files == 1
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\nname = 'orun-user'\n")
    assert load(inner).settings.logs.files == 1
    (tmp_path / "a" / "pyproject.toml").write_text("[tool.orun.logs]\nfiles = 2\n")
    loaded = load(inner)
    assert (loaded.settings.logs.files, loaded.file) == (2, f"{tmp_path}/a/pyproject.toml")
    assert loaded.origins["logs.files"].endswith("pyproject.toml:2")
    (tmp_path / "a" / "orun.toml").write_text("[runtime]\nintensity = 9\n")
    loaded = load(inner)
    assert (loaded.settings.logs.files, loaded.settings.runtime.intensity) == (5, 9)


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("[stroe]\n", "orun.toml:1", "store"),
        ("[store]\n\ncheckpoint_kept = 3\n", "orun.toml:3", "store.checkpoints_kept"),
        ("sate_dir = 'x'\n", "orun.toml:1", "state_dir"),
        ("[[children]]\nname='a'\ncomand=['x']\n", "orun.toml:3", "command"),
    ],
)
def test_an_unknown_key_is_refused_with_its_place_and_the_nearest_name(
    tmp_path: Path, text: str, place: str, hint: str
) -> None:
    error = refusal(tmp_path, text)
    assert place in error.message
    assert error.hint is not None
    assert hint in error.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[store]\nring_bytes = true\n", "store.ring_bytes: expected a size such as 4MB, got True"),
        ("[store]\nring_bytes = '4 parsecs'\n", "store.ring_bytes: expected a size"),
        ("[store]\nring_bytes = 3000000\n", "store.ring_bytes must be a power of two"),
        ("[store]\nring_bytes = 1.5\n", "store.ring_bytes: expected a whole number"),
        ("[runtime]\nperiod = 'soon'\n", "runtime.period: expected a duration such as"),
        ("[runtime]\nperiod = nan\n", "runtime.period: expected a finite number"),
        ("[runtime]\nbackoff = -1\n", "runtime.backoff must not be negative"),
        ("[runtime]\nstrategy = 'one'\n", "expected one of one_for_one, one_for_all, rest_for_one"),
        ("[runtime]\nstandby = 2\n", "runtime.standby must be 0 or 1"),
        ("[runtime]\nhttp = '4000'\n", "runtime.http must be HOST:PORT"),
        ("[agent]\npath = 3\n", "agent.path: expected text, got 3"),
        ("[agent]\nqueue_limit = 0\n", "agent.queue_limit must be at least 1"),
        ("[agent]\nrequest_bytes_max = '64MB'\n", "over half of store.ring_bytes"),
        ("store = 3\n", "store must be a table, [store]"),
        ("children = 3\n", "children must be tables, [[children]]"),
        ("[[children]]\ncommand = ['x']\n", "name is missing"),
        ("[[children]]\nname = 'a'\n", "command is missing"),
        ("[[children]]\nname = '../a'\ncommand = ['x']\n", "letters, digits"),
        ("[[children]]\nname = 'a'\ncommand = 'x'\n", "expected a list of texts"),
        ("[[children]]\nname = 'a'\ncommand = ['x']\nready = 'port:web'\n", "port:NUMBER"),
        ("[[children]]\nname = 'a'\ncommand = ['x']\nenv = {A = 1}\n", "expected a table of texts"),
        ("[[children]]\nname = 'a'\ncommand = ['x']\n" * 2, "taken by another child"),
        ("[store\n", "orun.toml: "),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_and_named(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path, text).message


def test_a_file_that_is_not_utf8_is_refused_with_the_byte(tmp_path: Path) -> None:
    (tmp_path / "orun.toml").write_bytes(b"# \xff\n")
    assert "byte 2 is 0xff" in refusal(tmp_path).message


def test_units_are_read_in_files_variables_and_flags(tmp_path: Path) -> None:
    text = "[store]\nring_bytes = '16MB'\ncheckpoint_interval = '10m'\n"
    loaded = load(tmp_path, text, environ={"ORUN_RUNTIME_PERIOD": "1m"}, overrides={"logs.rate": "64k"})
    assert loaded.settings.store.ring_bytes == 16 << 20
    assert loaded.settings.store.checkpoint_interval == 600.0
    assert loaded.settings.runtime.period == 60.0
    assert loaded.settings.logs.rate == 64 << 10


def test_children_are_read_whole(tmp_path: Path) -> None:
    text = """
        [[children]]
        name = "web"
        command = ["python3", "-m", "http.server"]
        env = {A = "1"}
        ready = "port:8000"
        success_codes = [0, 3]
        memory_max = "1GB"
    """
    assert load(tmp_path, text).settings.children == (
        ChildSettings(
            name="web",
            command=("python3", "-m", "http.server"),
            env={"A": "1"},
            ready="port:8000",
            success_codes=(0, 3),
            memory_max=1 << 30,
        ),
    )


def test_a_variable_of_a_section_that_names_no_key_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, environ={"ORUN_STORE_CHECKPOINT_KEPT": "3"})
    assert error.hint == "did you mean 'ORUN_STORE_CHECKPOINTS_KEPT'?"
    assert load(tmp_path, environ={"ORUN_READY_FD": "3", "ORUN_LOG": "x"}).settings == Settings()


def test_an_override_needs_a_key_and_a_value() -> None:
    assert settings_file.split_override("a.b=c=d") == ("a.b", "c=d")
    with pytest.raises(UsageError, match=r"section\.key=value"):
        settings_file.split_override("store.ring_bytes")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30.0), ("500ms", 0.5), ("1h30m", 5400.0), ("2d", 172800.0), ("7", 7.0), ("0.5s", 0.5), (" 1m ", 60.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "1x", "1s2", "-1s", "1..2s", "inf", "1 s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4MB", 4 << 20), ("4MiB", 4 << 20), ("4m", 4 << 20), ("512", 512), ("1.5k", 1536), ("1 GB", 1 << 30)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "4X", "-4MB", "4MBB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_size(text)


def test_durations_and_sizes_for_people() -> None:
    assert [format_duration(value) for value in (0.0034, 4.25, 65, 3900, 200_000)] == [
        "3.4ms",
        "4.25s",
        "1m05s",
        "1h05m",
        "2d07h",
    ]
    assert [format_size(value) for value in (812, 4.2 * (1 << 20), 1 << 31)] == ["812 B", "4.2 MB", "2.0 GB"]


def test_the_state_directory_is_found(tmp_path: Path) -> None:
    def find(flag: str | None = None, start: Path = tmp_path, **environ: str) -> str:
        return project.find_state_dir(flag, start=str(start), environ=environ)

    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert find(start=inner) == f"{inner}/.orun"
    (tmp_path / ".orun").mkdir()
    assert find(start=inner) == f"{tmp_path}/.orun"
    (tmp_path / "a" / "orun.toml").write_text("")
    assert find(start=inner) == f"{tmp_path}/a/.orun"
    (tmp_path / "a" / "orun.toml").write_text("state_dir = 'kept'")
    assert find(start=inner) == f"{tmp_path}/a/kept"
    assert find(start=inner, ORUN_STATE_DIR="here") == f"{inner}/here"
    assert find("there", start=inner, ORUN_STATE_DIR="here") == f"{inner}/there"


def test_every_setting_is_read_somewhere() -> None:
    """A setting that nothing reads promises what is not kept."""
    read = {
        node.attr
        for path in (ROOT / "orun").rglob("*.py")
        if path.name not in ("settings.py", "settings_file.py", "settings_check.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    names = {key.name.rpartition(".")[2] for key in settings_file.keys().values()}
    names |= {key.name for key in settings_file.keys_of(ChildSettings)}
    assert names - read == set()
