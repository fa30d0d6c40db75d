"""``orun deadletters``: requests that were set aside because they ended their worker again and again."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orun.cli import output
from orun.cli.options import Agent, Json, Quiet, StateDir, Yes, examples

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids as `orun deadletters list` shows them.")]
All = Annotated[bool, typer.Option("--all", help="All of them.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    group = typer.Typer(no_args_is_help=True, help="List, show, retry and drop requests that were set aside.")
    group.command("list", epilog=examples("orun deadletters list"))(_list)
    group.command("show", epilog=examples("orun deadletters show counter-1042"))(_show)
    group.command("retry", epilog=examples("orun deadletters retry counter-1042", "orun deadletters retry --all"))(
        _retry
    )
    group.command("drop", epilog=examples("orun deadletters drop --all --yes"))(_drop)
    app.add_typer(group, name="deadletters")


def _list(agent: Agent = None, state_dir: StateDir = None, json: Json = False) -> None:
    """List the requests that were set aside."""
    from orun.cli import offline, shown

    document = offline.perform(state_dir, "deadletters", {"agent": agent})
    if json:
        output.document(document)
    else:
        output.result(shown.deadletters(document))


def _show(
    id_: Annotated[str, typer.Argument(metavar="ID", help="As `orun deadletters list` shows it.")],
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Show one request that was set aside.

    Its payload, its attempts, and the error that its caller got. Stack dumps are in dumps/ of the state directory.
    """
    from orun.cli import offline, shown

    document = offline.perform(state_dir, "deadletters_show", {"id": id_})
    if json:
        output.document(document)
    else:
        output.result(shown.fields(document["deadletter"]))


def _retry(
    ids: Ids = None,
    all_: All = False,
    agent: Agent = None,
    state_dir: StateDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Deliver requests again, as new ones. Needs a running agent."""
    from orun import project
    from orun.worker import plain

    folder = project.find_state_dir(state_dir)
    document = plain.control(folder, "deadletters_retry", _chosen(ids, all_, agent))
    _report(document, "retried", json=json, quiet=quiet)


def _drop(
    ids: Ids = None,
    all_: All = False,
    agent: Agent = None,
    yes: Yes = False,
    state_dir: StateDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Forget requests for good."""
    from orun.cli import offline
    from orun.cli.confirm import confirm

    chosen = _chosen(ids, all_, agent)
    confirm("Drop all dead letters for good?" if all_ else f"Drop {', '.join(chosen['ids'])} for good?", yes=yes)
    document = offline.perform(state_dir, "deadletters_drop", chosen)
    _report(document, "dropped", json=json, quiet=quiet)


def _chosen(ids: list[str] | None, all_: bool, agent: str | None) -> dict[str, Any]:
    from orun.errors import UsageError

    if bool(ids) == all_:
        raise UsageError("name ids, or take --all", hint="`orun deadletters list` shows the ids")
    return {"ids": ids or [], "all": all_, "agent": agent}


def _report(document: dict[str, Any], verb: str, *, json: bool, quiet: bool) -> None:
    if json:
        output.document(document)
        return
    for id_ in document.get("ids", ()):
        output.result(str(id_))
    output.note(f"{len(document.get('ids', ()))} {verb}", quiet=quiet)
