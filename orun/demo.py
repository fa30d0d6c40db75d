"""``make demo``: an agent indexes the standard library's sources, is killed half-way, and is restored.

Everything is done through what a user has: the command line, and the client library where speed is
measured. The input is real, the kills are ``kill -9``, and every number printed was measured in this run.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orun.engine import build
from orun.errors import OrunError
from orun.project import alive, running
from orun.units import format_count
from orun.worker import plain
from orun.worker.client import connect

IN_FLIGHT = 16
KILLS = 3
DOCUMENT_BYTES_MAX = 200_000
QUERY = "asyncio event loop subprocess"
STOP_WAIT_S = 20.0
TAIL_LINES = 20


class Failed(OrunError):
    """A check of the demonstration did not hold."""


def main() -> int:
    """Run the demonstration in a temporary folder. Returns 0 when every check held."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="orun-demo-") as folder:
        demo = Demo(Path(folder))
        try:
            demo.run()
        except OrunError as error:
            sys.stdout.flush()
            sys.stderr.write(f"\nDEMO FAILED: {error}\n{demo.tail()}")
            return 1
        finally:
            demo.end()
    say(f"\nShown in {time.monotonic() - began:.0f} s: no acknowledged change was lost, whatever was killed, and the")
    say("state went back to its checkpoint. Next: `orun init my-agent` (README.md, Quick start).")
    return 0


class Demo:
    """The steps, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.agent = folder / "library" / "agent.py"
        self.state_dir = str(folder / "state")
        self.steps = 0

    def run(self) -> None:
        """All of it. Raises Failed at the first check that does not hold."""
        documents = list(sources())
        half = len(documents) // 2
        size_mb = sum(len(document["text"]) for document in documents) / 1e6
        say(f"An agent that indexes the standard library of this Python: {len(documents)} files, {size_mb:.1f} MB.")

        self.step("Build the engine, make a project, run it", "orun init library --template index", "orun run --detach")
        build.ensure(lambda text: fact(text))
        self.orun("init", "library", "--template", "index")
        took = self.timed("run", str(self.agent), "--detach", "--set", "runtime.intensity=10")
        fact(f"the agent answers after {took * 1000:.0f} ms")

        self.step(f"Put in the first half, {IN_FLIGHT} requests under way at once", "orun checkpoint create")
        self.index(documents[:half])
        checkpoint = self.document("checkpoint", "create")
        fact(f"checkpoint {checkpoint['id']} made")

        self.step(f"Put in the other half, and kill the worker {KILLS} times meanwhile", "kill -9 WORKER")
        self.index(documents[half:], kills=KILLS)
        self.check_documents(len(documents), "every acknowledged file, once")
        fact(f"search for {QUERY!r}: {', '.join(self.search()[:3])}")

        self.step("Kill everything at once, and run it again", "kill -9 GUARD RUNTIME FORKSERVER ...", "orun run")
        self.kill_everything()
        fact(f"the agent answers after {self.timed('run', str(self.agent), '--detach') * 1000:.0f} ms")
        self.check_documents(len(documents), "nothing is lost")

        self.step("Go back to the checkpoint", f"orun restore --checkpoint {checkpoint['id']}")
        fact(f"restored in {self.timed('restore', '--checkpoint', checkpoint['id'], '--yes') * 1000:.0f} ms")
        self.check_documents(half, "as it was half-way")

        self.step("Verify every record and block, and stop", "orun wal verify", "orun checkpoint verify", "orun stop")
        log = self.document("wal", "verify")["agents"][0]
        fact(f"{log['records']} log records match their checksums")
        count = len(self.document("checkpoint", "verify")["checkpoints"])
        fact(f"{format_count(count, 'checkpoint')} can be read whole")
        self.orun("stop")

    def tail(self) -> str:
        """What the runtime said last; the folder goes with the demonstration."""
        path = Path(self.state_dir, "logs", "runtime.log")
        return "".join(path.read_text().splitlines(keepends=True)[-TAIL_LINES:]) if path.exists() else ""

    def end(self) -> None:
        """Leave no process behind, whatever happened."""
        if running(self.state_dir) is not None:
            self.orun("stop", check=False)

    def step(self, text: str, *commands: str) -> None:
        """Say what comes, and what a user types for it."""
        self.steps += 1
        say(f"\n{self.steps}. {text}")
        for command in commands:
            say(f"   $ {command}")

    def index(self, documents: list[dict[str, str]], kills: int = 0) -> None:
        """Put documents in; kill the worker now and then."""
        began = time.monotonic()
        replies, killed = asyncio.run(self._put_all(documents, kills))
        took = time.monotonic() - began
        fact(f"{len(documents)} files acknowledged in {took:.1f} s ({len(documents) / took:.0f} per second)")
        if killed:
            gaps = [longest_gap(replies, *span) for span in itertools.pairwise([*killed, replies[-1]])]
            shown = ", ".join(f"{gap * 1000:.0f} ms" for gap in gaps)
            fact(f"worker killed {len(killed)} times; the longest time without a reply after each: {shown}")

    async def _put_all(self, documents: list[dict[str, str]], kills: int) -> tuple[list[float], list[float]]:
        """The moments of the replies, and those of the kills."""
        waiting = iter(documents)
        replies: list[float] = []
        killed: list[float] = []
        begun = 0

        async with connect(self.state_dir) as client:

            async def put_some() -> None:
                nonlocal begun
                for document in waiting:
                    reply = await client.call("put", document, timeout=60)
                    check(reply["id"] == document["id"], f"a reply to another request: {reply}")
                    replies.append(time.monotonic())
                    if begun < kills and len(replies) > len(documents) * (begun + 1) // (kills + 1):
                        begun += 1
                        killed.append(await asyncio.to_thread(self._kill_worker))

            await asyncio.gather(*(put_some() for _ in range(IN_FLIGHT)))
        return replies, killed

    def _kill_worker(self) -> float:
        """Kill it; the moment when that was."""
        status = plain.control(self.state_dir, "status", timeout_s=10)
        os.kill(status["agents"][0]["pid"], signal.SIGKILL)
        return time.monotonic()

    def kill_everything(self) -> None:
        """Kill the whole tree, the guard first."""
        guard = self.document("status")["pid"]
        pids = [guard, *descendants(guard)]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        began = time.monotonic()
        while any(alive(pid) for pid in pids):
            check(time.monotonic() - began < STOP_WAIT_S, "a process is left")
            time.sleep(0.001)
        fact(f"{len(pids)} processes killed; none is left after {(time.monotonic() - began) * 1000:.0f} ms")

    def check_documents(self, expected: int, text: str) -> None:
        """The agent must have exactly so many documents."""
        found = json.loads(self.orun("call", "stats"))["documents"]
        check(found == expected, f"{found} documents in the index, not {expected}")
        fact(f"{found} files in the index: {text}")

    def search(self) -> list[str]:
        """The best files for a query."""
        hits = json.loads(self.orun("call", "search", json.dumps({"query": QUERY})))["hits"]
        return [hit["id"] for hit in hits]

    def document(self, *arguments: str) -> Any:
        """A command's JSON document."""
        return json.loads(self.orun(*arguments, "--json"))

    def timed(self, *arguments: str) -> float:
        """Run one command; the seconds it took, its own start included."""
        began = time.monotonic()
        self.orun(*arguments)
        return time.monotonic() - began

    def orun(self, *arguments: str, check: bool = True) -> str:
        """Run one command and return its results; what it has to say is shown only when it fails."""
        command = [sys.executable, "-m", "orun", *arguments]
        environment = {**os.environ, "ORUN_STATE_DIR": self.state_dir}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise Failed(f"`orun {' '.join(arguments)}` ended with {done.returncode}\n{done.stderr}")
        return done.stdout


def check(holds: bool, text: str) -> None:
    """Raise Failed unless it holds; an assertion could be switched off."""
    if not holds:
        raise Failed(text)


def longest_gap(replies: list[float], begin: float, end: float) -> float:
    """The longest time without a reply between two moments."""
    moments = [begin, *(at for at in replies if begin < at < end), end]
    return max(later - earlier for earlier, later in itertools.pairwise(moments))


def sources() -> Iterator[dict[str, str]]:
    """The standard library's own sources as documents."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        name = str(path.relative_to(root))
        if name.startswith(("site-packages", "test", "idlelib", "lib2to3")) or "/tests/" in name or "/test/" in name:
            continue
        if 0 < path.stat().st_size <= DOCUMENT_BYTES_MAX:
            yield {"id": name, "text": path.read_text(encoding="utf-8", errors="replace")}


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def fact(text: str) -> None:
    """One thing that was seen or measured."""
    say(f"   {text}")


def say(text: str) -> None:
    """One line for the person who watches."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
