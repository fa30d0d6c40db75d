"""Regenerate ``_abi.py``, the declarations by which Python calls the engine, from the Zig types.

python -m orun.engine.generate            write it
python -m orun.engine.generate --check    exit 1 when it is stale
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
import tempfile
from pathlib import Path

from orun.engine import build

TARGET = Path(__file__).with_name("_abi.py")
_BANNER = '''# ruff: noqa
# fmt: off
"""Generated from the Zig types by `python -m orun.engine.generate`; do not edit."""
'''


def render() -> str:
    """The text of ``_abi.py`` for the sources as they are."""
    import cffi

    built = build.ensure(prebuilt=False)
    library = ctypes.CDLL(str(built.library))
    library.orun_cdef.restype = ctypes.c_char_p
    library.orun_abi.restype = ctypes.c_uint32
    maker = cffi.FFI()
    maker.cdef(library.orun_cdef().decode("ascii"))
    maker.set_source("orun.engine._abi", None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "_abi.py"
        with contextlib.redirect_stdout(io.StringIO()):  # cffi says what it writes
            maker.emit_python_code(str(path))
        made = path.read_text(encoding="ascii")
    return f"{_BANNER}{made}\nABI = {library.orun_abi()}\n"


def main(arguments: list[str]) -> int:
    """Write the file, or check it; returns the exit code."""
    wanted = render()
    if arguments == ["--check"]:
        if TARGET.is_file() and TARGET.read_text(encoding="ascii") == wanted:
            return 0
        sys.stderr.write(f"{TARGET} is stale; run `python -m orun.engine.generate`\n")
        return 1
    TARGET.write_text(wanted, encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
