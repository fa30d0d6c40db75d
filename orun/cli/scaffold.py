"""Templates and what becomes of them: the work behind ``orun init``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from orun.errors import OrunError, UsageError

NAME_MARK = "__NAME__"
"""Stands for the agent's name in a template's files."""
NAME_MAX = 64
SKIPPED = ("__pycache__",)


@dataclass(frozen=True, slots=True)
class Template:
    """A template and the first sentence of its README."""

    name: str
    summary: str


@dataclass(frozen=True, slots=True)
class Created:
    """What was written."""

    path: str
    files: list[str]


def templates() -> list[Template]:
    """Every template that ships with orun, by name."""
    folders = sorted((entry for entry in _root().iterdir() if entry.is_dir()), key=lambda entry: entry.name)
    return [Template(entry.name, _summary(entry)) for entry in folders if entry.name not in SKIPPED]


def create(target: str, template: str) -> Created:
    """Write a template into a folder. Raises UsageError, and writes nothing, when a file is in the way."""
    known = {entry.name for entry in templates()}
    if template not in known:
        raise UsageError(f"no template {template!r}", hint=f"there are {', '.join(sorted(known))}")
    path = os.path.abspath(target)
    name = _agent_name(os.path.basename(path))
    files = {
        entry.name: entry.read_text(encoding="utf-8").replace(NAME_MARK, name)
        for entry in (_root() / template).iterdir()
        if entry.is_file()
    }
    taken = sorted(file for file in files if os.path.lexists(os.path.join(path, file)))
    if taken:
        raise UsageError(
            f"{os.path.join(target, taken[0])} exists already; nothing was written", hint="choose another folder"
        )
    try:
        os.makedirs(path, exist_ok=True)
        for file, text in sorted(files.items()):
            with open(os.path.join(path, file), "x", encoding="utf-8") as out:
                out.write(text)
    except OSError as error:
        raise OrunError(f"cannot write to {path}: {error.strerror}") from error
    return Created(path, sorted(files))


def _root() -> Traversable:
    return resources.files("orun") / "templates"


def _summary(folder: Traversable) -> str:
    """The first paragraph of the template's README below its title."""
    for line in (folder / "README.md").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            return line.replace(NAME_MARK, "the agent")
    return ""


def _agent_name(folder: str) -> str:
    """A folder's name as an agent's: letters, digits, dashes and underscores."""
    name = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "-" for letter in folder)
    name = name.strip("-_")[:NAME_MAX]
    if not name[:1].isalpha():
        raise UsageError(f"{folder!r} cannot name an agent", hint="use letters and digits, a letter first")
    return name
