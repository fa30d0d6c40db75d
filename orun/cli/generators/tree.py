"""The command tree as plain data: what manual, completions and README need of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

HELP = "Show this message and exit."


@dataclass(frozen=True, slots=True)
class Option:
    """An option: all its spellings, what its value is called (empty: a flag), and its help."""

    spellings: tuple[str, ...]
    value: str
    help: str
    default: str = ""
    repeatable: bool = False


@dataclass(frozen=True, slots=True)
class Argument:
    """A positional argument."""

    name: str
    metavar: str
    help: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command or a group of them."""

    path: tuple[str, ...]
    summary: str
    text: str
    usage: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]
    examples: tuple[str, ...]
    children: tuple[Command, ...]

    @property
    def name(self) -> str:
        """The full name with blanks: ``orun checkpoint list``."""
        return " ".join(self.path)

    def walk(self) -> Iterator[Command]:
        """This command and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def read() -> Command:
    """The live tree."""
    from orun.cli.app import tree

    return _command(tree(), ("orun",))


def _command(command: Any, path: tuple[str, ...]) -> Command:
    context = command.make_context(" ".join(path), [], resilient_parsing=True)
    children = tuple(
        _command(child, (*path, name))
        for name, child in sorted(getattr(command, "commands", {}).items())
        if not child.hidden
    )
    text = _paragraphs(command.help or "")
    options = [_option(param, context) for param in command.params if param.param_type_name == "option"]
    options.append(Option(("-h", "--help"), "", HELP))
    arguments = tuple(
        Argument(str(param.name), _metavar(param, context), param.help or "")
        for param in command.params
        if param.param_type_name == "argument"
    )
    usage = [path[-1], *(["[OPTION]..."]), *(argument.metavar for argument in arguments)]
    if children:
        usage.append("COMMAND [ARG]...")
    return Command(
        path,
        summary=text[0] if text else "",
        text="\n\n".join(text),
        usage=" ".join([*path[:-1], *usage]),
        options=tuple(options),
        arguments=arguments,
        examples=_examples(command.epilog or ""),
        children=children,
    )


def _option(param: Any, context: Any) -> Option:
    value = "" if param.is_flag else _metavar(param, context)
    default = ""
    if value and param.default not in (None, "", ()):
        default = str(param.default)
    return Option((*param.opts, *param.secondary_opts), value, param.help or "", default, bool(param.multiple))


def _metavar(param: Any, context: Any) -> str:
    return str(param.metavar or param.make_metavar(context))


def _paragraphs(text: str) -> list[str]:
    """A docstring's paragraphs, each on one line."""
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def _examples(epilog: str) -> tuple[str, ...]:
    _, found, lines = epilog.partition("Examples:\n")
    return tuple(line.strip() for line in lines.splitlines() if line.strip()) if found else ()
