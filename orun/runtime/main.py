"""The entry of the runtime's process: options in, exit code out, every error said once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

from orun import settings_file
from orun.errors import OrunError
from orun.runtime.early import Early
from orun.runtime.launch import READY_FD, Options

EXIT_BROKEN_PIPE = 141
"""What a shell reports for a program that wrote to a closed pipe."""


def main(early: Early | None = None) -> NoReturn:
    """Run until the end and exit with its code."""
    options = Options(**json.loads(sys.argv[1]))
    ready = Ready(os.environ.pop(READY_FD, ""))
    try:
        code = asyncio.run(_run(options, ready, early))
    except OrunError as error:
        ready.failed(error)
        code = error.code
    except Exception as error:  # noqa: BLE001  a defect of ours: it is told whole, and the guard starts again
        traceback.print_exc()
        sys.stderr.flush()
        if ready.served:
            os.kill(os.getpid(), signal.SIGKILL)
        ready.failed(OrunError(f"a defect of orun: {type(error).__name__}: {error}", hint="its traceback is above"))
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by returning: a thread that hangs in a system call must not keep a runtime that has said its last word.
    os._exit(code)


async def _run(options: Options, ready: Ready, early: Early | None) -> int:
    from orun.runtime.foreground import Lines
    from orun.runtime.runtime import Runtime

    settings = settings_file.load(file=options.settings_file, overrides=options.settings).settings
    runtime = Runtime(options, settings, early)
    if options.live:
        from orun.runtime.live import show

        return await show(runtime, ready.succeeded)
    if not options.foreground:
        return await runtime.run(ready.succeeded, None)
    loop = asyncio.get_running_loop()

    def broken() -> None:
        loop.call_soon_threadsafe(runtime.end, EXIT_BROKEN_PIPE)

    return await runtime.run(ready.succeeded, Lines(alone=bool(options.command), quiet=options.quiet, broken=broken))


class Ready:
    """Tells whoever started the runtime that it is ready, or why it will not be."""

    def __init__(self, fd: str) -> None:
        self.served = False
        self._fd = int(fd) if fd else None
        if self._fd is None:
            return
        os.set_inheritable(self._fd, False)
        if os.environ.get("ORUN_RESTARTS", "0") != "0":
            # Whoever waited was answered by this runtime's predecessor.
            os.close(self._fd)
            self._fd = None
            self.served = True

    def succeeded(self, document: dict[str, Any]) -> None:
        """It serves."""
        self.served = True
        self._send({"ok": True, **document})

    def failed(self, error: OrunError) -> None:
        """It ends; said on standard error too when nobody waits for the message."""
        if self._fd is not None:
            self._send({"ok": False, "code": error.code, "message": error.message, "hint": error.hint})
            return
        _say(f"error: {error.message}")
        if error.hint:
            _say(f"hint: {error.hint}")

    def _send(self, message: dict[str, Any]) -> None:
        if self._fd is not None:
            os.write(self._fd, json.dumps(message).encode() + b"\n")
            os.close(self._fd)
            self._fd = None


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
