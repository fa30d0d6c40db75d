"""``orun engine``: the Zig library and guard: what is there, and building it."""

from __future__ import annotations

from typing import Annotated

import typer

from orun.cli import output
from orun.cli.options import Json, Quiet, examples


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    group = typer.Typer(no_args_is_help=True, help="Show and build the native engine.")
    group.command("info", epilog=examples("orun engine info --json"))(_info)
    group.command("build", epilog=examples("orun engine build", "orun engine build --force"))(_build)
    app.add_typer(group, name="engine")


def _info(json: Json = False) -> None:
    """Show which engine there is and where it is kept."""
    from orun.cli import shown
    from orun.engine import build

    document = build.info()
    if json:
        output.document(document)
    else:
        # Dozens of words that nobody reads; the program's document has them.
        output.result(shown.fields({name: value for name, value in document.items() if name != "cpu_features"}))


def _build(
    force: Annotated[bool, typer.Option("--force", help="Build it again even when it is there.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Build the engine for this machine.

    It is kept in the cache, and built only when it is not there. `orun run` does the same when it has to; this
    command is for images and first checks. Exits with 13 when it cannot be built.
    """
    from orun.engine import build

    progress = output.progress(quiet=quiet)
    if force and build.info()["source"] == "cache":
        build.discard(build.ensure())
    build.ensure(progress)
    document = build.info()
    if json:
        output.document(document)
    else:
        output.note("the engine is ready", quiet=quiet)
