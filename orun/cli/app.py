"""The command tree. Each command lives in a module of its own; this one only puts them together."""

from __future__ import annotations

import copy
from typing import Annotated, Any

import typer
from typer.exceptions import Abort, TyperException

from orun.cli import (
    backup,
    call,
    checkpoint,
    config,
    deadletters,
    doctor,
    engine,
    generate,
    init,
    logs,
    output,
    reload,
    restore,
    status,
    stop,
    wal,
)
from orun.cli import run as run_command
from orun.errors import UsageError

INTERRUPTED = 130

app = typer.Typer(
    name="orun",
    help="Keep an agent alive and its state safe: supervised, logged before it acts, restorable to any moment.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage or settings, 3 nothing is running, 10 no such state or checkpoint, "
    "11 in use by another orun, 12 damaged data, 13 engine cannot be built, 14 restarts exceeded, "
    "124 deadline passed, 130 interrupted, 143 terminated.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    if version:
        from orun import __version__

        output.result(f"orun {__version__}")
        raise typer.Exit


for _module in (
    init, run_command, call, status, logs, reload, stop, checkpoint, restore, backup, wal, deadletters, engine, doctor,
    config, generate,
):  # fmt: skip
    _module.register(app)


def run(arguments: list[str]) -> int:
    """Run a command line through Typer and return its exit code. Raises OrunError, usage errors included."""
    command = typer.main.get_command(_needed(arguments))
    try:
        outcome = command.main(args=arguments, prog_name="orun", standalone_mode=False)
    except Abort:
        return INTERRUPTED
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            output.note(error.message)
            return error.exit_code
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "orun"
        message = error.format_message().rstrip(".")
        raise UsageError(message[:1].lower() + message[1:], hint=f"see `{path} --help`") from error
    return outcome if isinstance(outcome, int) else 0


def _needed(arguments: list[str]) -> typer.Typer:
    """The part of the tree that a command line needs: making the parameters of all thirty commands takes a while."""
    if arguments in (["--help"], ["-h"]):
        return _without_parameters(app)
    if not arguments or arguments[0].startswith("-"):
        return app
    needed = copy.copy(app)
    needed.registered_commands = [info for info in app.registered_commands if info.name == arguments[0]]
    needed.registered_groups = [info for info in app.registered_groups if info.name == arguments[0]]
    # A name that is not there is answered with the nearest ones, from the whole tree.
    return needed if needed.registered_commands or needed.registered_groups else app


def _without_parameters(group: typer.Typer) -> typer.Typer:
    """The same tree with as much of its commands as a list of them shows."""
    group = copy.copy(group)
    group.registered_commands = [copy.copy(info) for info in group.registered_commands]
    group.registered_groups = [copy.copy(info) for info in group.registered_groups]
    for command in group.registered_commands:
        command.callback = _stand_in(command.callback)
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        inner.typer_instance = _without_parameters(inner.typer_instance)
    return group


def _stand_in(function: Any) -> Any:
    def stand_in() -> None:
        pass

    stand_in.__doc__ = function.__doc__
    return stand_in


def tree() -> Any:
    """The command tree as the generators of manual and completions walk it."""
    return typer.main.get_command(app)
