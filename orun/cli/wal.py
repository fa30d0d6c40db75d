"""``orun wal``: look into the log, verify it, and give back its space."""

from __future__ import annotations

from typing import Annotated

import typer

from orun.cli import output
from orun.cli.options import Agent, Json, Quiet, StateDir, examples

RECORDS_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    group = typer.Typer(no_args_is_help=True, help="Show, verify and compact the log.")
    group.command("show", epilog=examples("orun wal show", "orun wal show --from 1000 --limit 50 --json"))(_show)
    group.command("verify", epilog=examples("orun wal verify"))(_verify)
    group.command("compact", epilog=examples("orun wal compact"))(_compact)
    app.add_typer(group, name="wal")


def _show(
    start: Annotated[
        int | None, typer.Option("--from", metavar="LSN", help="First log position; default: the last few.")
    ] = None,
    end: Annotated[int | None, typer.Option("--to", metavar="LSN", help="Last log position.")] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, help="At most so many records.")
    ] = RECORDS_SHOWN,
    agent: Agent = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Show records of the log.

    Each says what was asked, what it changed, or what was restored.
    """
    from orun.cli import offline, shown

    document = offline.perform(state_dir, "wal_show", {"agent": agent, "from": start, "to": end, "limit": limit})
    if json:
        output.document(document)
    else:
        output.result(shown.records(document))


def _verify(agent: Agent = None, state_dir: StateDir = None, json: Json = False) -> int:
    """Verify the whole log.

    Reads every record and compares its checksum and its place in the chain. Exits with 12 and says where when
    anything is damaged.
    """
    from orun.cli import offline, shown

    document = offline.perform(state_dir, "wal_verify", {"agent": agent})
    if json:
        output.document(document)
    else:
        output.result(shown.verified_log(document))
    return shown.verdict(document)


def _compact(agent: Agent = None, state_dir: StateDir = None, json: Json = False, quiet: Quiet = False) -> None:
    """Drop the log that no retained checkpoint needs."""
    from orun.cli import offline
    from orun.units import format_size

    document = offline.perform(state_dir, "compact", {"agent": agent})
    if json:
        output.document(document)
        return
    for entry in document.get("agents", ()):
        freed = format_size(entry.get("bytes_freed", 0))
        output.note(
            f"{entry['agent']}: {entry.get('segments_dropped', 0)} segments dropped, {freed} freed", quiet=quiet
        )
