"""Calls the Zig compiler on the engine's sources, and says what went wrong when it fails."""

from __future__ import annotations

import sys
from pathlib import Path

from orun.errors import EngineUnavailable

ZIG_VERSION = "0.17.0"
LIBRARY = "liborun.so"
GUARD = "orun-guard"
HINT_CACHE = "set ORUN_CACHE_DIR to a folder that can be written to and that programs may run from"
_COMPILE_SECONDS_MAX = 600

# Without the compiler's run-time library, which takes 5 s to build: memcpy and memset come from the
# process's libc, and the guard has its own. Atomics must stay atomic, so the library is not single-threaded.
_COMMON = ("-O", "ReleaseSafe", "-fstrip", "-fno-compiler-rt", "-fno-stack-check")
RECIPES: dict[str, tuple[str, ...]] = {
    LIBRARY: ("build-lib", "root.zig", "-dynamic", "-fallow-shlib-undefined", *_COMMON),
    GUARD: ("build-exe", "guard.zig", "-fsingle-threaded", *_COMMON),
}


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


def compile_command(output: str, target: str, cpu: str, cache: Path, emit: Path) -> list[str]:
    """The compiler's command line for one of the two files."""
    command, source, *options = RECIPES[output]
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
                raise explain(process.returncode, said)
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
    installed = installed_zig()
    if installed is not None and installed.split(".")[:2] != ZIG_VERSION.split(".")[:2]:
        raise EngineUnavailable(
            f"the engine needs the Zig compiler {ZIG_VERSION}, and {installed} is installed",
            hint=f'pip install "ziglang=={ZIG_VERSION}"',
        )


def installed_zig() -> str | None:
    """The version of the compiler, None when there is none."""
    import importlib.metadata

    try:
        return importlib.metadata.version("ziglang")
    except importlib.metadata.PackageNotFoundError:
        return None


def explain(code: int, said: str) -> EngineUnavailable:
    """What a failed compiler's exit code and last words mean."""
    lines = [line for line in said.splitlines() if line.strip()]
    for sign, text in (
        ("NoSpaceLeft", "the disk is full"),
        ("ReadOnlyFileSystem", "the file system is read-only"),
        ("AccessDenied", "access is denied"),
        ("PermissionDenied", "access is denied"),
    ):
        if sign in said:
            message = f"cannot build the engine: {text}"
            return EngineUnavailable(message, hint=f"make room in the cache, or {HINT_CACHE}")
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
