"""``orun logs``: what the children and the runtime printed."""

from __future__ import annotations

from typing import Annotated

import typer

from orun.cli import output
from orun.cli.options import Json, StateDir, examples

LINES_SHOWN = 50
POLL_S = 0.2


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(
        "logs", epilog=examples("orun logs -f", "orun logs counter --lines 200", "orun logs runtime --since 10m")
    )(_logs)


def _logs(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="An agent, a child or runtime; all by default.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", metavar="N", min=0, help="The last lines of each log.")
    ] = LINES_SHOWN,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Nothing older: an age such as 10m, or an ISO time.")
    ] = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Print logs, whether anything runs or not.

    A line that carries no time of its own counts as old as the line before it. With --follow and --json together
    each line becomes one JSON object on a line.
    """
    import os
    import sys
    import time

    from orun import project
    from orun.cli.moments import parse_time
    from orun.observe import logs

    state = project.require_state_dir(project.find_state_dir(state_dir))
    folder = os.path.join(state, "logs")
    running = [str(agent["name"]) for agent in (project.running(state) or {}).get("agents", ())]
    readers = [logs.Reader(folder, chosen) for chosen in logs.choose(folder, name, running)]
    after = None if since is None else parse_time(since, "--since")
    past = [line for reader in readers for line in reader.past(lines, since=after)]
    if json and not follow:
        output.document({"lines": [{"name": line.name, "time": line.time, "text": line.text} for line in past]})
        return
    coloured = output.colour(sys.stdout)
    while True:
        for line in past:
            if json:
                output.document({"name": line.name, "time": line.time, "text": line.text})
            else:
                text = logs.clean(line.text, coloured=coloured)
                output.result(text if len(readers) == 1 else f"{output.paint(line.name, 'dim', coloured)} | {text}")
        if not follow:
            return
        time.sleep(POLL_S)
        past = [line for reader in readers for line in reader.fresh()]
