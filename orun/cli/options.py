"""Options that several commands share, so that the same word means the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

StateDir = Annotated[
    str | None,
    typer.Option("--state-dir", metavar="DIR", help="State directory (ORUN_STATE_DIR; by default the nearest .orun)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document; errors are JSON on standard error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but results and errors.")]
Agent = Annotated[str | None, typer.Option("--agent", metavar="NAME", help="The agent, when there are several.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def examples(*lines: str) -> str:
    """The end of a command's help, from which the manual takes its EXAMPLES too."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
