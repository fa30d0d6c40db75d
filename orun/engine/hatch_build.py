"""Hatchling's build hook: what a wheel carries beside the Python files.

    orun/_zig/                 the engine's sources, to build it where no prebuilt file fits
    orun/engine/prebuilt/      the library, one for each CPU level, and the guard program
    share/man, share/...       manual pages and completions

``ORUN_NO_ENGINE=1`` makes a pure wheel that builds its engine at first use. ``ORUN_TARGET=aarch64``
builds for another machine. An editable install builds nothing.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import (  # type: ignore[import-not-found,unused-ignore]
    BuildHookInterface,
)

_COMPLETIONS = {
    "orun.bash": "share/bash-completion/completions/orun",
    "_orun": "share/zsh/site-functions/_orun",
    "orun.zsh": "share/zsh/site-functions/_orun",
    "orun.fish": "share/fish/vendor_completions.d/orun.fish",
}
# The library needs no other one, not even libc by name, so one file serves glibc and musl.
_TAGS = "py3-none-manylinux_2_17_{0}.manylinux2014_{0}.musllinux_1_1_{0}"


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc,unused-ignore]
    """Compiles the engine and adds the files that do not lie in the package."""

    _work: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds."""
        if self.target_name != "wheel" or version == "editable":
            return
        root = Path(self.root)
        include: dict[str, str] = build_data["force_include"]
        for source in sorted((root / "zig").glob("*.zig")):
            include[str(source)] = f"orun/_zig/{source.name}"
        build_data["shared_data"].update(_shared(root))
        machine = os.environ.get("ORUN_TARGET") or platform.machine()
        if os.environ.get("ORUN_NO_ENGINE") == "1" or sys.platform != "linux":
            return
        build, compiler = _load_build(root)
        if machine not in build.VARIANTS:
            return
        self._work = tempfile.TemporaryDirectory(prefix="orun-wheel-")
        for path in _compile(build, compiler, machine, Path(self._work.name)):
            include[str(path)] = f"orun/engine/prebuilt/{path.name}"
        build_data["pure_python"] = False
        build_data["tag"] = _TAGS.format(machine)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by hatchling afterwards."""
        if self._work is not None:
            self._work.cleanup()


def _load_build(root: Path) -> tuple[Any, Any]:
    """The engine's own modules of the tree that is built, whatever orun the build environment has."""
    sys.path.insert(0, str(root))
    try:
        from orun.engine import build, compiler
    finally:
        sys.path.remove(str(root))
    return build, compiler


def _compile(build: Any, compiler: Any, machine: str, work: Path) -> list[Path]:
    compiler.require_zig()
    cache = work / "cache"
    target = f"{machine}-linux-none"
    out = work / "out"
    out.mkdir()
    guard_cpu = build.VARIANTS[machine][-1][0]
    jobs = {
        out / compiler.GUARD: compiler.compile_command(compiler.GUARD, target, guard_cpu, cache, out / compiler.GUARD)
    }
    for name, _ in build.VARIANTS[machine]:
        path = out / build.variant_file(name)
        jobs[path] = compiler.compile_command(compiler.LIBRARY, target, name, cache, path)
    for path, command in jobs.items():
        compiler.compile_all({path: command})  # one by one: a build machine may be small
        path.chmod(0o755)
    return list(jobs)


def _shared(root: Path) -> dict[str, str]:
    shared = {}
    for section in ("1", "5"):
        for page in sorted((root / "man").rglob(f"*.{section}")):
            shared[str(page)] = f"share/man/man{section}/{page.name}"
    for name, place in _COMPLETIONS.items():
        if (root / "completions" / name).is_file():
            shared[str(root / "completions" / name)] = place
    return shared
