"""Changes of what is stored, as documents: the same for a running runtime and for a command that holds the lock.

Each takes a recorder that has recovered, and the arguments of its operation on the control socket. They block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orun.errors import NotFound
from orun.observe import storage
from orun.store.recorder import Recorder

Document = dict[str, Any]


def restore(recorder: Recorder, args: Mapping[str, Any]) -> Document:
    """Bring agents back to an earlier state, or say what that would change; they must have no worker then."""
    dry_run = bool(args["dry_run"])
    plans = [
        recorder.restore(agent, target, dry_run).result()
        for agent, target in storage.restore_targets(recorder.agents(), args)
    ]
    return {"dry_run": dry_run, "agents": [storage.restored(plan) for plan in plans]}


def compact(recorder: Recorder, args: Mapping[str, Any]) -> Document:
    """Drop what the settings no longer keep."""
    del args
    return recorder.compact().result()


def drop_deadletters(recorder: Recorder, args: Mapping[str, Any]) -> Document:
    """Forget requests that were set aside. Raises NotFound when one of those named is not there."""
    dropped = [
        storage.letter_id(name, lsn)
        for name, lsn in chosen_deadletters(recorder, args)
        if recorder.drop_dead_letter(name, lsn).result()
    ]
    return {"ids": dropped}


def chosen_deadletters(recorder: Recorder, args: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Agent and LSN of the dead letters that ``ids`` or ``all`` name. Raises NotFound."""
    names = [name for name in recorder.agents() if args.get("agent") in (None, name)]
    there = [(name, letter.lsn) for name in names for letter in recorder.dead_letters(name).result()]
    if args.get("all"):
        return there
    chosen = [storage.parse_letter_id(id) for id in args["ids"]]
    for name, lsn in chosen:
        if (name, lsn) not in there:
            raise NotFound(
                f"there is no dead letter {storage.letter_id(name, lsn)}", hint="`orun deadletters list` shows them"
            )
    return chosen


CHANGES: dict[str, Callable[[Recorder, Mapping[str, Any]], Document]] = {
    "restore": restore,
    "compact": compact,
    "deadletters_drop": drop_deadletters,
}
"""Every change by the name of its operation."""
