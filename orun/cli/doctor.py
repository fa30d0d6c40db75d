"""``orun doctor``: can this machine run orun well, and what to do where it cannot."""

from __future__ import annotations

import typer

from orun.cli import output
from orun.cli.options import Json, StateDir, examples


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(
        "doctor", epilog=examples("orun doctor", "orun doctor --json | jq '.checks[] | select(.state != \"ok\")'")
    )(_doctor)


def _doctor(state_dir: StateDir = None, json: Json = False) -> int:
    """Check that this machine can run orun well.

    Looks at the kernel, the engine, the disk, limits and the state directory.

    Each check is ok, warn or fail, with what it costs and how to mend it. Exits with 1 when one fails.
    """
    import sys

    from orun import project
    from orun.observe import doctor

    checks = doctor.examine(project.find_state_dir(state_dir))
    failed = any(check.state == "fail" for check in checks)
    if json:
        output.document({"ok": not failed, "checks": [check.document() for check in checks]})
    else:
        styled = output.colour(sys.stdout)
        colours = {"ok": "green", "warn": "yellow", "fail": "red"}
        width = max(len(check.name) for check in checks)
        for check in checks:
            mark = output.paint(check.state.ljust(4), colours[check.state], styled)
            output.result(f"{mark}  {check.name.ljust(width)}  {check.found}")
            for more in (check.cost, check.mend):
                if check.state != "ok" and more:
                    output.result(f"{' ' * (width + 8)}{more}")
    return 1 if failed else 0
