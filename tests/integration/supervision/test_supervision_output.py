"""A flood of output neither blocks the child nor fills memory or disk."""

from __future__ import annotations

import time
from pathlib import Path

from tests.integration.supervision.lab import Lab, live

FLOOD_BYTES = 100_000_000
FLOOD = """
import sys
block = (b"x" * 99 + b"\\n") * 10_000
for number in range(100):
    (sys.stdout if number % 2 else sys.stderr).buffer.write(block)
"""


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_flood_is_read_to_the_end_in_flat_memory_and_small_files(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        await lab.top().start()
        log = lab.log("flood", file_bytes=1 << 20, files=3, rate=1 << 20, burst=8 << 20)
        child = lab.life(lab.python("flood", FLOOD))
        before = resident_bytes()
        started = time.monotonic()
        await child.start()
        exit = await child.wait()
        assert exit.code == 0
        assert time.monotonic() - started < 10
        assert resident_bytes() - before < 16 << 20
        assert exit.stderr[-1] == "x" * 99
        log.close()
        files = sorted(tmp_path.glob("flood.log*"))
        assert len(files) == 3
        assert all(file.stat().st_size <= 1 << 20 for file in files)
        assert "bytes dropped: over 1048576 bytes a second]" in (tmp_path / "flood.log").read_text()
        assert log.dropped_bytes > FLOOD_BYTES * 0.8

    live(tmp_path, main)


def test_other_children_are_logged_while_one_floods(tmp_path: Path) -> None:
    async def main(lab: Lab) -> None:
        await lab.top().start()
        flood = lab.life(lab.python("flood", FLOOD))
        quiet = lab.life(lab.python("quiet", "for n in range(100): print(n, flush=True)"))
        await flood.start()
        await quiet.start()
        await quiet.wait()
        await flood.wait()
        assert lab.text("quiet").split() == [str(n) for n in range(100)]

    live(tmp_path, main)
