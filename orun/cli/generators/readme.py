"""The command table in README.md, between two marks."""

from __future__ import annotations

from orun.cli.generators.tree import read
from orun.errors import UsageError

BEGIN = "<!-- commands: written by `orun generate all` -->"
END = "<!-- commands end -->"


def refreshed(path: str) -> str:
    """The file's text with a fresh table."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="name orun's repository") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"{path} has no place for the command table", hint=f"put {BEGIN} and {END} around it")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def table() -> str:
    """Every command with its summary."""
    rows = ["| command | what it does |", "|---|---|"]
    for command in read().walk():
        if not command.children:
            arguments = "".join(f" {argument.metavar}" for argument in command.arguments)
            rows.append(f"| `{command.name}{arguments}`".replace("|", "\\|")[1:] + f" | {command.summary} |")
    return "\n".join(rows)
