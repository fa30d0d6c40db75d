"""The Zig side: its own tests, its format, and that it compiles for every machine."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from orun.engine import build, compiler, generate

ZIG = Path(__file__).parents[3] / "zig"
CACHE = build.cache_dir() / "zig"


def run_zig(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "ziglang", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def with_cache(*arguments: str) -> tuple[str, ...]:
    return (*arguments, "--cache-dir", str(CACHE), "--global-cache-dir", str(CACHE))


@pytest.mark.parametrize("program", ["root.zig", "guard.zig"])
def test_the_tests_beside_the_code_pass(program: str) -> None:
    run_zig(*with_cache("test", str(ZIG / program)))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names an x86 CPU")
def test_the_tests_pass_optimised_on_a_cpu_without_crc_instructions() -> None:
    run_zig(*with_cache("test", str(ZIG / "root.zig"), "-O", "ReleaseSafe", "-fstrip", "-mcpu=x86_64"))


@pytest.mark.parametrize("machine", list(build.VARIANTS))
@pytest.mark.parametrize("name", [compiler.LIBRARY, compiler.GUARD])
def test_it_compiles_for_every_machine(machine: str, name: str, tmp_path: Path) -> None:
    cpu = build.VARIANTS[machine][-1][0]
    output = tmp_path / name
    compiler.compile_all({output: compiler.compile_command(name, f"{machine}-linux-none", cpu, CACHE, output)})
    assert output.stat().st_size < 100_000


def test_the_sources_are_formatted() -> None:
    run_zig("fmt", "--check", str(ZIG))


def test_the_generated_declarations_are_fresh() -> None:
    assert generate.TARGET.read_text() == generate.render(), "run `python -m orun.engine.generate`"


@pytest.mark.parametrize("source", sorted(ZIG.glob("*.zig")), ids=lambda path: path.name)
def test_house_rules_of_the_zig_sources(source: Path) -> None:
    text = source.read_text()
    assert text.startswith("//! "), "a file says first what it is for"
    for number, line in enumerate(text.splitlines(), 1):
        assert len(line) <= 115, f"{source.name}:{number} is too long"
        if "catch unreachable" in line:
            assert "//" in line, f"{source.name}:{number} does not say why that cannot happen"
    if source.name not in ("build.zig", "ring_test.zig"):
        assert not re.search(r"std\.debug\.print|@panic\(|catch \{\}", text)
