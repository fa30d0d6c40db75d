"""``orun run``: start agents or plain commands under supervision."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from orun.cli.options import Json, Quiet, StateDir, examples

_COMMAND = "orun.command"


class CommandAfterDashes(TyperCommand):
    """Keeps what follows ``--`` apart: a command to run, not more files."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Split at the first ``--`` and parse the part before it."""
        if "--" in args:
            at = args.index("--")
            ctx.meta[_COMMAND] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command("run", cls=CommandAfterDashes, epilog=_EXAMPLES)(_run)


_EXAMPLES = examples(
    "orun run agent.py",
    "orun run agent.py --detach --http 127.0.0.1:4000",
    "orun run agent.py --set store.checkpoints_kept=20 --durability process",
    "orun run -- python -m http.server 8000",
)


def _run(
    context: typer.Context,
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]... [-- CMD ARG...]", help="Agent files, or after -- a plain command."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once the agent answers.")] = False,
    http: Annotated[
        str | None, typer.Option("--http", metavar="HOST:PORT", help="Serve HTTP there; port 0 takes a free one.")
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option("--token-file", metavar="FILE", help="Bearer token; needed when HTTP is not on loopback."),
    ] = None,
    durability: Annotated[
        str | None, typer.Option("--durability", metavar="disk|process", help="What a reply waits for.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Reload when an agent's files change.")] = False,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, section.key=value.")
    ] = None,
    state_dir: StateDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Keep agents or a plain command running.

    They are restarted when they die or hang, and every acknowledged change is kept.

    In the foreground a terminal shows a live view. A pipe gets plain lines: what happens on standard error, what
    agents and children print behind their names. Ctrl-C once stops in an orderly way, twice at once.

    A command after -- that runs in the foreground is not restarted: its output appears as its own, line by line, and
    its exit code is passed on; its standard input is empty. With --detach it is kept alive.

    Without FILE the settings say what to run: agent.path and [[children]].
    """
    from orun.cli import starting

    return starting.start(
        starting.Wish(
            files=files or [],
            command=context.meta.get(_COMMAND),
            detach=detach,
            http=http,
            token_file=token_file,
            durability=durability,
            watch=watch,
            overrides=override or [],
            state_dir=state_dir,
            json=json,
            quiet=quiet,
        )
    )
