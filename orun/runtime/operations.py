"""What the control socket offers while a runtime runs: its own operations, and the store's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, final

from orun.errors import NotFound, NotRunning, OrunError
from orun.observe import changes, storage
from orun.runtime import reporting
from orun.runtime.agents import AgentChild, AgentHost
from orun.runtime.supervisor import Supervisor
from orun.store.recorder import Recorder
from orun.worker.client import Client

if TYPE_CHECKING:
    from orun.runtime.runtime import Runtime

SCHEMA = 1
RETRY_TIMEOUT_S = 60.0

log = logging.getLogger("orun.operations")


@final
class Operations:
    """The operations of one runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._rates = reporting.Rates()

    def table(self) -> dict[str, Callable[[dict[str, Any]], Awaitable[Any]]]:
        """Every operation by its name."""
        return {
            "status": self.status,
            "stop": self.stop,
            "reload": self.reload,
            "checkpoint": self.checkpoint,
            "restore": self.restore,
            "compact": self.compact,
            "deadletters_drop": self.deadletters_drop,
            "deadletters_retry": self.deadletters_retry,
            "logs_rotate": self.logs_rotate,
        }

    async def status(self, args: dict[str, Any]) -> dict[str, Any]:
        """The status document."""
        return self.status_document()

    def status_document(self) -> dict[str, Any]:
        """What ``orun status --json`` prints."""
        runtime = self._runtime
        tree = runtime.main.tree()
        agents = []
        extra: dict[str, list[dict[str, Any]]] = {}
        for host in runtime.hosts.values():
            worker = _find(tree, f"agent {host.name}")["children"][0]
            agents.append(reporting.agent_document(host, worker, self._position(host.name), self._rates))
            extra[f"agent {host.name}"] = reporting.spare_processes(host)
        return {
            "schema": SCHEMA,
            "state_dir": str(runtime.state.path),
            "pid": reporting.guard_pid(),
            "runtime_pid": reporting.runtime_pid(),
            "started": runtime.started,
            "http": runtime.http,
            "agents": agents,
            "tree": reporting.tree_document(tree, extra),
            "events": list(runtime.events.latest)[-20:],
        }

    def _position(self, agent: str) -> dict[str, Any]:
        recorder = self._runtime.recorder
        infos = recorder.checkpoints(agent)
        last = {"id": infos[-1].id, "lsn": infos[-1].lsn, "time": infos[-1].time} if infos else None
        return {**recorder.position(agent), "last_checkpoint": last}

    async def stop(self, args: dict[str, Any]) -> dict[str, Any]:
        """End in an orderly way."""
        # The reply leaves first: the caller waits for the end of the process, not for this socket.
        asyncio.get_running_loop().call_later(0.01, self._runtime.end, 0)
        return {"schema": SCHEMA, "pid": reporting.guard_pid()}

    async def reload(self, args: dict[str, Any]) -> dict[str, Any]:
        """Take the agents' files as they are now."""
        hosts = self._runtime.host(args.get("agent"))
        results = [await host.reload(self._child(host).hand_over) for host in hosts]
        self._runtime.publish()
        for result in results:
            if result["changed"]:
                log.info("%s: reloaded, %s after %s", result["agent"], result["version"], result["previous"])
        return {"schema": SCHEMA, "agents": results}

    async def checkpoint(self, args: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint of one agent or of all."""
        recorder = self._runtime.recorder
        hosts = self._runtime.host(args.get("agent"))
        if not hosts:
            raise NotFound("no agent runs here")
        infos = [await asyncio.wrap_future(recorder.checkpoint(host.name, "asked for")) for host in hosts]
        documents = [info.as_dict() for info in infos]
        return {"schema": SCHEMA, **documents[0], "checkpoints": documents}

    async def restore(self, args: dict[str, Any]) -> dict[str, Any]:
        """Plan a restore, or perform it while the agents rest."""
        recorder = self._runtime.recorder
        # Planned first in any case, so that a target out of reach is refused before anybody is interrupted.
        plan = await asyncio.to_thread(changes.restore, recorder, {**args, "dry_run": True})
        if args["dry_run"]:
            return plan
        done: list[dict[str, Any]] = []
        for agent, _ in storage.restore_targets(recorder.agents(), args):
            perform = _restore_one(recorder, {**args, "agent": agent}, done)
            host = self._runtime.hosts.get(agent)
            if host is None:
                await perform()
            else:
                await self._child(host).at_rest(perform)
        return {"schema": SCHEMA, "dry_run": False, "agents": done}

    async def compact(self, args: dict[str, Any]) -> dict[str, Any]:
        """Drop what the settings no longer keep."""
        return await asyncio.to_thread(changes.compact, self._runtime.recorder, args)

    async def deadletters_drop(self, args: dict[str, Any]) -> dict[str, Any]:
        """Forget requests that were set aside."""
        return await asyncio.to_thread(changes.drop_deadletters, self._runtime.recorder, args)

    async def deadletters_retry(self, args: dict[str, Any]) -> dict[str, Any]:
        """Deliver requests that were set aside again, as new ones; each leaves the list once it is answered."""
        recorder = self._runtime.recorder
        retried = []
        for agent, lsn in await asyncio.to_thread(changes.chosen_deadletters, recorder, args):
            (host,) = self._runtime.host(agent)
            name = storage.letter_id(agent, lsn)
            shown = await asyncio.wrap_future(recorder.view(partial(storage.show_deadletter, id=name)))
            letter = shown["deadletter"]
            if letter["handler"] is None:
                raise OrunError(f"the request of {name} is no longer in the log")
            async with Client(str(host.socket_path)) as client:
                await client.call(letter["handler"], letter["payload"], timeout=RETRY_TIMEOUT_S)
            await asyncio.wrap_future(recorder.drop_dead_letter(agent, lsn))
            retried.append(name)
        return {"schema": SCHEMA, "ids": retried}

    async def logs_rotate(self, args: dict[str, Any]) -> dict[str, Any]:
        """Begin new log files."""
        return {"schema": SCHEMA, "rotated": self._runtime.rotate_logs()}

    def _child(self, host: AgentHost) -> AgentChild:
        branch = self._runtime.main.child(f"agent {host.name}")
        child = branch.child("worker") if isinstance(branch, Supervisor) else None
        if not isinstance(child, AgentChild):
            raise NotRunning(f"agent {host.name} is not running just now", hint="try again in a moment")
        return child


def _restore_one(recorder: Recorder, args: dict[str, Any], done: list[dict[str, Any]]) -> Callable[[], Awaitable[None]]:
    async def perform() -> None:
        done.extend((await asyncio.to_thread(changes.restore, recorder, args))["agents"])

    return perform


def _find(tree: dict[str, Any], id: str) -> dict[str, Any]:
    for child in tree["children"]:
        if child["id"] == id:
            found: dict[str, Any] = child
            return found
    raise NotFound(f"nothing called {id} is supervised")
