"""The commands on what is stored give the same answers beside a runtime and without one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from tests.support import COUNTER, Orun, wait_until

READS = [
    ("checkpoint", "list"),
    ("checkpoint", "show", "previous"),
    ("checkpoint", "verify"),
    ("wal", "show", "--limit", "5"),
    ("wal", "show", "--from", "2", "--to", "3"),
    ("wal", "verify"),
    ("deadletters", "list"),
]


@pytest.fixture
def used(orun: Orun) -> Orun:
    """A counter with two checkpoints and something after them."""
    orun.start(str(orun.write(COUNTER)))
    for amount in (1, 10):
        orun.call("add", {"amount": amount})
        orun.ok("checkpoint", "create")
    orun.call("add", {"amount": 100})
    return orun


def test_reads_are_the_same_beside_a_runtime_and_without_one(used: Orun) -> None:
    for command in READS:
        assert used.ok(*command)
    running = {command: used.json(*command) for command in READS}
    ids = [entry["id"] for entry in running["checkpoint", "list"]["checkpoints"]]
    assert len(ids) == 2
    assert running["checkpoint", "show", "previous"]["checkpoint"]["id"] == ids[0]
    assert running["checkpoint", "verify"]["ok"] is True
    assert running["wal", "verify"]["ok"] is True
    assert [entry["lsn"] for entry in running["wal", "show", "--from", "2", "--to", "3"]["records"]] == [2, 3]
    handlers = [entry.get("handler") for entry in running["wal", "show", "--limit", "5"]["records"]]
    assert "add" in handlers
    used.ok("stop")
    after = {command: used.json(*command) for command in READS}
    assert [entry["id"] for entry in after["checkpoint", "list"]["checkpoints"]][:2] == ids
    assert after["checkpoint", "verify"]["ok"] is True
    assert after["wal", "show", "--from", "2", "--to", "3"] == running["wal", "show", "--from", "2", "--to", "3"]


def test_a_restore_after_the_death_of_everything_takes_over_the_journals(used: Orun) -> None:
    for pid in used.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not used.processes(), what="every process to be gone")
    plan = used.json("restore", "--checkpoint", "--dry-run")["agents"][0]
    assert plan["from_lsn"] > plan["to_lsn"]
    assert plan["blocks"] == 1
    used.ok("restore", "--checkpoint", "--yes")
    used.start(str(used.folder / "agent.py"))
    assert used.call("total") == {"total": 11}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--checkpoint", "nope"), 10, "nope"),
        (("--at", "999999"), 10, "999999"),
        (("--at", "3000d"), 10, "reach back"),
        (("--at", "whenever"), 2, "cannot read the time"),
        (("--checkpoint", "--agent", "nobody"), 10, "nobody"),
        (("--from", "nowhere.orun"), 2, "nowhere.orun"),
        ((), 2, "--checkpoint, --at or --from"),
        (("--checkpoint", "--at", "3"), 2, "exclude each other"),
    ],
)
def test_a_restore_that_cannot_be_says_why(used: Orun, arguments: tuple[str, ...], code: int, text: str) -> None:
    done = used.run("restore", *arguments, "--yes")
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert text in done.stderr
    assert used.call("total") == {"total": 111}


def test_every_spelling_of_a_bare_checkpoint_means_the_latest(used: Orun) -> None:
    latest = used.json("restore", "--checkpoint", "latest", "--dry-run")
    for arguments in (
        ("--checkpoint",),
        ("--checkpoint", "--agent", "counter"),
        ("--yes", "--checkpoint"),
        ("--checkpoint=latest",),
    ):
        assert used.json("restore", *arguments, "--dry-run") == latest
    first, second = (entry["id"] for entry in used.json("checkpoint", "list")["checkpoints"])
    assert used.json("restore", "--checkpoint", first, "--dry-run")["agents"][0]["to_lsn"] == int(first.split("-")[1])
    assert used.json("restore", "--checkpoint", second, "--dry-run") == latest


def test_a_backup_never_overwrites_and_says_what_it_wrote(used: Orun, tmp_path: Path) -> None:
    target = tmp_path / "saved.orun"
    assert used.ok("backup", str(target)) == f"{target}\n"
    assert used.run("backup", str(target)).returncode == 2
    assert used.run("backup", str(tmp_path / "no" / "folder")).returncode == 2
    other = str(tmp_path / "other")
    assert json.loads(used.ok("restore", "--from", str(target), "--dry-run", "--json", "--state-dir", other))["agents"]
    assert not Path(other).exists()


def test_compaction_reports_what_it_freed(used: Orun) -> None:
    assert used.json("wal", "compact")["agents"][0]["agent"] == "counter"
    used.ok("stop")
    assert used.json("wal", "compact")["agents"][0]["agent"] == "counter"
