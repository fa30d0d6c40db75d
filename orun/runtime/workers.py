"""A worker process as the runtime holds it, from standby to its end.

A worker is watched from its activation on: by its pidfd for its death, and by the counters of its shared
page for its silence. A silent one is told apart (see ``liveness``), asked for a stack dump where that
makes sense, and killed; its end then reads as ``hung``, with the dump kept in a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

from orun.engine.pages import AgentPage
from orun.errors import DeadlineExceeded, OrunError
from orun.runtime.child import Exit, StartFailed
from orun.runtime.liveness import FATAL, Reading, Verdict, Watch
from orun.runtime.logs import ChildLog
from orun.runtime.processes import Process
from orun.runtime.vital import vital
from orun.settings import Settings
from orun.store.layout import StateDir
from orun.worker import wire
from orun.worker.phase import PHASE_STARTING

LOOK_INTERVAL_S = 0.1
DUMP_WAIT_S = 0.2
CONTINUE_WAIT_S = 1.0
MESSAGE_BYTES_MAX = 1 << 16

log = logging.getLogger("orun.worker")

Fork = Callable[[dict[str, Any], dict[str, int], str], Awaitable[Process]]
"""Forks a worker: its arguments, its descriptors by name, its title."""


@final
class WorkerProcess:
    """One worker process, from standby to its end."""

    def __init__(
        self,
        process: Process,
        control: socket.socket,
        page: AgentPage,
        dump_fd: int,
        agent: str,
        *,
        output: ChildLog,
        dumps_dir: Path,
        dumps_kept: int,
        stale_s: float,
    ) -> None:
        self._process = process
        self._output = output
        self._dumps_dir = dumps_dir
        self._dumps_kept = dumps_kept
        self._stale_s = stale_s
        self._control = control
        self.page = page
        self._dump_fd = dump_fd
        self._agent = agent
        self._loop = asyncio.get_running_loop()
        self._standing: asyncio.Future[None] = self._loop.create_future()
        self._serving: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._listeners: list[Callable[[WorkerProcess], None]] = []
        self._watcher: asyncio.Task[None] | None = None
        self._verdict: Verdict | None = None
        self._draining = False
        self._prepared = False
        self._report: Exit | None = None
        self._ended = asyncio.Event()
        self.epoch = 0
        self.served: dict[str, Any] = {}
        self._loop.add_reader(control, self._receive)
        self._death = vital(self._await_death(), f"death of {process.title}")

    @classmethod
    async def fork(
        cls,
        fork: Fork,
        *,
        agent: str,
        version: str,
        home: str,
        settings: Settings,
        state: StateDir,
        listening: socket.socket,
        wake_fd: int,
        page: AgentPage,
        output: ChildLog,
    ) -> WorkerProcess:
        """Fork a worker and wait until it stands by. Raises StartFailed when it ends before."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        dump_fd = os.memfd_create(f"dump-{agent}")
        streams = output.pipes()
        args = {
            "agent": agent,
            "version": version,
            "home": home,
            "state_dir": str(state.path),
            "settings": asdict(settings.agent),
        }
        fds = {
            "control": theirs.fileno(),
            "stdout": streams[0],
            "stderr": streams[1],
            "page": page.fd,
            "wake": wake_fd,
            "listen": listening.fileno(),
            "dump": dump_fd,
        }
        try:
            process = await fork(args, fds, f"worker {agent}")
        except BaseException:
            ours.close()
            os.close(dump_fd)
            raise
        finally:
            theirs.close()
            for fd in streams:
                os.close(fd)
        ours.setblocking(False)
        worker = cls(
            process,
            ours,
            page,
            dump_fd,
            agent,
            output=output,
            dumps_dir=state.dumps,
            dumps_kept=settings.store.dumps_kept,
            stale_s=settings.runtime.stale,
        )
        await worker._stand(settings.runtime.start_timeout)
        return worker

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.exit is None

    async def _stand(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._standing
        except TimeoutError:
            self.kill()
            raise DeadlineExceeded(f"a worker of {self._agent} did not get ready within {timeout_s:g} s") from None

    def prepare(self) -> None:
        """Tell it that it is about to take over from a dead worker: it reads the log while the journal is sealed."""
        self._prepared = True
        self.page.phase = PHASE_STARTING
        with contextlib.suppress(OSError):  # it is gone: the activation says so
            self._control.send(wire.pack({"op": "prepare"}))

    def activate(self, ring_path: str, notify_fd: int, reason: str, epoch: int) -> None:
        """Tell it to take over."""
        self.epoch = epoch
        if not self._prepared:
            self.page.phase = PHASE_STARTING
        message = wire.pack({"op": "activate", "ring": ring_path, "reason": reason, "epoch": epoch})
        try:
            socket.send_fds(self._control, [message], [notify_fd])
        except OSError as error:
            raise StartFailed(f"{self._agent}: the standby is gone: {error.strerror}", self.exit_report()) from error

    async def noticed(self, timeout_s: float) -> None:
        """Return when it has begun to take over; kill it and raise StartFailed when it does not react."""
        deadline = self._loop.time() + timeout_s
        while self.page.phase == PHASE_STARTING and not self._serving.done():
            if self._loop.time() > deadline:
                self.kill()
                exit = Exit(reason="hung", message="the standby did not react and was killed", child=self._agent)
                raise StartFailed(f"{self._agent}: {exit.message}", exit)
            await asyncio.wait([self._serving], timeout=0.002)

    async def serving(self) -> None:
        """Return when it serves. However long a replay takes: it is watched, and killed when it stands still."""
        self._watcher = vital(self._watch(), f"watch {self._agent}")
        self.served = await self._serving

    def drain(self) -> None:
        """Tell it to answer what it has and end."""
        self._draining = True
        try:
            self._control.send(wire.pack({"op": "drain"}))
        except OSError:
            log.debug("%s is gone before it was told to drain", self._process.title)

    def kill(self) -> None:
        """End it now."""
        self._draining = True
        self._process.kill()

    async def gone(self, timeout_s: float | None) -> bool:
        """Wait for its end; False when it takes longer."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    def on_exit(self, listener: Callable[[WorkerProcess], None]) -> None:
        """Have ``listener`` called once, when it has ended."""
        if self._ended.is_set():
            self._loop.call_soon(listener, self)
        else:
            self._listeners.append(listener)

    def exit_report(self) -> Exit:
        """How it ended, with its last words."""
        return self._report or Exit(reason="lost", child=self._agent)

    def _receive(self) -> None:
        try:
            data = self._control.recv(MESSAGE_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._control)
            return
        message = wire.unpack(data)
        if message["op"] == "standing" and not self._standing.done():
            self._standing.set_result(None)
        elif message["op"] == "serving" and not self._serving.done():
            self._serving.set_result(message)
        elif message["op"] == "failed" and not self._serving.done():
            error = OrunError(message["message"], hint=message["hint"])
            error.code = message["code"]
            self._serving.set_exception(error)

    async def _await_death(self) -> None:
        exit = await self._process.wait()
        self._receive()
        self._loop.remove_reader(self._control)
        self._control.close()
        if self._watcher is not None:
            self._watcher.cancel()
        dump = self._keep_dump()
        self._output.drain()
        exit = replace(exit, child=self._agent, stderr=tuple(self._output.tail(20)), dump=dump)
        if self._verdict is not None:
            exit = replace(exit, reason="hung", message=f"{self._verdict.value}: {exit.text()}")
        elif self._draining:
            exit = replace(exit, reason="stopped")
        self._report = exit
        for future in (self._standing, self._serving):
            if not future.done():
                future.set_exception(StartFailed(f"{self._agent}: its worker ended: {exit.text()}", exit))
                future.exception()
        self._ended.set()
        for listener in self._listeners:
            listener(self)

    def _keep_dump(self) -> str | None:
        """Write what faulthandler left to a file; None when it left nothing."""
        size = os.fstat(self._dump_fd).st_size
        text = os.pread(self._dump_fd, min(size, 1 << 20), 0)
        os.close(self._dump_fd)
        if not text:
            return None
        path = self._dumps_dir / f"{self._agent}-{self.epoch}-{time.time_ns() // 1_000_000}.txt"
        handler = f"request under way: LSN {self.page.handler_lsn}\n" if self.page.handler_start_ns else ""
        try:
            path.write_bytes(handler.encode() + text)
            dumps = sorted(self._dumps_dir.glob("*.txt"), key=lambda dump: dump.stat().st_mtime)
            for old in dumps[: max(0, len(dumps) - self._dumps_kept)]:
                old.unlink()
        except OSError as error:
            log.warning("the stack dump of %s cannot be kept: %s", self._agent, error.strerror)
            return None
        return str(path)

    async def _watch(self) -> None:
        watch = Watch(self._stale_s, time.monotonic_ns())
        continued = False
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            verdict = watch.judge(self._read())
            if verdict not in FATAL:
                continued = False
                continue
            if verdict is Verdict.FROZEN and not continued:
                # Stopped by somebody, or by mistake: that is mended without a kill.
                continued = True
                self._process.send_signal(signal.SIGCONT)
                await asyncio.sleep(CONTINUE_WAIT_S)
                continue
            self._verdict = verdict
            log.warning("%s is %s and is killed", self._process.title, verdict.value)
            if verdict is not Verdict.FROZEN:
                self._process.send_signal(signal.SIGUSR2)
                await asyncio.sleep(DUMP_WAIT_S)
            self._process.kill()
            return

    def _read(self) -> Reading:
        page = self.page
        return Reading(
            now_ns=time.monotonic_ns(),
            native_ns=page.native_ns,
            loop_ns=page.loop_ns,
            handler_start_ns=page.handler_start_ns,
            handler_deadline_ns=page.handler_deadline_ns,
            phase=page.phase,
            progress=page.progress_done,
        )
