"""Find the engine's two files: carried in the package, or built once into a cache.

The engine is a shared library and the guard program. A wheel for this platform carries both; otherwise
the Zig compiler from the `ziglang` package builds them into the cache, keyed by everything that goes
into them, so that an edited source or another kind of CPU gets its own. ``zig build`` is not used: it compiles
itself first, which takes more than a minute.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from orun.engine import compiler
from orun.engine.compiler import GUARD, HINT_CACHE, LIBRARY, RECIPES, ZIG_VERSION
from orun.errors import EngineUnavailable

PREBUILT = Path(__file__).parent / "prebuilt"

Progress = Callable[[str], None]

VARIANTS: dict[str, tuple[tuple[str, frozenset[str]], ...]] = {
    "x86_64": (
        ("x86_64_v3", frozenset(["avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "sse4_2", "popcnt"])),
        ("x86_64_v2", frozenset(["sse4_2", "ssse3", "popcnt", "cx16"])),
    ),
    "aarch64": (("generic+crc", frozenset(["crc32"])),),
}
"""What is built for each machine, the best first: Zig's name of the CPU and the features that it needs.

Not for the very CPU: an image that was built on one machine has to start on the next.
"""

_MANIFEST = "manifest"


class Built(NamedTuple):
    """Where the engine is."""

    library: Path
    guard: Path
    source: Literal["prebuilt", "cache"]
    key: str
    seconds: float | None = None
    """How long building took, when it was built just now."""


def ensure(progress: Progress | None = None, *, prebuilt: bool = True) -> Built:
    """The engine's files, built first if need be. ``progress`` gets a line when that takes a while."""
    machine = _machine()
    if prebuilt and (carried := _find_prebuilt(machine)) is not None:
        return carried
    key = build_key()
    home = cache_dir() / "engine" / key
    if _is_sound(home):
        return Built(home / LIBRARY, home / GUARD, "cache", key)
    with _cache_errors(), _build_lock(home):
        if _is_sound(home):  # somebody else has built it while we waited
            return Built(home / LIBRARY, home / GUARD, "cache", key)
        started = time.monotonic()
        _build_into(home, machine, progress)
        return Built(home / LIBRARY, home / GUARD, "cache", key, time.monotonic() - started)


def discard(built: Built) -> None:
    """Remove a cached build that does not load, so that the next ``ensure`` builds it anew."""
    if built.source == "cache":
        with _cache_errors():
            _remove(built.library.parent)


def info() -> dict[str, Any]:
    """What `orun engine info` prints. Builds nothing."""
    machine = _machine()
    carried = _find_prebuilt(machine)
    key = build_key() if carried is None else carried.key
    home = cache_dir() / "engine" / key
    found = carried or (Built(home / LIBRARY, home / GUARD, "cache", key) if _is_sound(home) else None)
    return {
        "built": found is not None,
        "source": found.source if found else None,
        "library": str(found.library) if found else None,
        "guard": str(found.guard) if found else None,
        "abi": _abi_of(found.library) if found else None,
        "key": key,
        "cache_dir": str(cache_dir()),
        "sources": str(carried.library.parent if carried else compiler.source_dir()),
        "zig": compiler.installed_zig(),
        "zig_needed": ZIG_VERSION,
        "machine": machine,
        "cpu": _cpu(machine),
        "cpu_features": sorted(cpu_features()),
    }


def cache_dir() -> Path:
    """Where builds are kept."""
    if chosen := os.environ.get("ORUN_CACHE_DIR"):
        return Path(chosen)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "orun"
    return Path(os.path.expanduser("~")) / ".cache" / "orun"


def build_key() -> str:
    """Names a build by all that goes into it: sources, compiler, options and CPU."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(compiler.source_dir().glob("*.zig")):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    machine = _machine()
    parts = (ZIG_VERSION, machine, _cpu(machine), *RECIPES[LIBRARY], *RECIPES[GUARD])
    digest.update("\0".join(parts).encode())
    return digest.hexdigest()[:24]


def cpu_features() -> frozenset[str]:
    """The features of this CPU, by the kernel's names."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            head = file.read(1 << 14)  # the first of what may be hundreds of cores
    except OSError:
        return frozenset()
    for line in head.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _cpu(machine: str) -> str:
    """The best of the variants that this CPU can run."""
    features = cpu_features()
    return next((name for name, needed in VARIANTS[machine] if needed <= features), "baseline")


def _machine() -> str:
    machine = os.uname().machine if sys.platform == "linux" else ""
    if machine not in VARIANTS:
        here = f"{sys.platform} on {machine}" if machine else sys.platform
        raise EngineUnavailable(
            f"the engine runs on Linux (x86_64, aarch64), and this is {here}",
            hint="run orun in a Linux container or virtual machine",
        )
    return machine


def _find_prebuilt(machine: str) -> Built | None:
    guard = PREBUILT / GUARD
    if not os.access(guard, os.X_OK):  # none, or an installer that drops permissions
        return None
    features = cpu_features()
    for name, needed in VARIANTS[machine]:
        library = PREBUILT / variant_file(name)
        if needed <= features and library.is_file():
            return Built(library, guard, "prebuilt", name)
    return None


def variant_file(name: str) -> str:
    """The file name of a prebuilt library."""
    return f"liborun-{name.partition('+')[0]}.so"


def _build_into(home: Path, machine: str, progress: Progress | None) -> None:
    compiler.require_zig()
    if progress is not None:
        progress("building the engine (once, about 5 s)…")
    if home.exists():
        _remove(home)
    work = home.with_name(f".{home.name}.{os.getpid()}")
    work.mkdir(parents=True)
    try:
        cache = cache_dir() / "zig"
        jobs = {
            work / name: compiler.compile_command(name, f"{machine}-linux-none", _cpu(machine), cache, work / name)
            for name in RECIPES
        }
        compiler.compile_all(jobs)
        lines = [f"{name} {_sum(work / name)}\n" for name in RECIPES]
        (work / _MANIFEST).write_text("".join(lines))
        os.rename(work, home)
    finally:
        _delete(work)


def _sum(path: Path) -> str:
    content = path.read_bytes()
    return f"{len(content)} {zlib.crc32(content):08x}"


def _is_sound(home: Path) -> bool:
    """Are both files there, as they were built? A truncated library would kill who maps it."""
    try:
        lines = (home / _MANIFEST).read_text().splitlines()
        listed = dict(line.split(" ", 1) for line in lines)
        return listed.keys() == RECIPES.keys() and all(_sum(home / name) == listed[name] for name in RECIPES)
    except (OSError, ValueError):
        return False


def _remove(home: Path) -> None:
    aside = home.with_name(f".{home.name}.{os.getpid()}.old")
    with contextlib.suppress(FileNotFoundError):
        os.rename(home, aside)
    _delete(aside)


def _delete(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _build_lock(home: Path) -> Iterator[None]:
    """One builder at a time for each build; where files cannot be locked, two may build and one wins."""
    import fcntl

    home.parent.mkdir(parents=True, exist_ok=True)
    with open(home.with_name(f".{home.name}.lock"), "wb") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _cache_errors() -> Iterator[None]:
    try:
        yield
    except OSError as failure:
        where = failure.filename or cache_dir()
        raise EngineUnavailable(
            f"cannot keep the engine in the cache: {where}: {failure.strerror or failure}", hint=HINT_CACHE
        ) from failure


def _abi_of(library: Path) -> int | None:
    import ctypes

    try:
        return int(ctypes.CDLL(str(library)).orun_abi()) & 0xFFFFFFFF
    except (OSError, AttributeError):
        return None
