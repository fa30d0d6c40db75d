"""``orun stop``: an orderly end."""

from __future__ import annotations

from typing import Annotated

import typer

from orun.cli import quick
from orun.cli.options import Json, Quiet, StateDir, examples


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command("stop", epilog=examples("orun stop", "orun stop --timeout 5m"))(_stop)


def _stop(
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="Wait so long for the end, then exit with 124.")
    ] = quick.STOP_TIMEOUT,
    state_dir: StateDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Stop the runtime in an orderly way.

    Requests under way finish and the children end in reverse order. Returns when the last process has gone.
    """
    return quick.stop(state_dir, timeout=timeout, json=json, quiet=quiet)
