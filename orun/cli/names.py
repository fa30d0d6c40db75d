"""What the shells complete: the names that are in use here. Quick, and silent when there are none."""

from __future__ import annotations

import os

from orun import project
from orun.cli import output
from orun.errors import OrunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def show(arguments: Sequence[str]) -> int:
    """``orun __names KIND``: print the names of a kind, a line each."""
    try:
        for name in names(arguments[0] if arguments else ""):
            output.result(name)
    except OrunError:
        # A completion has nobody to tell: no names is what it means.
        return 1
    return 0


def names(kind: str) -> list[str]:
    """The names of a kind: agents, handlers, checkpoints, logs, deadletters or templates."""
    if kind == "templates":
        from orun.cli import scaffold

        return [template.name for template in scaffold.templates()]
    state_dir = project.find_state_dir(None)
    if kind == "logs":
        from orun.observe import logs

        return logs.names(os.path.join(state_dir, "logs"))
    if kind in ("agents", "handlers"):
        agents = project.read_runtime(state_dir).get("agents", [])
        if kind == "agents":
            return [agent["name"] for agent in agents]
        return sorted({handler for agent in agents for handler in agent.get("handlers", ())})
    from orun.cli import offline

    if kind == "checkpoints":
        found = offline.perform(state_dir, "checkpoints", {"agent": None})["checkpoints"]
        return ["latest", "previous", *(entry["id"] for entry in reversed(found))]
    if kind == "deadletters":
        return [entry["id"] for entry in offline.perform(state_dir, "deadletters", {"agent": None})["deadletters"]]
    return []
