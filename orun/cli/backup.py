"""``orun backup``: everything durable in one portable file."""

from __future__ import annotations

from typing import Annotated

import typer

from orun.cli import output
from orun.cli.options import Json, Quiet, StateDir, examples


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command("backup", epilog=examples("orun backup state.orun", "orun restore --from state.orun --state-dir NEW"))(
        _backup
    )


def _backup(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The archive to write; it must not exist yet.")],
    state_dir: StateDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the state of every agent to one file.

    A portable archive of the latest state, made while the agents run or not. `orun restore --from FILE` reads it
    back, on this machine or another.
    """
    import os

    from orun.cli import offline
    from orun.errors import UsageError
    from orun.units import format_size

    path = os.path.abspath(file)
    if os.path.lexists(path):
        raise UsageError(f"{file} exists already", hint="choose another name, or remove it first")
    if not os.path.isdir(os.path.dirname(path)):
        raise UsageError(f"there is no folder {os.path.dirname(path)}")
    document = offline.perform(state_dir, "backup", {"path": path})
    if json:
        output.document(document)
    else:
        output.result(path)
        output.note(f"{format_size(document['bytes'])} written", quiet=quiet)
