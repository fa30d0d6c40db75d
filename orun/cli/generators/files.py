"""Bringing generated files up to date, or saying which are not."""

from __future__ import annotations

import os
from collections.abc import Mapping

from orun.cli import output
from orun.cli.generators import completion, man, readme, schema
from orun.errors import OrunError


def everything(folder: str) -> dict[str, str]:
    """Every generated file of orun's repository, by its path."""
    found = {f"man/{path}": text for path, text in man.pages().items()}
    found |= {f"completions/{name}": completion.script(shell) for shell, name in completion.FILES.items()}
    found["completions/orun.schema.json"] = schema.text()
    found["README.md"] = readme.refreshed(os.path.join(folder, "README.md"))
    return found


def settle(wanted: Mapping[str, str], folder: str, *, check: bool, quiet: bool) -> int:
    """Write the files that differ; with ``check`` only name them. Returns the exit code."""
    stale = [path for path, text in wanted.items() if _read(os.path.join(folder, path)) != text]
    if check:
        for path in stale:
            output.result(os.path.join(folder, path))
        output.note(
            f"{len(stale)} of {len(wanted)} files are stale" if stale else f"all {len(wanted)} files are fresh",
            quiet=quiet,
        )
        return 1 if stale else 0
    try:
        for path in stale:
            target = os.path.join(folder, path)
            os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
            with open(target, "w", encoding="utf-8") as file:
                file.write(wanted[path])
    except OSError as error:
        raise OrunError(f"cannot write {error.filename}: {error.strerror}") from error
    output.note(f"{len(stale)} written, {len(wanted) - len(stale)} fresh already", quiet=quiet)
    return 0


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None
