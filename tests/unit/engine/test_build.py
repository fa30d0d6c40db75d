"""Finding and building the engine, and what is said when that fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orun.engine import build, compiler, load
from orun.errors import EngineUnavailable

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own; the compiler's own cache is shared, so that builds stay quick."""
    home = tmp_path / "cache"
    home.mkdir()
    warm = build.cache_dir() / "zig"
    warm.mkdir(parents=True, exist_ok=True)
    (home / "zig").symlink_to(warm)
    monkeypatch.setenv("ORUN_CACHE_DIR", str(home))
    return home


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> build.Built:
    """A build in a cache of the test's own, copied there."""
    shared = build.ensure()
    home = tmp_path / "cache"
    shutil.copytree(shared.library.parent, home / "engine" / shared.key)
    monkeypatch.setenv("ORUN_CACHE_DIR", str(home))
    copied = build.ensure()
    assert copied.seconds is None
    return copied


@pytest.fixture
def private_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sources = tmp_path / "zig"
    shutil.copytree(PROJECT / "zig", sources, ignore=shutil.ignore_patterns(".zig-cache"))
    monkeypatch.setattr(compiler, "source_dir", lambda: sources)
    return sources


def test_built_once_then_found(private_cache: Path) -> None:
    said: list[str] = []
    first = build.ensure(said.append)
    again = build.ensure(said.append)
    assert said == ["building the engine (once, about 5 s)…"]
    assert first.seconds is not None
    assert again == first._replace(seconds=None)
    assert first.library.parent.parent == private_cache / "engine"
    left = {path.name for path in first.library.parent.iterdir()}
    assert left == {"liborun.so", "orun-guard", "manifest"}


@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing", "guard", "manifest"])
def test_a_damaged_cache_entry_is_noticed(built: build.Built, damage: str) -> None:
    home = built.library.parent
    if damage == "truncated":
        os.truncate(built.library, 1000)
    elif damage == "garbage":
        built.library.write_bytes(bytes(built.library.stat().st_size))
    elif damage == "missing":
        built.library.unlink()
    elif damage == "guard":
        built.guard.write_bytes(b"#!/bin/true")
    else:
        (home / "manifest").write_text("nonsense")
    assert not build._is_sound(home)


def test_a_damaged_cache_entry_is_built_again(private_cache: Path) -> None:
    home = private_cache / "engine" / build.build_key()
    home.mkdir(parents=True)
    (home / compiler.LIBRARY).write_bytes(b"garbage")
    again = build.ensure()
    assert again.seconds is not None
    assert load._open(again).lib.orun_crc32c(b"123456789", 9, 0) == 0xE3069283


def test_a_library_of_another_abi_is_built_again_once_and_then_refused(
    private_cache: Path, private_sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = private_sources / "status.zig"
    status.write_text(status.read_text().replace("page_header = -15", "page_header = -16"))
    load.engine.cache_clear()
    with pytest.raises(EngineUnavailable, match="speaks ABI") as caught:
        load.engine()
    assert caught.value.hint is not None
    assert "orun.engine.generate" in caught.value.hint
    load.engine.cache_clear()


def test_a_compiler_error_names_file_and_line(private_cache: Path, private_sources: Path) -> None:
    broken = private_sources / "record.zig"
    broken.write_text(broken.read_text() + "\nconst wrong: u32 = missing_name;\ncomptime { _ = wrong; }\n")
    with pytest.raises(EngineUnavailable, match=r"record\.zig:\d+:\d+: error: .*missing_name") as caught:
        build.ensure()
    assert caught.value.code == 13
    assert not list((private_cache / "engine").glob("[!.]*")), "nothing half-built is left"


def test_another_source_is_another_build(private_cache: Path, private_sources: Path) -> None:
    before = build.build_key()
    (private_sources / "clock.zig").write_text((private_sources / "clock.zig").read_text() + "\n")
    assert build.build_key() != before


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ORUN_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(EngineUnavailable, match="cannot keep the engine in the cache") as caught:
        build.ensure()
    assert caught.value.hint is not None
    assert "ORUN_CACHE_DIR" in caught.value.hint


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("error: unable to write: NoSpaceLeft", "the disk is full"),
        ("error: failed to open: AccessDenied", "access is denied"),
        ("error: ReadOnlyFileSystem", "read-only"),
    ],
)
def test_the_compilers_troubles_with_the_disk_are_named(said: str, expected: str) -> None:
    failure = compiler.explain(1, said)
    assert expected in failure.message
    assert "ORUN_CACHE_DIR" in str(failure.hint)


def test_a_compiler_that_was_killed_is_named() -> None:
    assert "killed by signal 9" in compiler.explain(-9, "").message


def run_python(code: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ORUN_CACHE_DIR": str(tmp_path / "cache"), **environment},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


ENSURE = """
import sys
from orun.engine import build
from orun.errors import EngineUnavailable
{0}
try:
    build.ensure()
except EngineUnavailable as failure:
    print(failure.message, "|", failure.hint)
    sys.exit(failure.code)
"""


def test_without_the_compiler_it_says_what_to_install(tmp_path: Path) -> None:
    hide = "import importlib.util as u; find = u.find_spec\n"
    hide += "u.find_spec = lambda name, *rest: None if name == 'ziglang' else find(name, *rest)"
    done = run_python(ENSURE.format(hide), tmp_path)
    assert done.returncode == 13, done.stderr
    assert "the Zig compiler is not installed" in done.stdout
    assert 'pip install "ziglang==0.17.0"' in done.stdout


def test_a_compiler_that_does_not_work(tmp_path: Path) -> None:
    fake = tmp_path / "path" / "ziglang"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("")
    (fake / "__main__.py").write_text("import sys; sys.exit('error: this is no compiler')")
    done = run_python(ENSURE.format(""), tmp_path, PYTHONPATH=str(fake.parent))
    assert done.returncode == 13, done.stderr
    assert "this is no compiler" in done.stdout


def test_on_another_system_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(EngineUnavailable, match="runs on Linux"):
        build.ensure()


def test_builders_at_the_same_time_end_with_one_build(private_cache: Path) -> None:
    code = "from orun.engine import build; b = build.ensure(); print(b.library, b.seconds is not None)"
    builders = [
        subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    answers = [builder.communicate()[0].split() for builder in builders]
    assert len({path for path, _ in answers}) == 1
    assert sorted(built for _, built in answers) == ["False", "False", "True"]


def test_a_prebuilt_library_is_used_when_the_cpu_can(
    built: build.Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried = tmp_path / "prebuilt"
    carried.mkdir()
    monkeypatch.setattr(build, "PREBUILT", carried)
    shutil.copy(built.guard, carried / compiler.GUARD)
    variants = build.VARIANTS[os.uname().machine]
    for name, _ in variants:
        shutil.copy(built.library, carried / build.variant_file(name))
    assert build.ensure() == build.Built(
        carried / build.variant_file(variants[0][0]), carried / compiler.GUARD, "prebuilt", variants[0][0]
    )
    assert build.ensure(prebuilt=False).source == "cache"
    nothing_fits = {os.uname().machine: (("impossible", frozenset(["no such feature"])),)}
    monkeypatch.setattr(build, "VARIANTS", nothing_fits)
    assert build.ensure().source == "cache"


def test_info_tells_what_is_there(built: build.Built) -> None:
    found = build.info()
    assert (found["built"], found["source"], found["key"]) == (True, "cache", built.key)
    assert found["abi"] == load._open(built).lib.orun_abi()
    assert found["zig"].startswith("0.17")


def test_info_builds_nothing(private_cache: Path) -> None:
    found = build.info()
    assert (found["built"], found["library"], found["abi"]) == (False, None, None)
    assert not (private_cache / "engine").exists()


def test_looking_for_the_engine_imports_little() -> None:
    code = "import sys, orun.engine.build; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    heavy = {"asyncio", "cffi", "subprocess", "importlib.metadata", "shutil", "hashlib", "dataclasses"}
    assert not heavy & set(done.stdout.split())
