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

from orun.errors import EngineUnavailable

ZIG_VERSION = "0.17.0"
LIBRARY = "liborun.so"
GUARD = "orun-guard"
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

# Without the compiler's run-time library, which takes 5 s to build: memcpy and memset come from the
# process's libc, and the guard has its own. Atomics must stay atomic, so the library is not single-threaded.
_COMMON = ("-O", "ReleaseSafe", "-fstrip", "-fno-compiler-rt", "-fno-stack-check")
_RECIPES: dict[str, tuple[str, ...]] = {
    LIBRARY: ("build-lib", "root.zig", "-dynamic", "-fallow-shlib-undefined", *_COMMON),
    GUARD: ("build-exe", "guard.zig", "-fsingle-threaded", *_COMMON),
}
_MANIFEST = "manifest"
_COMPILE_SECONDS_MAX = 600
_HINT_CACHE = "set ORUN_CACHE_DIR to a folder that can be written to and that programs may run from"


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
        "sources": str(carried.library.parent if carried else source_dir()),
        "zig": _installed_zig(),
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


def source_dir() -> Path:
    """The Zig sources: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "_zig", package.parent / "zig"):
        if (folder / "root.zig").is_file():
            return folder
    raise EngineUnavailable(
        "the engine's Zig sources are missing from this installation",
        hint="reinstall orun: pip install --force-reinstall orun",
    )


def build_key() -> str:
    """Names a build by all that goes into it: sources, compiler, options and CPU."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(source_dir().glob("*.zig")):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    machine = _machine()
    parts = (ZIG_VERSION, machine, _cpu(machine), *_RECIPES[LIBRARY], *_RECIPES[GUARD])
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


def compile_command(output: str, target: str, cpu: str, cache: Path, emit: Path) -> list[str]:
    """The compiler's command line for one of the two files."""
    command, source, *options = _RECIPES[output]
    python = [sys.executable, "-P", "-m", "ziglang"]  # -P: a folder named ziglang here is not the compiler
    places = [f"-femit-bin={emit}", "--cache-dir", str(cache), "--global-cache-dir", str(cache)]
    name = ["--name", "orun", "-target", target, f"-mcpu={cpu}"]
    return [*python, command, str(source_dir() / source), *name, *options, *places]


def compile_all(jobs: dict[Path, list[str]]) -> None:
    """Run compilers side by side; raises EngineUnavailable with what the first that failed said."""
    import subprocess

    running = []
    try:
        for emit, command in jobs.items():
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            running.append((emit, process))
        for emit, process in running:
            _, said = process.communicate(timeout=_COMPILE_SECONDS_MAX)
            if process.returncode != 0 or not emit.is_file():
                raise _explain(process.returncode, said)
    except subprocess.TimeoutExpired as failure:
        raise EngineUnavailable(
            f"the Zig compiler did not finish within {_COMPILE_SECONDS_MAX} s",
            hint="look at the load of this machine, then try `orun engine build`",
        ) from failure
    finally:
        for _, process in running:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()


def require_zig() -> None:
    """Raise unless the compiler is there and is one that understands the sources."""
    import importlib.util

    if importlib.util.find_spec("ziglang") is None:
        raise EngineUnavailable(
            "the engine must be built for this machine, and the Zig compiler is not installed",
            hint=f'pip install "ziglang=={ZIG_VERSION}"',
        )
    installed = _installed_zig()
    if installed is not None and installed.split(".")[:2] != ZIG_VERSION.split(".")[:2]:
        raise EngineUnavailable(
            f"the engine needs the Zig compiler {ZIG_VERSION}, and {installed} is installed",
            hint=f'pip install "ziglang=={ZIG_VERSION}"',
        )


def _machine() -> str:
    machine = os.uname().machine if sys.platform == "linux" else ""
    if machine not in VARIANTS:
        here = f"{sys.platform} on {machine}" if machine else sys.platform
        raise EngineUnavailable(
            f"the engine runs on Linux (x86_64, aarch64), and this is {here}",
            hint="run orun in a Linux container or virtual machine",
        )
    return machine


def _installed_zig() -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version("ziglang")
    except importlib.metadata.PackageNotFoundError:
        return None


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
    require_zig()
    if progress is not None:
        progress("building the engine (once, about 5 s)…")
    if home.exists():
        _remove(home)
    work = home.with_name(f".{home.name}.{os.getpid()}")
    work.mkdir(parents=True)
    try:
        cache = cache_dir() / "zig"
        jobs = {
            work / name: compile_command(name, f"{machine}-linux-none", _cpu(machine), cache, work / name)
            for name in _RECIPES
        }
        compile_all(jobs)
        lines = [f"{name} {_sum(work / name)}\n" for name in _RECIPES]
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
        return listed.keys() == _RECIPES.keys() and all(_sum(home / name) == listed[name] for name in _RECIPES)
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
            f"cannot keep the engine in the cache: {where}: {failure.strerror or failure}", hint=_HINT_CACHE
        ) from failure


def _explain(code: int, said: str) -> EngineUnavailable:
    lines = [line for line in said.splitlines() if line.strip()]
    for sign, text in (
        ("NoSpaceLeft", "the disk is full"),
        ("ReadOnlyFileSystem", "the file system is read-only"),
        ("AccessDenied", "access is denied"),
        ("PermissionDenied", "access is denied"),
    ):
        if sign in said:
            message = f"cannot build the engine in {cache_dir()}: {text}"
            return EngineUnavailable(message, hint=f"free some space there, or {_HINT_CACHE}")
    if code < 0:
        return EngineUnavailable(
            f"the Zig compiler was killed by signal {-code}",
            hint="it needs about 300 MB of memory; then try `orun engine build`",
        )
    first = next((i for i, line in enumerate(lines) if "error:" in line), 0)
    shown = "\n".join(lines[first : first + 6]) or f"the Zig compiler failed with exit code {code}"
    return EngineUnavailable(
        f"the engine's sources do not compile:\n{shown}",
        hint=f"the sources are in {source_dir()}; if you did not change them, reinstall orun",
    )


def _abi_of(library: Path) -> int | None:
    import ctypes

    try:
        return int(ctypes.CDLL(str(library)).orun_abi()) & 0xFFFFFFFF
    except (OSError, AttributeError):
        return None
