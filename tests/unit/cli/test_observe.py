"""What people see: status, live view, logs and the doctor's findings."""

from __future__ import annotations

import io
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from orun.errors import EngineUnavailable, NotFound
from orun.observe import doctor, logs, mounts, status
from orun.observe.live import LiveView, PlainLines
from tests.unit.cli.service import Cli, Service

NOW = 1000.0
DOCUMENT: dict[str, Any] = {
    "schema": 1,
    "pid": 100,
    "runtime_pid": 101,
    "state_dir": "/srv/state",
    "started": NOW - 65,
    "http": "127.0.0.1:4000",
    "agents": [
        {
            "name": "counter", "pid": 104, "state": "running", "restarts": 2, "version": "0123456789abcdef",
            "lsn": 42, "durable_lsn": 40, "last_checkpoint": {"id": "counter-30", "lsn": 30, "time": NOW - 5},
            "requests": 1234, "errors": 1, "requests_per_s": 99.6, "p50_ms": 0.21, "p99_ms": 3.0,
        },
        {"name": "other", "pid": None, "state": "waiting", "restarts": 1, "detail": "exit code 1"},
    ],
    "tree": {
        "name": "main", "kind": "one_for_one", "state": "running", "children": [
            {"name": "agent counter", "kind": "one_for_one", "children": [
                {"name": "worker", "pid": 104, "state": "running", "restarts": 2, "detail": "last: killed by SIGKILL"},
                {"name": "standby", "pid": 105},
            ]},
            {"name": "children", "children": [{"name": "web", "pid": 110, "state": "running"}]},
        ],
    },
    "events": [
        {"time": NOW - 3, "text": "worker killed by SIGKILL"},
        {"time": NOW - 2, "text": "worker ready in 4 ms"},
    ],
}  # fmt: skip

HEADING = "orun pid 100, up 1m05s, http://127.0.0.1:4000, state in /srv/state"
ROWS = (
    ("AGENT", "STATE", "PID", "VERSION", "REQUESTS", "ERRORS", "RESTARTS", "REQ/S", "P50", "P99", "LOG", "CHECKPOINT"),
    ("counter", "running", "104", "0123456789ab", "1234", "1", "2", "100", "0.21ms", "3ms", "42 (2 not on disk)",
     "counter-30, 5s ago"),
    ("other", "waiting (exit code 1)", "-", "-", "-", "-", "1", "-", "-", "-", "-", "-"),
)  # fmt: skip
TREE = """\
main (one_for_one) running
├─ agent counter (one_for_one)
│  ├─ worker pid 104 running restarts 2 - last: killed by SIGKILL
│  └─ standby pid 105
└─ children
   └─ web pid 110 running"""
EVENTS = """\
    3s ago  worker killed by SIGKILL
    2s ago  worker ready in 4 ms"""


def test_the_status_for_people() -> None:
    heading, table, tree, events = status.render(DOCUMENT, now=NOW).split("\n\n")
    assert (heading, tree, events) == (HEADING, TREE, EVENTS)
    lines = table.splitlines()
    assert [tuple(re.split(r"  +", line)) for line in lines] == list(ROWS)
    assert len({line.index(row[1]) for line, row in zip(lines, ROWS, strict=True)}) == 1, "columns are aligned"


def test_a_narrow_terminal_gets_fewer_columns_and_whole_words() -> None:
    document = {**DOCUMENT, "agents": DOCUMENT["agents"][:1]}
    for width, columns in ((200, len(status.COLUMNS)), (80, 8), (1, 4)):
        table = status.render(document, now=NOW, width=width).split("\n\n")[1].splitlines()
        assert len(table[0].split()) == columns
        assert max(map(len, table)) <= max(width, 40)
        assert table[1].startswith("counter  running  104")


def test_the_live_view_is_never_higher_than_the_terminal() -> None:
    from orun.observe.live import draw

    output = [("counter", f"line {number}") for number in range(50)]
    for height in (8, 23, 60):
        text = str(draw(DOCUMENT, NOW, 80, height, "the end", output))
        assert len(text.splitlines()) <= max(height, 14)
        assert "line 49" in text
        assert text.endswith("the end")


def test_colour_only_where_it_is_asked_for() -> None:
    assert "\x1b" not in status.render(DOCUMENT, now=NOW)
    styled = status.render(DOCUMENT, now=NOW, styled=True)
    assert "\x1b[32mrunning\x1b[0m" in styled
    assert "\x1b[33mwaiting (exit code 1)\x1b[0m" in styled


def test_an_empty_document_is_enough() -> None:
    assert status.render({"pid": 1, "state_dir": "x", "agents": []}, now=NOW) == "orun pid 1, state in x"


@pytest.mark.parametrize("width", [200, 90, 40])
def test_the_live_view_draws_and_gives_the_terminal_back(width: int) -> None:
    from rich.console import Console

    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, width=width, height=40, color_system="standard", legacy_windows=False
    )
    with LiveView(console, footer="the end", clock=lambda: NOW) as view:
        view.update(DOCUMENT)
        view.update(DOCUMENT)
    text = out.getvalue()
    assert "counter" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


def test_plain_lines_say_each_event_once() -> None:
    said: list[str] = []
    lines = PlainLines(said.append)
    lines.update(DOCUMENT)
    lines.update(DOCUMENT)
    lines.update({**DOCUMENT, "events": [*DOCUMENT["events"][1:], {"time": NOW, "text": "more"}]})
    assert [line.split(" ", 1)[1] for line in said] == ["worker killed by SIGKILL", "worker ready in 4 ms", "more"]
    assert said[0].startswith("1970-01-01T00:16:37Z ")


def write(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def texts(lines: list[logs.Line]) -> list[str]:
    return [line.text for line in lines]


def test_the_last_lines_reach_into_rotated_files(tmp_path: Path) -> None:
    write(tmp_path / "a.log.1", "one", "two")
    write(tmp_path / "a.log", "three", "four")
    reader = logs.Reader(str(tmp_path), "a")
    assert texts(reader.past(3)) == ["two", "three", "four"]
    assert texts(reader.past(10)) == ["one", "two", "three", "four"]
    assert reader.past(0) == []


def test_following_loses_and_doubles_nothing_through_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    write(path, "one")
    reader = logs.Reader(str(tmp_path), "a")
    write(path, "two")
    assert texts(reader.past(10)) == ["one"]
    assert texts(reader.fresh()) == ["two"]
    with path.open("a") as file:
        file.write("thr")
    assert reader.fresh() == []
    with path.open("a") as file:
        file.write("ee\n")
    write(path, "four")
    path.rename(tmp_path / "a.log.1")
    write(path, "five")
    assert texts(reader.fresh()) == ["three", "four", "five"]
    assert reader.fresh() == []


def test_a_line_without_a_time_is_as_old_as_the_one_before(tmp_path: Path) -> None:
    write(
        tmp_path / "a.log",
        "no time",
        "2026-01-01T00:00:00Z old",
        "  its trace",
        "2026-01-02T00:00:00.5Z new",
        "  its trace",
    )
    since = logs.time_of("2026-01-02T00:00:00Z")
    lines = logs.Reader(str(tmp_path), "a").past(10, since=since)
    assert texts(lines) == ["no time", "2026-01-02T00:00:00.5Z new", "  its trace"]


def test_large_logs_are_read_from_their_end(tmp_path: Path) -> None:
    write(tmp_path / "a.log", *(f"line {number:06}" for number in range(50_000)))
    assert texts(logs.Reader(str(tmp_path), "a").past(2)) == ["line 049998", "line 049999"]
    assert len(logs.Reader(str(tmp_path), "a").past(20_000)) == 20_000


@pytest.mark.parametrize(
    ("text", "plain", "coloured"),
    [
        ("a\x1b[31mred\x1b[0m", "ared", "a\x1b[31mred\x1b[0m"),
        ("\x1b[2J\x1b]0;title\x07x", "x", "x"),
        ("a\x07b\rc\td", "abc\td", "abc\td"),
    ],
)
def test_what_would_act_on_the_terminal_is_taken_out(text: str, plain: str, coloured: str) -> None:
    assert logs.clean(text, coloured=False) == plain
    assert logs.clean(text, coloured=True) == coloured


def test_the_logs_command(cli: Cli, service: Service) -> None:
    folder = service.state_dir / "logs"
    folder.mkdir()
    write(folder / "runtime.log", "ready")
    write(folder / "counter.log", "one", "\x1b[31mtwo\x1b[0m")
    assert cli("logs", "counter").stdout == b"one\ntwo\n"
    assert cli("logs", "--lines", "1").stdout == b"runtime | ready\ncounter | two\n"
    document = json.loads(cli("logs", "counter", "--json").stdout)
    assert [line["text"] for line in document["lines"]] == ["one", "\x1b[31mtwo\x1b[0m"]
    assert "counter" in cli.error("logs", "nobody", code=10)["hint"]
    assert cli.error("logs", "--since", "whenever", code=2)["hint"]


def test_following_prints_what_comes(cli: Cli, service: Service) -> None:
    import subprocess
    import sys

    folder = service.state_dir / "logs"
    folder.mkdir()
    write(folder / "a.log", "before")
    with subprocess.Popen(
        [sys.executable, "-m", "orun", "logs", "-f", "a"], cwd=cli.folder, env=cli.environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"before\n"
        write(folder / "a.log", "after")
        assert process.stdout.readline() == b"after\n"
        process.terminate()


MOUNTS = """\
1 0 8:1 / / rw - ext4 /dev/sda rw
2 1 0:1 / /home rw - nfs4 server:/home rw
3 2 0:2 / /home/me/my\\040tmp rw - tmpfs tmpfs rw
4 1 0:3 / /mnt rw - fuse.sshfs x rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "network", "volatile"),
    [
        ("/srv/x", "ext4", False, False),
        ("/home/me", "nfs4", True, False),
        ("/homework", "ext4", False, False),
        ("/home/me/my tmp/x", "tmpfs", False, True),
        ("/mnt", "fuse.sshfs", True, False),
    ],
)
def test_the_mount_of_a_path(tmp_path: Path, path: str, kind: str, network: bool, volatile: bool) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    mount = mounts.mount_of(path, str(tmp_path / "mounts"))
    assert (mount.kind, mount.is_network, mount.is_volatile) == (kind, network, volatile)


def test_the_doctor_finds_this_machine_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orun.engine.build.ensure", lambda: None)
    checks = {check.name: check for check in doctor.examine(str(tmp_path / "state"))}
    for name in ("python", "kernel", "/proc", "engine", "state directory"):
        assert checks[name].state == "ok", checks[name]
    assert not (tmp_path / "state").exists()
    assert all(check.cost and check.mend for check in checks.values() if check.state != "ok")


def test_the_doctor_says_what_an_engine_that_cannot_be_built_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise EngineUnavailable("no compiler", hint="install ziglang")

    monkeypatch.setattr("orun.engine.build.ensure", fail)
    check = doctor.check_engine()
    assert (check.state, check.found, check.mend) == ("fail", "no compiler", "install ziglang")


def test_a_state_directory_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    assert doctor.check_state_dir(str(folder)).mend == f"chmod 700 {folder}"
    folder.chmod(0o700)
    assert doctor.check_state_dir(str(folder)).state == "ok"
    (tmp_path / "file").touch()
    assert doctor.check_state_dir(str(tmp_path / "file")).state == "fail"


def test_a_state_from_the_future_points_at_the_clock(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    later = time.time() + 3600
    os.utime(tmp_path / "journal", (later, later))
    assert "from later" in doctor.check_clock(str(tmp_path)).found


def test_the_logs_of_nothing() -> None:
    assert logs.names("/nowhere") == []
    with pytest.raises(NotFound):
        logs.choose("/nowhere", "a")
    assert logs.choose("/nowhere", "a", ["b", "a"]) == ["a"], "it runs, and has not printed anything yet"
