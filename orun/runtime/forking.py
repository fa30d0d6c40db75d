"""The runtime's end of a forkserver: ask for a child, get a process."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgpack

from orun.errors import OrunError
from orun.runtime.child import Child, Exit, StartFailed
from orun.runtime.early import CONTROL_FD, Early, forkserver_command
from orun.runtime.processes import Process, Processes
from orun.worker.forkserver import FDS_MAX, MESSAGE_BYTES_MAX

FORK_TIMEOUT_S: Final = 5.0
"""A fork takes milliseconds: a forkserver that has not answered by then stands still."""


class ForkFailed(OrunError):
    """A forkserver could not, or did not, fork a child."""


class ForkserverSilent(ForkFailed):
    """A forkserver did not answer in time."""


class ForkserverGone(ForkFailed):
    """The forkserver ended before it answered; the child, if there is one, is swept away."""


class ForkClient:
    """Speaks to one forkserver or template; many requests may be outstanding."""

    def __init__(self, control: socket.socket, processes: Processes) -> None:
        control.setblocking(False)
        self._control = control
        self._processes = processes
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[asyncio.Future[Process], str]] = {}
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._sending = asyncio.Lock()
        self._writable = asyncio.Event()
        self._loop.add_reader(control, self._receive)
        self._end_announcing = processes.before_sweep(self._receive)
        self.closed = False

    async def ready(self) -> None:
        """Return when it serves; ForkserverGone when it never will."""
        await asyncio.shield(self._ready)

    async def fork(
        self,
        target: str,
        args: Mapping[str, Any],
        *,
        fds: Mapping[str, int] | None = None,
        title: str,
        timeout: float = FORK_TIMEOUT_S,
    ) -> Process:
        """Fork a child that runs ``target`` ("module:function"); the descriptors stay the caller's to close."""
        if self.closed:
            raise ForkserverGone(f"{title} cannot be forked: the forkserver is gone")
        fds = fds or {}
        id = next(self._ids)
        request = {"op": "fork", "id": id, "target": target, "args": args, "title": title, "fd_names": list(fds)}
        data: bytes = msgpack.packb(request)
        if len(data) > MESSAGE_BYTES_MAX or len(fds) > FDS_MAX:
            raise ForkFailed(f"{title} cannot be forked: {len(data)} bytes of arguments and {len(fds)} descriptors")
        future: asyncio.Future[Process] = self._loop.create_future()
        self._waiting[id] = (future, title)
        try:
            async with asyncio.timeout(timeout):
                await self._send(data, list(fds.values()))
                return await future
        except BaseException as error:
            # A child that comes after all is not adopted by anybody, so the next sweep kills it; one that
            # came in this moment is known, but nobody would ever end it.
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().kill()
            if isinstance(error, TimeoutError):
                raise ForkserverSilent(f"{title} was not forked within {timeout:g} s") from None
            raise
        finally:
            self._waiting.pop(id, None)

    def close(self) -> None:
        """Hang up: the forkserver ends, its children live on, what is outstanding fails."""
        if self.closed:
            return
        self.closed = True
        self._end_announcing()
        self._loop.remove_reader(self._control)
        self._loop.remove_writer(self._control)
        self._control.close()
        self._writable.set()
        gone = [(self._ready, "the forkserver")] + [(future, title) for future, title in self._waiting.values()]
        for future, title in gone:
            if not future.done():
                future.set_exception(ForkserverGone(f"{title} was not forked: the forkserver ended"))
                future.exception()  # whoever waits still gets it; nobody need wait

    async def _send(self, data: bytes, fds: list[int]) -> None:
        async with self._sending:
            while not self.closed:
                try:
                    socket.send_fds(self._control, [data], fds)
                    return
                except BlockingIOError:
                    self._writable.clear()
                    self._loop.add_writer(self._control, self._writable.set)
                    try:
                        await self._writable.wait()
                    finally:
                        if not self.closed:
                            self._loop.remove_writer(self._control)
                except ConnectionError:
                    self.close()

    def _receive(self) -> None:
        while not self.closed:
            try:
                data = self._control.recv(MESSAGE_BYTES_MAX)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                self.close()
                return
            self._handle(msgpack.unpackb(data))

    def _handle(self, message: dict[str, Any]) -> None:
        if message["op"] == "ready":
            if not self._ready.done():
                self._ready.set_result(None)
            return
        future, title = self._waiting.pop(message["id"], (None, ""))
        if future is None or future.done():
            return
        if message["op"] == "forked":
            future.set_result(self._processes.adopt(message["pid"], title))
        else:
            future.set_exception(ForkFailed(f"{title} cannot be forked: {message['error']}"))


class Forkserver:
    """The forkserver as a service: ``fork`` waits for the present one, or for the next when it died."""

    def __init__(
        self,
        processes: Processes,
        *,
        modules: Sequence[str] = (),
        output: Callable[[], tuple[int, int]] | None = None,
        start_timeout: float = 30.0,
        early: Early | None = None,
    ) -> None:
        self._early = early
        self._processes = processes
        self._modules = modules
        self._output = output
        self.start_timeout = start_timeout
        self._client: ForkClient | None = None
        self._process: Process | None = None
        self._changed = asyncio.Condition()

    def child(self) -> Child:
        """One life of it, for a :class:`~orun.runtime.child.ChildSpec`."""
        return _ForkserverLife(self)

    async def fork(
        self,
        target: str,
        args: Mapping[str, Any],
        *,
        fds: Mapping[str, int] | None = None,
        title: str,
        timeout: float = FORK_TIMEOUT_S,
    ) -> Process:
        """As :meth:`ForkClient.fork`; tried again when the forkserver dies meanwhile."""
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            client = await self._present(title, deadline)
            left = deadline - asyncio.get_running_loop().time()
            try:
                return await client.fork(target, args, fds=fds, title=title, timeout=left)
            except ForkserverGone:
                continue
            except ForkserverSilent:
                # Stopped by somebody or hung: whoever asks again gets a new one.
                if client is self._client and self._process is not None:
                    self._process.kill()
                raise

    async def _present(self, title: str, deadline: float) -> ForkClient:
        try:
            async with asyncio.timeout_at(deadline), self._changed:
                await self._changed.wait_for(lambda: self._client is not None and not self._client.closed)
        except TimeoutError:
            raise ForkFailed(f"{title} cannot be forked: there is no forkserver") from None
        assert self._client is not None
        return self._client

    async def serve_by(self, client: ForkClient, process: Process) -> None:
        """Fork by ``client``, the other end of which is ``process``, from here on."""
        async with self._changed:
            self._client = client
            self._process = process
            self._changed.notify_all()

    def spawn(self) -> tuple[Process, ForkClient]:
        """Start the program, or take the one that was started early."""
        early, self._early = self._early, None
        if early is not None:
            return self._processes.adopt(early.pid, "forkserver"), ForkClient(early.control, self._processes)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = {CONTROL_FD: theirs.fileno()}
        streams = self._output() if self._output is not None else ()
        fds |= dict(zip((1, 2), streams, strict=False))
        try:
            process = self._processes.spawn(forkserver_command(self._modules), title="forkserver", fds=fds)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            for fd in streams:
                os.close(fd)
        return process, ForkClient(ours, self._processes)


class _ForkserverLife(Child):
    def __init__(self, service: Forkserver) -> None:
        self._service = service
        self._process: Process | None = None
        self._client: ForkClient | None = None

    async def start(self) -> None:
        self._process, self._client = self._service.spawn()
        self.pid = self._process.pid
        try:
            async with asyncio.timeout(self._service.start_timeout):
                await self._client.ready()
        except ForkserverGone:
            exit = replace(await self._process.wait(), reason="start_failed")
            raise StartFailed(f"the forkserver ended: {exit.text()}", exit) from None
        except TimeoutError:
            self.kill()
            message = f"the forkserver was not ready within {self._service.start_timeout:g} s"
            raise StartFailed(message, Exit(reason="start_failed", message=message)) from None
        except BaseException:
            self.kill()
            raise
        await self._service.serve_by(self._client, self._process)

    async def wait(self) -> Exit:
        assert self._process is not None
        assert self._client is not None
        exit = await self._process.wait()
        self._client.close()
        return exit

    def stop(self) -> None:
        if self._client is not None:
            self._client.close()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
