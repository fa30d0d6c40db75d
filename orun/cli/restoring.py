"""From the words of ``orun restore`` to the operation: plan, confirm, perform."""

from __future__ import annotations

import os
from typing import Any

from orun.cli import offline
from orun.cli.confirm import confirm
from orun.cli.moments import parse_moment
from orun.errors import UsageError
from orun.units import format_count


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
    """Plan it, ask, do it. A dry run ends with the plan; filling a directory that holds nothing needs no asking."""
    plan = offline.perform(state_dir, "restore", {**arguments, "dry_run": True})
    if dry_run:
        return plan
    if not plan.get("fresh"):
        to_checkpoint = "checkpoint" in arguments
        question = "\n".join(describe(entry, done=False, to_checkpoint=to_checkpoint) for entry in plan["agents"])
        confirm(f"{question}\nGo on?", yes=yes)
    return offline.perform(state_dir, "restore", {**arguments, "dry_run": False})


def describe(entry: dict[str, Any], *, done: bool, to_checkpoint: bool = False) -> str:
    """One agent's restore as a sentence."""
    if "from_lsn" not in entry:
        return f"{entry['agent']}: {'filled' if done else 'would be filled'} from {entry['source']}"
    target = entry.get("source") or f"log position {entry['to_lsn']}"
    if to_checkpoint:
        target = f"checkpoint {entry['checkpoint']}"
    verb, blocks = ("restored", "changed") if done else ("would go", "would change")
    count = format_count(entry["blocks"], "block")
    text = f"{entry['agent']}: {verb} from log position {entry['from_lsn']} to {target}, {count} {blocks}"
    if done:
        text += f"; undo with `orun restore --at {entry['from_lsn']} --agent {entry['agent']}`"
    return text
