"""A request that is sent again after a crash is not run again, wherever checkpoints lie."""

from __future__ import annotations

import os
import signal
import socket
import struct
from typing import Any

import pytest

from orun.worker import wire
from tests.support import COUNTER, Orun, wait_until


def ask(orun: Orun, request: list[Any]) -> Any:
    """One request on a connection of its own."""
    body = wire.pack(request)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(orun.agent()["socket"])
        connection.sendall(struct.pack("<I", len(body)) + body)
        reply = connection.makefile("rb")
        (size,) = struct.unpack("<I", reply.read(4))
        return wire.unpack(reply.read(size))


@pytest.mark.parametrize("durability", ["disk", "process"])
def test_a_request_answered_just_before_a_checkpoint_is_not_run_again(orun: Orun, durability: str) -> None:
    """The worker was killed right after a checkpoint, and a client whose reply was lost counted twice."""
    orun.start(str(orun.write(COUNTER)), "--durability", durability)
    request = [7, "add", {"amount": 5}, {"id": b"0123456789abcdef"}]
    assert ask(orun, request) == [7, True, {"total": 5}]
    orun.ok("checkpoint", "create")
    before = orun.agent()["pid"]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: orun.agent()["pid"] not in (None, before), what="the next worker")
    assert ask(orun, request) == [7, True, {"total": 5}]
    orun.ok("stop")
    orun.start(str(orun.folder / "agent.py"))
    assert ask(orun, request) == [7, True, {"total": 5}]
    assert orun.call("total") == {"total": 5}


def test_a_key_whose_effect_a_restore_has_undone_is_run_again(orun: Orun) -> None:
    """The stored reply would speak of a change that is not there any more."""
    orun.start(str(orun.write(COUNTER)))
    assert orun.call("add", {"amount": 1}, "--key", "kept") == {"total": 1}
    checkpoint = orun.json("checkpoint", "create")
    assert orun.call("add", {"amount": 10}, "--key", "undone") == {"total": 11}
    orun.ok("restore", "--checkpoint", checkpoint["id"], "--yes")
    assert orun.call("add", {"amount": 1}, "--key", "kept") == {"total": 1}
    assert orun.call("add", {"amount": 10}, "--key", "undone") == {"total": 11}
    assert orun.call("add", {"amount": 10}, "--key", "undone") == {"total": 11}
    assert orun.call("total") == {"total": 11}
