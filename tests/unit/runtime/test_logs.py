"""What children print: always read, never more than allowed, and never at the cost of the runtime."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from orun.runtime.logfile import LogFile, LogFileHandler
from orun.runtime.logs import LINE_BYTES_MAX, TAIL_LINES, Allowance, ChildLog
from orun.settings import LogSettings


class Bench:
    """One child's log and the writing ends of its pipes."""

    def __init__(self, folder: Path, settings: LogSettings) -> None:
        self.complaints: list[str] = []
        self.echoed: list[bytes] = []
        self.is_full = False
        self.path = folder / "child.log"
        self.log = ChildLog(
            "child",
            folder,
            settings,
            complain=self.complaints.append,
            echo=self,
        )
        self.out, self.err = self.log.pipes()

    def event(self, level: int, text: str) -> None:
        raise AssertionError(text)

    def show(self, name: str, data: bytes, is_error: bool) -> None:
        self.echoed.append(data)

    def full(self) -> bool:
        return self.is_full

    def close(self) -> None:
        os.close(self.out)
        os.close(self.err)
        self.log.close()

    def text(self) -> str:
        self.log.drain()
        return self.path.read_text()


def logging(folder: Path, main: Callable[[Bench], Any], **settings: Any) -> None:
    async def run() -> None:
        bench = Bench(folder, LogSettings(**settings))
        try:
            result = main(bench)
            if isinstance(result, Coroutine):
                await result
        finally:
            bench.close()

    asyncio.run(run())


def test_both_streams_go_to_one_file_in_whole_lines(tmp_path: Path) -> None:
    def main(bench: Bench) -> None:
        os.write(bench.out, b"one\ntw")
        os.write(bench.err, b"error\n")
        assert bench.text() == "one\nerror\n"
        os.write(bench.out, b"o\nthree")
        assert bench.text() == "one\nerror\ntwo\n"
        assert b"".join(bench.echoed) == b"one\nerror\ntwo\n"

    logging(tmp_path, main)
    assert (tmp_path / "child.log").read_text() == "one\nerror\ntwo\nthree\n"


def test_last_lines_of_stderr_are_kept_even_when_they_are_not_logged(tmp_path: Path) -> None:
    def main(bench: Bench) -> None:
        os.write(bench.err, b"".join(b"%d\n" % n for n in range(1000)))
        bench.log.drain()
        assert bench.log.tail(2) == ["998", "999"]
        assert len(bench.log.tail(10_000)) == TAIL_LINES
        assert bench.log.dropped_bytes > 0
        bench.log.forget_tail()
        assert bench.log.tail(2) == []

    logging(tmp_path, main, rate=1, burst=100)


def test_too_long_lines_are_split(tmp_path: Path) -> None:
    def main(bench: Bench) -> None:
        os.write(bench.out, b"x" * (2 * LINE_BYTES_MAX + 5) + b"\nshort\n")
        lines = bench.text().split("\n")
        assert [len(line) for line in lines] == [LINE_BYTES_MAX, LINE_BYTES_MAX, 5, 5, 0]

    logging(tmp_path, main)


@pytest.mark.parametrize("length", [LINE_BYTES_MAX - 1, LINE_BYTES_MAX, LINE_BYTES_MAX + 1, 3 * LINE_BYTES_MAX])
def test_nothing_is_lost_in_splitting(tmp_path: Path, length: int) -> None:
    data = b"a\n" + b"y" * length + b"\n\nb\n"

    def main(bench: Bench) -> None:
        for start in range(0, len(data), 5000):
            os.write(bench.out, data[start : start + 5000])
            bench.log.drain()
        content = bench.path.read_bytes()
        assert content.replace(b"\n", b"") == data.replace(b"\n", b"")
        assert max(map(len, content.split(b"\n"))) <= LINE_BYTES_MAX

    logging(tmp_path, main)


def test_an_endless_line_needs_no_memory(tmp_path: Path) -> None:
    def main(bench: Bench) -> None:
        for _ in range(100):
            os.write(bench.out, b"z" * 60_000)
            bench.log.drain()
        (stream, _) = bench.log._streams
        assert len(stream._rest) <= LINE_BYTES_MAX

    logging(tmp_path, main, rate=1, burst=1000)


def test_over_the_rate_lines_are_dropped_and_one_line_says_how_much(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        for _ in range(50):
            os.write(bench.out, b"x" * 99 + b"\n")
            bench.log.drain()
        assert bench.path.stat().st_size == 1000
        bench.log._say_dropped()
        assert bench.text().count("\n") == 11
        assert bench.text().endswith("[orun: 40 lines, 4000 bytes dropped: over 10 bytes a second]\n")
        assert bench.log.dropped_bytes == 4000

    logging(tmp_path, main, rate=10, burst=1000)


def test_allowance_fills_with_time_up_to_its_burst() -> None:
    allowance = Allowance(rate=10, burst=100, now=0.0)
    assert allowance.take(100, 0.0)
    assert not allowance.take(1, 0.0)
    assert not allowance.take(11, 1.0)
    assert allowance.take(10, 1.0)
    assert not allowance.take(101, 1000.0)
    assert allowance.take(100, 1000.0)


def test_files_rotate_by_size_and_the_oldest_goes(tmp_path: Path) -> None:
    def main(bench: Bench) -> None:
        for n in range(10):
            os.write(bench.out, b"%d" % n * 59 + b"\n")
            bench.log.drain()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["child.log", "child.log.1", "child.log.2"]
        assert bench.path.read_text()[0] == "9"
        assert (tmp_path / "child.log.1").read_text()[0] == "8"
        assert (tmp_path / "child.log.2").read_text()[0] == "7"
        bench.log.rotate()
        assert not bench.path.exists()
        os.write(bench.out, b"new\n")
        assert bench.text() == "new\n"

    logging(tmp_path, main, file_bytes=100, files=3)


def test_one_file_only_is_begun_anew(tmp_path: Path) -> None:
    def main(bench: Bench) -> None:
        for n in range(5):
            os.write(bench.out, b"%d" % n * 59 + b"\n")
            bench.log.drain()
        assert [path.name for path in tmp_path.iterdir()] == ["child.log"]
        assert bench.path.read_text()[0] == "4"

    logging(tmp_path, main, file_bytes=100, files=1)


def test_log_goes_on_where_the_last_runtime_left_it(tmp_path: Path) -> None:
    (tmp_path / "child.log").write_text("before\n")

    def main(bench: Bench) -> None:
        os.write(bench.out, b"after\n")
        assert bench.text() == "before\nafter\n"

    logging(tmp_path, main)


def test_full_disk_is_told_once_and_what_is_missing_is_said_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[str] = []
    clock = [0.0]
    monkeypatch.setattr("orun.runtime.logfile.time.monotonic", lambda: clock[0])
    path = tmp_path / "child.log"
    path.symlink_to("/dev/full")
    file = LogFile(path, LogSettings(), complaints.append)
    for _ in range(100):
        file.write(b"0123456789\n")
        clock[0] += 0.1
    assert len(complaints) == 1
    assert "No space left on device" in complaints[0]
    assert file.lost == 1100
    file.close()
    path.unlink()
    clock[0] += 1.0
    file.write(b"back\n")
    assert path.read_text() == "[orun: 1100 bytes are missing here: the disk refused them]\nback\n"
    assert file.lost == 0
    file.close()


def test_missing_folder_does_not_stop_anything(tmp_path: Path) -> None:
    complaints: list[str] = []
    file = LogFile(tmp_path / "gone" / "child.log", LogSettings(), complaints.append)
    file.write(b"x\n")
    file.write(b"y\n")
    assert len(complaints) == 1
    assert file.lost == 4


def test_runtime_log_writes_one_line_for_a_record(tmp_path: Path) -> None:
    import logging as standard

    file = LogFile(tmp_path / "runtime.log", LogSettings(), lambda text: None)
    handler = LogFileHandler(file)
    handler.emit(standard.LogRecord("orun.test", standard.WARNING, "", 0, "died: %s", ("why",), None))
    file.close()
    assert (tmp_path / "runtime.log").read_text().endswith(" WARNING orun.test: died: why\n")
