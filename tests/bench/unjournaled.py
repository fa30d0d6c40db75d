"""A worker with everything but a journal, for `journal on / off`; arguments: AGENT_FILE SOCKET."""

from __future__ import annotations

import asyncio
import runpy
import socket
import sys
from collections.abc import Iterator

from orun.engine.pages import AgentPage
from orun.settings import AgentSettings
from orun.worker.executor import Executor
from orun.worker.requests import Answers
from orun.worker.service import Service
from orun.worker.state import Blocks


class NoJournal:
    """Numbers records and forgets them."""

    durable_lsn = 1 << 62

    def __init__(self) -> None:
        self._lsn = 0

    def append(self, kind: int, payload: bytes, *, ref: int = 0, flags: int = 0) -> int:
        self._lsn += 1
        return self._lsn


class NoBlocks:
    def block(self, key: bytes, lsn: int) -> bytes | None:
        return None

    def keys(self, lsn: int) -> Iterator[bytes]:
        return iter(())


async def main(agent_file: str, path: str) -> None:
    agent = runpy.run_path(agent_file)["agent"]
    settings = AgentSettings(durability="process")
    answers = Answers()
    service = Service(agent, settings, answers)
    executor = Executor(
        agent,
        settings,
        Blocks(NoBlocks(), 0, settings.cache_bytes),
        answers,
        NoJournal(),
        AgentPage.create(),
        wake_recorder=lambda waiting: None,
        answered=service.answered,
        abandon=sys.exit,
    )
    service.attach(executor, lambda key: None)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path)
    listening.listen(128)
    await service.listen(listening)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
