"""``orun restore``: the state as it was at a checkpoint, a log position or a time."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from orun.cli import output
from orun.cli.options import Agent, Json, Quiet, StateDir, Yes, examples

LATEST = "latest"


class BareCheckpoint(TyperCommand):
    """Lets ``--checkpoint`` stand alone for the latest one; Typer has no options with optional values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the value that was left out."""
        filled: list[str] = []
        for at, argument in enumerate(args):
            filled.append(argument)
            if argument == "--checkpoint" and (at + 1 == len(args) or args[at + 1].startswith("-")):
                filled.append(LATEST)
        return super().parse_args(ctx, filled)


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command("restore", cls=BareCheckpoint, epilog=_EXAMPLES)(_restore)


_EXAMPLES = examples(
    "orun restore --checkpoint",
    "orun restore --checkpoint previous --dry-run",
    "orun restore --at 2026-11-21T10:05:00Z --yes",
    "orun restore --at 1042 --agent counter",
    "orun restore --from state.orun --state-dir NEW",
)


def _restore(
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint", metavar="[ID]", help="An id or the start of one, latest (also when bare) or previous."
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="TIME|LSN", help="A log position, an ISO time, or an age such as 10m."),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="FILE", help="A file of `orun backup`, or an exported checkpoint.")
    ] = None,
    agent: Agent = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Say what would change, and change nothing.")
    ] = False,
    yes: Yes = False,
    state_dir: StateDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring an agent's state back to an earlier moment.

    Works while the agent runs and while it does not. The log keeps what was there before, so a restore can itself
    be undone: restore to the position that it names.

    Without a terminal --yes is needed.
    """
    from orun.cli import restoring

    wish = restoring.wish(checkpoint=checkpoint, at=at, source=source, agent=agent)
    outcome = restoring.restore(wish, state_dir=state_dir, dry_run=dry_run, yes=yes)
    if json:
        output.document(outcome)
        return
    for entry in outcome["agents"]:
        text = restoring.describe(entry, done=not dry_run, to_checkpoint=checkpoint is not None)
        if dry_run:
            output.result(text)
        else:
            output.note(text, quiet=quiet)
