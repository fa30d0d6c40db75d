"""Where things are: the settings file, the state directory, and the runtime that serves it.

This module is on the path of every command that must be quick, so it imports next to nothing:
``tomllib`` is loaded only when a settings file says something about orun.
"""

from __future__ import annotations

import os

from orun.errors import NotFound, NotRunning, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SETTINGS_NAMES = ("orun.toml", "pyproject.toml")
STATE_DIR_DEFAULT = ".orun"
GUARD = b"orun-guard"
"""The name of the process that stands for a running tree."""


def find_settings_file(start: str) -> str | None:
    """The nearest ``orun.toml``, or ``pyproject.toml`` with a ``[tool.orun]`` table, upwards from ``start``."""
    folder = os.path.abspath(start)
    while True:
        own, shared = (os.path.join(folder, name) for name in SETTINGS_NAMES)
        if os.path.isfile(own):
            return own
        if os.path.isfile(shared) and "orun" in _read(shared) and read_table(shared) is not None:
            return shared
        parent = os.path.dirname(folder)
        if parent == folder:
            return None
        folder = parent


def read_table(path: str) -> dict[str, Any] | None:
    """The settings in a file: all of ``orun.toml``, or ``[tool.orun]`` of ``pyproject.toml`` (None: it has none)."""
    import tomllib

    try:
        document = tomllib.loads(_read(path))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}", hint="correct the file; `orun config --check` reads it again") from error
    if os.path.basename(path) != "pyproject.toml":
        return document
    tool = document.get("tool")
    table = tool.get("orun") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise UsageError(f"{path}: tool.orun must be a table")
    return table


def find_state_dir(flag: str | None, *, start: str | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """The state directory, absolute: the flag, ``ORUN_STATE_DIR``, the settings file, or the nearest ``.orun``.

    A relative path in the settings file counts from that file, so that every command finds the same directory
    from anywhere inside the project.
    """
    start = start or os.getcwd()
    named = flag or environ.get("ORUN_STATE_DIR")
    if named:
        return os.path.abspath(os.path.join(start, os.path.expanduser(named)))
    path = find_settings_file(start)
    if path is not None:
        return os.path.join(os.path.dirname(path), _state_dir_setting(path))
    folder = os.path.abspath(start)
    while not os.path.isdir(os.path.join(folder, STATE_DIR_DEFAULT)):
        parent = os.path.dirname(folder)
        if parent == folder:
            return os.path.join(os.path.abspath(start), STATE_DIR_DEFAULT)
        folder = parent
    return os.path.join(folder, STATE_DIR_DEFAULT)


def require_state_dir(state_dir: str) -> str:
    """The same path, or NotFound when nothing was ever started there."""
    if not os.path.isdir(state_dir):
        raise NotFound(
            f"no orun state in {state_dir}",
            hint="start an agent with `orun run`, or point --state-dir (ORUN_STATE_DIR) at its state",
        )
    return state_dir


def read_runtime(state_dir: str) -> dict[str, Any]:
    """What the serving runtime says about itself (run/runtime.json). Raises NotFound or NotRunning."""
    document = running(require_state_dir(state_dir))
    if document is None:
        hint = "start it with `orun run`"
        if os.path.exists(os.path.join(state_dir, "logs", "runtime.log")):
            hint += "; `orun logs runtime` tells how the last one ended"
        raise NotRunning(f"nothing is running in {state_dir}", hint=hint)
    return document


def running(state_dir: str) -> dict[str, Any] | None:
    """As ``read_runtime``, but None when nothing runs. A file left by a dead runtime counts as nothing."""
    import json

    try:
        with open(os.path.join(state_dir, "run", "runtime.json"), encoding="utf-8") as file:
            document = json.load(file)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # Not there, or torn by a power cut: a runtime that serves has written it whole.
        return None
    except OSError as error:
        raise NotRunning(f"cannot read {state_dir}/run/runtime.json: {error}") from error
    pid = document.get("pid") if isinstance(document, dict) else None
    if not isinstance(pid, int) or not alive(pid):
        return None
    if document.get("runtime_pid", pid) != pid and _name(pid) != GUARD:
        return None  # the number belongs to another program: the guard that wrote it died with the machine
    return document  # type: ignore[no-any-return]


def alive(pid: int) -> bool:
    """Whether a process with this id exists; a zombie does not count."""
    return _stat(pid).rpartition(b")")[2][1:2] not in (b"", b"Z", b"X")


def _name(pid: int) -> bytes:
    return _stat(pid).rpartition(b")")[0].partition(b"(")[2]


def _stat(pid: int) -> bytes:
    if pid <= 0:
        return b""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _state_dir_setting(path: str) -> str:
    if "state_dir" not in _read(path):
        return STATE_DIR_DEFAULT
    value = (read_table(path) or {}).get("state_dir", STATE_DIR_DEFAULT)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{path}: state_dir must be a path, not {value!r}")
    return os.path.expanduser(value)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
