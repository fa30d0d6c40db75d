"""Which agent serves which handler, one connection to each, and whether they all run."""

from __future__ import annotations

import asyncio
import difflib
import os
from collections.abc import Iterable
from typing import Any, Final, Literal

from orun.errors import OrunError, RequestFailed
from orun.project import read_runtime
from orun.worker.client import Client

_READY_S: Final = 1.0
_READY_CACHE_S: Final = 0.1


def _missing(kind: Literal["agent", "handler"], name: str, known: Iterable[str]) -> RequestFailed:
    near = difflib.get_close_matches(name, known, n=1)
    error = {"type": "unknown_handler", "message": f"there is no {kind} {name[:100]!r}"}
    if near:
        error["hint"] = f"did you mean {near[0]!r}?"
    elif known:
        error["hint"] = f"{kind}s: {', '.join(sorted(known)[:20])}"
    return RequestFailed(error)


class Agents:
    """The agents of one runtime, as the runtime last described them."""

    def __init__(self, described: list[dict[str, Any]], control: str, state_dir: str) -> None:
        self._state_dir = state_dir
        self._stamp: tuple[int, int] | None = None
        self._clients: dict[str, Client] = {}
        self._sockets: dict[str, str] = {}
        self._handlers: dict[str, frozenset[str]] = {}
        self._retired: list[Client] = []
        self._control = Client(control)
        self._status: asyncio.Future[tuple[bool, dict[str, Any]]] | None = None
        self._describe(described)

    def client(self, handler: str, agent: str | None) -> Client:
        """The connection to the agent that serves a handler. Raises RequestFailed when there is no such one."""
        if agent is not None:
            if agent not in self._clients and not (self._refresh() and agent in self._clients):
                raise _missing("agent", agent, self._clients)
            return self._clients[agent]
        if len(self._clients) == 1:
            # The worker knows its handlers better than the runtime's description of it.
            return next(iter(self._clients.values()))
        serving = self._serving(handler)
        if not serving and self._refresh():
            serving = self._serving(handler)
        if not serving:
            raise _missing("handler", handler, frozenset().union(*self._handlers.values()))
        if len(serving) > 1:
            message = f"agents {' and '.join(serving)} both have a handler {handler!r}"
            raise RequestFailed({"type": "bad_request", "message": message, "hint": f"add ?agent={serving[0]}"})
        return self._clients[serving[0]]

    async def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether every agent runs, and the state of each. Asked of the runtime at most ten times a second."""
        if self._status is None:
            loop = asyncio.get_running_loop()
            self._status = loop.create_task(self._ask())
            loop.call_later(_READY_CACHE_S, self._forget_status)
        # One caller that gives up must not take the answer from the others.
        return await asyncio.shield(self._status)

    async def close(self) -> None:
        """Close every connection."""
        for client in (self._control, *self._clients.values(), *self._retired):
            await client.close()

    async def _ask(self) -> tuple[bool, dict[str, Any]]:
        try:
            status = await self._control.control("status", timeout=_READY_S)
        except OrunError as error:
            return False, {"ready": False, "agents": [], "message": error.message}
        agents = [{"name": agent["name"], "state": agent["state"]} for agent in status["agents"]]
        ready = all(agent["state"] == "running" for agent in agents)
        return ready, {"ready": ready, "agents": agents}

    def _forget_status(self) -> None:
        self._status = None

    def _serving(self, handler: str) -> list[str]:
        return sorted(name for name, handlers in self._handlers.items() if handler in handlers)

    def _refresh(self) -> bool:
        """Read the runtime's description again if it was written since. True when it was."""
        try:
            found = os.stat(os.path.join(self._state_dir, "run", "runtime.json"))
            stamp = (found.st_ino, found.st_mtime_ns)
            if stamp == self._stamp:
                return False
            self._describe(read_runtime(self._state_dir)["agents"])
        except (OSError, OrunError):
            # The runtime is starting or stopping. What it said before is the best there is.
            return False
        self._stamp = stamp
        return True

    def _describe(self, agents: list[dict[str, Any]]) -> None:
        sockets = {agent["name"]: agent["socket"] for agent in agents}
        for name in [name for name in self._clients if sockets.get(name) != self._sockets[name]]:
            # Its requests under way may still be answered, so it is closed with everything else at the end.
            self._retired.append(self._clients.pop(name))
        for name in sockets.keys() - self._clients.keys():
            self._clients[name] = Client(sockets[name], retry_busy=False)
        self._sockets = sockets
        self._handlers = {agent["name"]: frozenset(agent["handlers"]) for agent in agents}
