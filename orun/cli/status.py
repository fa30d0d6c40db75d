"""``orun status``: what runs, how it fares, and the supervision tree."""

from __future__ import annotations

from typing import Annotated

import typer

from orun.cli import quick
from orun.cli.options import Json, StateDir, examples


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command("status", epilog=examples("orun status", "orun status --watch", "orun status --json | jq .agents"))(
        _status
    )


def _status(
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it; on a terminal redrawn in place.")] = False,
    state_dir: StateDir = None,
    json: Json = False,
) -> int:
    """Show the agents, their children and the supervision tree.

    With --watch and --json together one document is printed each second, a line each.
    """
    if not watch:
        return quick.status(state_dir, json=json)
    from orun.cli.watching import watch_status

    return watch_status(state_dir, json=json)
