"""The gateway's server loop around uvicorn's parser and flow control.

uvicorn's own loop wakes ten times a second and takes 0.3 s to stop; the few lines of ``serve`` do neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.server import ServerState

from orun.runtime.gateway_agents import Agents
from orun.runtime.gateway_app import App, Limits
from orun.runtime.gateway_http import Connection, Patience

_DESCRIPTORS_KEPT: Final = 64
"""File descriptors that are not for callers: agents, logs, the listening socket."""


async def serve(args: dict[str, Any], fds: dict[str, int]) -> None:
    """Serve on ``fds["listen"]`` until SIGTERM, then finish what is under way."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    agents = Agents(args["agents"], args["control"], args["state_dir"])
    defaults = Limits()
    limits = Limits(
        body_bytes_max=args.get("body_bytes_max", defaults.body_bytes_max),
        concurrency_max=args.get("concurrency_max", defaults.concurrency_max),
        timeout_s=args.get("timeout_s", defaults.timeout_s),
    )
    state = ServerState()
    app = App(agents, limits, args.get("token") or None)
    connections_max = args.get("connections_max", Connection.connections_max)
    config = _config(app, Patience(**args.get("patience", {})), connections_max)
    listening = socket.socket(fileno=fds["listen"])
    server = await loop.create_server(
        lambda: config.http_protocol_class(config, state, {}),  # type: ignore[call-arg]
        sock=listening,
        backlog=socket.SOMAXCONN,
    )
    if "ready" in fds:
        os.write(fds["ready"], b"1")
        os.close(fds["ready"])
    await stopping.wait()
    server.close()
    await _drain(state, args.get("grace_s", 5.0))
    await agents.close()


def _config(app: App, patience: Patience, connections_max: int) -> Config:
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    # uvicorn makes the connections itself, from a class: what they share is told to the class.
    limits = {"patience": patience, "connections_max": max(1, min(connections_max, descriptors - _DESCRIPTORS_KEPT))}
    connection = type("LimitedConnection", (Connection,), limits)
    config = Config(
        app,
        http=connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=patience.idle_s,  # type: ignore[arg-type]  # A delay may be a fraction.
    )
    # What callers send wrong is their error, not one of this process: it is answered, not logged.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config.load()
    return config


async def _drain(state: ServerState, grace_s: float) -> None:
    """Let requests under way finish; idle connections are closed at once."""
    for connection in list(state.connections):
        connection.shutdown()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            while state.tasks:
                await asyncio.wait(set(state.tasks))
    for connection in list(state.connections):
        if connection.transport is not None:
            connection.transport.close()
    # Closing is what writes the last replies' bytes out; it takes one turn of the loop when the client reads.
    await asyncio.sleep(0)
