"""``orun call``: send requests to an agent."""

from __future__ import annotations

from typing import Annotated

import typer

from orun.cli import quick
from orun.cli.options import Agent, Json, StateDir, examples


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command("call", epilog=_EXAMPLES)(_call)


_EXAMPLES = examples(
    "orun call add '{\"amount\": 2}'",
    "echo '{\"amount\": 2}' | orun call add -",
    "orun call add --lines < requests.jsonl > replies.jsonl",
    "orun call add '{\"amount\": 2}' --key order-1017 --timeout 5s",
)


def _call(
    handler: Annotated[str, typer.Argument(metavar="HANDLER", help="The handler to ask.")],
    payload: Annotated[
        str | None, typer.Argument(metavar="[JSON]", help="The request, {} by default; - reads standard input.")
    ] = None,
    agent: Agent = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="TEXT", help="Idempotency key: a repeated key gets the stored reply."),
    ] = None,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="Give up after so long, with exit code 124.")
    ] = quick.CALL_TIMEOUT,
    lines: Annotated[
        bool, typer.Option("--lines", help="One request a line on standard input, one reply a line, in order.")
    ] = False,
    state_dir: StateDir = None,
    json: Json = False,
) -> int:
    """Send a request to a running agent.

    Prints the reply as JSON. The request waits through restarts of the agent and is never executed twice. An agent
    that is busy is asked again until the time is up.

    With --lines many requests are under way at once and the replies keep the order; a request that fails becomes a
    line {"error": ...}, and the exit code is 1.
    """
    return quick.call(
        handler, payload, agent=agent, key=key, timeout=timeout, lines=lines, state_dir=state_dir, json=json
    )
