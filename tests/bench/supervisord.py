"""supervisord as a baseline: installed once into an environment of its own, never a dependency of orun."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

from tests.bench.processes import ROOT

CONFIG = """
[supervisord]
nodaemon=true
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
childlogdir={folder}

[program:bare]
command={python} {script} {socket} {state}
environment=PYTHONPATH="{root}"
autorestart=true
startsecs=0
"""


def install() -> Path | None:
    """The program, or None where it cannot be had."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orun-bench" / "supervisor"
    program = home / "bin" / "supervisord"
    if not program.exists():
        venv.create(home, with_pip=True)
        done = subprocess.run([home / "bin" / "pip", "install", "-q", "supervisor", "setuptools<81"], check=False)
        if done.returncode != 0:
            return None
    return program


@contextlib.contextmanager
def supervised(program: Path, folder: Path, script: Path, socket: Path, state: Path) -> Iterator[None]:
    """The script under supervisord."""
    config = folder / "supervisord.conf"
    config.write_text(
        CONFIG.format(folder=folder, python=sys.executable, script=script, socket=socket, state=state, root=ROOT)
    )
    process = subprocess.Popen([program, "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
