"""``orun init``: a new project from a template."""

from __future__ import annotations

from typing import Annotated

import typer

from orun.cli import output
from orun.cli.options import Json, Quiet, examples

TEMPLATE_DEFAULT = "counter"


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command("init", epilog=examples("orun init my-agent", "orun init search --template index", "orun init --list"))(
        _init
    )


def _init(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The folder to make; its name names the agent.")
    ] = None,
    template: Annotated[
        str, typer.Option("--template", "-t", metavar="NAME", help="Which template to start from.")
    ] = TEMPLATE_DEFAULT,
    list_: Annotated[bool, typer.Option("--list", help="List the templates.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a runnable project from a template.

    It has an agent, its orun.toml, a README and a test that starts it. Files that exist are never overwritten: then
    nothing is written at all.
    """
    from orun.cli import scaffold
    from orun.errors import UsageError

    if list_:
        found = scaffold.templates()
        if json:
            output.document({"templates": [{"name": entry.name, "summary": entry.summary} for entry in found]})
        else:
            output.result(output.table(("template", "what it is"), ((entry.name, entry.summary) for entry in found)))
        return
    if name is None:
        raise UsageError("name the folder to make", hint="orun init my-agent")
    written = scaffold.create(name, template)
    if json:
        output.document({"path": written.path, "template": template, "files": written.files})
        return
    for file in written.files:
        output.note(f"created {name.rstrip('/')}/{file}", quiet=quiet)
    output.note(f"next: cd {name} && orun run --detach, then see its README.md", quiet=quiet)
