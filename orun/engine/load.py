"""Load the engine: cffi's out-of-line ABI mode, 2 ms, no compiler and no parsing of declarations."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from orun.engine import build
from orun.errors import EngineUnavailable


class Engine(NamedTuple):
    """The loaded library. ``lib`` has the functions of zig/api.zig, ``ffi`` makes their arguments."""

    ffi: Any
    lib: Any
    built: build.Built


@functools.cache
def engine() -> Engine:
    """The engine of this process, built first when it has to be. Raises EngineUnavailable."""
    built = build.ensure()
    try:
        return _open(built)
    except EngineUnavailable:
        # A damaged cache entry is built again, once; a prebuilt file that does not fit is passed over.
        build.discard(built)
        return _open(build.ensure(prebuilt=False))


def _open(built: build.Built) -> Engine:
    from orun.engine import _abi

    try:
        lib = _abi.ffi.dlopen(str(built.library))
        found = lib.orun_abi()
    except (OSError, AttributeError) as failure:
        raise EngineUnavailable(
            f"cannot load the engine: {failure}",
            hint="set ORUN_CACHE_DIR to a folder that programs may run from, or run `orun engine build`",
        ) from failure
    if found != _abi.ABI:
        raise EngineUnavailable(
            f"the engine {built.library} speaks ABI {found:#x}, and this orun needs {_abi.ABI:#x}",
            hint="in a checkout run `python -m orun.engine.generate`; otherwise reinstall orun",
        )
    return Engine(_abi.ffi, lib, built)
