"""From the words of ``orun restore`` to the operation: plan, confirm, perform."""

from __future__ import annotations

import os
from typing import Any

from orun.cli import offline
from orun.cli.confirm import confirm
from orun.cli.moments import parse_moment
from orun.errors import UsageError


def wish(*, checkpoint: str | None, at: str | None, source: str | None, agent: str | None) -> dict[str, Any]:
    """The arguments of the operation. Raises UsageError unless exactly one moment is named."""
    named = [
        name for name, value in (("--checkpoint", checkpoint), ("--at", at), ("--from", source)) if value is not None
    ]
    if len(named) != 1:
        raise UsageError(
            "say what to restore: --checkpoint, --at or --from"
            if not named
            else f"{' and '.join(named)} exclude each other",
            hint="`orun checkpoint list` shows what there is; a bare --checkpoint takes the latest",
        )
    arguments: dict[str, Any] = {"agent": agent}
    if checkpoint is not None:
        arguments["checkpoint"] = checkpoint
    elif at is not None:
        arguments |= parse_moment(at)
    else:
        path = os.path.abspath(str(source))
        if not os.path.isfile(path):
            raise UsageError(f"no file {source}")
        arguments["source"] = path
    return arguments


def restore(arguments: dict[str, Any], *, state_dir: str | None, dry_run: bool, yes: bool) -> dict[str, Any]:
    """Plan it, ask, do it. A dry run ends with the plan."""
    create = "source" in arguments
    plan = offline.perform(state_dir, "restore", {**arguments, "dry_run": True}, create=create)
    if dry_run:
        return plan
    question = "\n".join(describe(entry, done=False) for entry in plan["agents"])
    confirm(f"{question}\nGo on?", yes=yes)
    return offline.perform(state_dir, "restore", {**arguments, "dry_run": False}, create=create)


def describe(entry: dict[str, Any], *, done: bool) -> str:
    """One agent's restore as a sentence."""
    verb = "restored" if done else "would go"
    target = f"log position {entry['to_lsn']}"
    if entry.get("checkpoint"):
        target += f" (checkpoint {entry['checkpoint']})"
    text = f"{entry['agent']}: {verb} from {entry['from_lsn']} to {target}, {entry['blocks']} blocks changed"
    if not done:
        text = text.replace("blocks changed", "blocks change")
    if done:
        text += f"; undo with `orun restore --at {entry['from_lsn']}`"
    return text
