"""``orun config``: the settings as they are in force, and where each comes from."""

from __future__ import annotations

from typing import Annotated

import typer

from orun.cli import output
from orun.cli.options import Json, Quiet, StateDir, examples


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(
        "config", epilog=examples("orun config", "orun config --check", "ORUN_STORE_CHECKPOINTS_KEPT=20 orun config")
    )(_config)


def _config(
    check: Annotated[bool, typer.Option("--check", help="Only say whether the settings can be used.")] = False,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, section.key=value.")
    ] = None,
    state_dir: StateDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print the settings and where each comes from.

    The origin is a flag, a variable, the file and line, or the default.

    Flags beat variables (ORUN_SECTION_KEY), which beat orun.toml or [tool.orun] in pyproject.toml; the nearest
    file upwards from here counts. Exits with 2 when a setting cannot be used.
    """
    from orun.cli import configuring

    loaded = configuring.load(override or [], state_dir)
    if json:
        output.document(configuring.document(loaded))
    elif check:
        output.note(f"settings are fine ({loaded.file or 'no settings file'})", quiet=quiet)
    else:
        output.result(configuring.table(loaded))
