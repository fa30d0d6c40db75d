"""The short way to ``orun run``: its usual command lines, read without Typer.

As in ``quick``: only plain spellings are known here, and whatever is not goes to Typer, which has the help and the
error messages.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

FLAGS = {"--detach": "detach", "-d": "detach", "--watch": "watch", "--json": "json", "--quiet": "quiet", "-q": "quiet"}
TEXTS = {
    "--http": "http",
    "--token-file": "token_file",
    "--durability": "durability",
    "--state-dir": "state_dir",
    "--set": "overrides",
}


def shortcut(arguments: Sequence[str]) -> int | None:
    """Run ``orun run`` and return its exit code; None when the arguments need Typer."""
    values = read(arguments)
    if values is None:
        return None
    from orun.cli import starting

    return starting.start(starting.Wish(**values))


def read(arguments: Sequence[str]) -> dict[str, Any] | None:
    """The fields of a Wish in the arguments of ``orun run``; None when anything is out of the ordinary."""
    values: dict[str, Any] = dict.fromkeys((*FLAGS.values(),), False) | dict.fromkeys(TEXTS.values())
    values |= {"files": [], "command": None, "overrides": []}
    rest = iter(arguments)
    for argument in rest:
        option, equals, text = argument.partition("=")
        if argument == "--":
            values["command"] = list(rest)
        elif not argument.startswith("-"):
            values["files"].append(argument)
        elif argument in FLAGS:
            values[FLAGS[argument]] = True
        elif option in TEXTS:
            if not equals:
                text = next(rest, "-")
                if text.startswith("-"):
                    return None
            if option == "--set":
                values["overrides"].append(text)
            else:
                values[TEXTS[option]] = text
        else:
            return None
    return values
