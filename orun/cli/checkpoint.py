"""``orun checkpoint``: make, list, show and verify restorable positions."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orun.cli import output
from orun.cli.options import Agent, Json, Quiet, StateDir, examples

TIMEOUT = "60s"


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    group = typer.Typer(no_args_is_help=True, help="Make, list, show and verify checkpoints.")
    group.command("create", epilog=examples("orun checkpoint create", "orun checkpoint create --json | jq -r .id"))(
        _create
    )
    group.command("list", epilog=examples("orun checkpoint list"))(_list)
    group.command("show", epilog=examples("orun checkpoint show latest", "orun checkpoint show counter-1042"))(_show)
    group.command("verify", epilog=examples("orun checkpoint verify", "orun checkpoint verify previous"))(_verify)
    app.add_typer(group, name="checkpoint")


def _create(
    agent: Agent = None,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="Give up waiting after so long, with exit code 124.")
    ] = TIMEOUT,
    state_dir: StateDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a checkpoint of every running agent and print their ids.

    The agents go on serving. Exits with 3 when nothing is running.
    """
    from orun import project
    from orun.cli.quick import duration
    from orun.worker import plain

    document: dict[str, Any] = plain.control(
        project.find_state_dir(state_dir), "checkpoint", {"agent": agent}, timeout_s=duration("--timeout", timeout)
    )
    if json:
        output.document(document)
        return
    for entry in document.get("checkpoints", [document]):
        output.result(str(entry["id"]))
        output.note(f"checkpoint {entry['id']} at log position {entry['lsn']}", quiet=quiet)


def _list(agent: Agent = None, state_dir: StateDir = None, json: Json = False) -> None:
    """List the checkpoints that can be restored, the latest last."""
    from orun.cli import offline, shown

    document = offline.perform(state_dir, "checkpoints", {"agent": agent})
    if json:
        output.document(document)
    else:
        output.result(shown.checkpoints(document))


def _show(
    id_: Annotated[str, typer.Argument(metavar="ID", help="An id or the start of one, latest or previous.")],
    agent: Agent = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Show one checkpoint."""
    from orun.cli import offline, shown

    document = offline.perform(state_dir, "checkpoint_show", {"id": id_, "agent": agent})
    if json:
        output.document(document)
    else:
        output.result(shown.fields(document["checkpoint"]))


def _verify(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Only these; all by default.")] = None,
    agent: Agent = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> int:
    """Read every block of the checkpoints and compare the checksums.

    Exits with 12 when anything is damaged.
    """
    from orun.cli import offline, shown

    document = offline.perform(state_dir, "checkpoint_verify", {"ids": ids or [], "agent": agent})
    if json:
        output.document(document)
    else:
        output.result(shown.verified_checkpoints(document))
    return shown.verdict(document)
