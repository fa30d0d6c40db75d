"""``orun reload``: the agent's files as they are now, without dropping a request."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orun.cli import output
from orun.cli.options import Json, Quiet, StateDir, examples

TIMEOUT = "60s"


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command("reload", epilog=examples("orun reload", "orun reload counter --json"))(_reload)


def _reload(
    agent: Annotated[str | None, typer.Argument(metavar="[AGENT]", help="Only this agent.")] = None,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="Give up waiting after so long, with exit code 124.")
    ] = TIMEOUT,
    state_dir: StateDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Load the agents' files anew and switch to them.

    A worker with the new files starts beside the old one and takes over between two requests. When it does not
    start, the old one goes on and the exit code is 1.
    """
    from orun import project
    from orun.cli.quick import duration
    from orun.worker import plain

    document: dict[str, Any] = plain.control(
        project.find_state_dir(state_dir), "reload", {"agent": agent}, timeout_s=duration("--timeout", timeout)
    )
    if json:
        output.document(document)
        return
    for entry in document.get("agents", ()):
        news = f"now version {entry['version']}" if entry["changed"] else "nothing has changed"
        output.note(f"{entry['agent']}: {news}", quiet=quiet)
