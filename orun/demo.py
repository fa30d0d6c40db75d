"""``make demo``: an agent indexes the standard library's sources, is killed half-way, and is restored.

Everything is done through what a user has: the command line, and the client library where speed is
measured. The input is real, the kills are ``kill -9``, and every number printed was measured in this run.
"""

from __future__ import annotations

import asyncio
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

from orun.project import alive
from orun.worker.client import Client, connect

IN_FLIGHT = 16
DOCUMENT_BYTES_MAX = 200_000
QUERY = "asyncio event loop subprocess"


def main() -> int:
    """Run the demonstration in a temporary folder. Returns 0 when every check held."""
    with tempfile.TemporaryDirectory(prefix="orun-demo-") as folder:
        demo = Demo(Path(folder))
        try:
            demo.run()
        finally:
            demo.orun("stop", check=False)
    return 0


class Demo:
    """The steps, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.agent = folder / "library" / "agent.py"
        self.state_dir = str(folder / "state")

    def run(self) -> None:
        """All of it. Raises AssertionError at the first check that does not hold."""
        documents = list(sources())
        half = len(documents) // 2
        say(f"{len(documents)} files of the standard library, {sum(len(d['text']) for d in documents) / 1e6:.1f} MB\n")
        self.step("orun init library --template index")
        self.orun("init", "library", "--template", "index")
        self.step("orun run agent.py --detach")
        began = time.monotonic()
        self.orun("run", str(self.agent), "--detach", "--set", "runtime.intensity=10")
        say(f"   the agent answers after {(time.monotonic() - began) * 1000:.0f} ms")

        self.step(f"the first {half} files, {IN_FLIGHT} requests in flight")
        self.index(documents[:half])
        checkpoint = self.document("checkpoint", "create")
        say(f"   orun checkpoint create: {checkpoint['id']}")

        self.step("the other half, and kill -9 of the worker three times on the way")
        self.index(documents[half:], kills=3)
        self.check_documents(len(documents), "every acknowledged file is in the index")
        say(f"   orun call search {QUERY!r}: {', '.join(self.search()[:3])}")

        self.step("kill -9 of everything: guard, runtime, forkserver, workers")
        self.kill_everything()
        began = time.monotonic()
        self.orun("run", str(self.agent), "--detach")
        say(f"   orun run again: answering after {(time.monotonic() - began) * 1000:.0f} ms")
        self.check_documents(len(documents), "nothing is lost")

        self.step(f"orun restore --checkpoint {checkpoint['id']} --yes")
        began = time.monotonic()
        self.orun("restore", "--checkpoint", checkpoint["id"], "--yes")
        say(f"   restored in {(time.monotonic() - began) * 1000:.0f} ms")
        self.check_documents(half, "the index is as it was half-way")

        self.step("orun wal verify, orun checkpoint verify, orun stop")
        self.orun("wal", "verify")
        self.orun("checkpoint", "verify")
        self.orun("stop")
        say("   every record and block matches its checksum\n")

    def step(self, text: str) -> None:
        """Say what comes."""
        say(f"-- {text}")

    def index(self, documents: list[dict[str, str]], kills: int = 0) -> None:
        """Put documents in; kill the worker now and then."""
        killed: list[float] = []

        async def put_all() -> None:
            waiting = iter(documents)
            done = 0
            async with connect(self.state_dir) as client:

                async def put_some() -> None:
                    nonlocal done
                    for document in waiting:
                        reply = await client.call("put", document, timeout=60)
                        assert reply["id"] == document["id"], reply
                        done += 1

                tasks = [asyncio.create_task(put_some()) for _ in range(IN_FLIGHT)]
                for number in range(kills):
                    while done < len(documents) * (number + 1) // (kills + 1):
                        await asyncio.sleep(0.001)
                    killed.append(await self._kill_worker(client))
                await asyncio.gather(*tasks)

        began = time.monotonic()
        asyncio.run(put_all())
        took = time.monotonic() - began
        say(f"   {len(documents)} files acknowledged in {took:.1f} s ({len(documents) / took:.0f}/s)")
        for gap in killed:
            say(f"   worker killed: the next reply came {gap * 1000:.1f} ms later")

    async def _kill_worker(self, client: Client) -> float:
        """Kill it, and time how long a caller waits for the first correct reply."""
        before = self.document("status")["agents"][0]["pid"]
        os.kill(before, signal.SIGKILL)
        began = time.monotonic()
        await client.call("stats", {}, timeout=60)
        return time.monotonic() - began

    def kill_everything(self) -> None:
        """Kill the whole tree, the guard first."""
        status = self.document("status")
        pids = [status["pid"], *descendants(status["pid"])]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        began = time.monotonic()
        while any(alive(pid) for pid in pids):
            assert time.monotonic() - began < 5, "a process is left"
            time.sleep(0.001)
        say(f"   {len(pids)} processes killed; none is left after {(time.monotonic() - began) * 1000:.0f} ms")

    def check_documents(self, expected: int, text: str) -> None:
        """The agent must have exactly so many documents."""
        found = json.loads(self.orun("call", "stats"))["documents"]
        assert found == expected, f"{found} documents, not {expected}"
        say(f"   {found} documents: {text}")

    def search(self) -> list[str]:
        """The best files for a query."""
        hits = json.loads(self.orun("call", "search", json.dumps({"query": QUERY})))["hits"]
        return [hit["id"] for hit in hits]

    def document(self, *arguments: str) -> Any:
        """A command's JSON document."""
        return json.loads(self.orun(*arguments, "--json"))

    def orun(self, *arguments: str, check: bool = True) -> str:
        """Run one command."""
        command = [sys.executable, "-m", "orun", *arguments]
        environment = {**os.environ, "ORUN_STATE_DIR": self.state_dir}
        done = subprocess.run(command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if check and done.returncode != 0:
            raise SystemExit(f"orun {' '.join(arguments)} ended with {done.returncode}")
        return done.stdout


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


def say(text: str) -> None:
    """One line for the person who watches."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
