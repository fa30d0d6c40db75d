"""`kill -9` of a recorder at random moments, under a producer that knows what it appended."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orun.engine.journal import JournalFenced, JournalFull, JournalWriter
from orun.store.environment import Environment
from orun.store.planning import Planner
from orun.store.reader import AgentReader
from orun.store.records import FLAG_KEYED, Kind, encode_effect, iterate_changes
from orun.store.verify import verify
from tests.unit.store.harness import state_dir

ROUNDS = 120
SEED = 20261121

# Imports once, then forks a recorder for each connection: a round costs 30 ms instead of 300.
_TEMPLATE = """
import json, os, random, signal, socket, sys, threading
from orun.engine.load import engine
from orun.settings import StoreSettings
from orun.store.layout import StateDir
from orun.store.recorder import Recorder

def record(connection, state):
    settings = StoreSettings(
        ring_bytes=256 << 10, map_bytes=1 << 20, segment_bytes=16 << 10, log_bytes_kept=0,
        checkpoint_bytes=8 << 10, checkpoints_kept=3, export_every=3, commit_interval=0.002,
    )
    failed = lambda error: os.write(2, f"FAILED {error}\\n".encode())
    recorder = Recorder(state, settings, on_failure=failed, on_event=lambda *_: None)
    recorder.start()
    recovered = recorder.recover()
    activation = recorder.activate("counter", durability="disk", version="v1", reason="test").result()
    document = {"pid": os.getpid(), "ring": activation.ring_path, "first_lsn": activation.first_lsn,
                "epoch": activation.epoch, "recovered": recovered}
    socket.send_fds(connection, [json.dumps(document).encode()], [recorder.wake_fd])
    while connection.recv(1):
        pass

state = StateDir(sys.argv[1])
engine()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
with socket.socket(socket.AF_UNIX) as server:
    server.bind(sys.argv[2])
    server.listen()
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        if os.fork() == 0:
            server.close()
            record(connection, state)
            os._exit(0)
        connection.close()
"""


@pytest.fixture
def recorders(tmp_path: Path) -> Iterator[Path]:
    """The address at which each connection makes a recorder."""
    state = state_dir(tmp_path / "state")
    address = tmp_path / "s"
    process = subprocess.Popen(
        [sys.executable, "-c", _TEMPLATE, str(state.path), str(address)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield address
    process.kill()
    process.communicate()


class Producer:
    """Appends effects that count up, and knows the state after each."""

    def __init__(self) -> None:
        self.state: dict[bytes, bytes] = {}
        self.count = 0
        self.next_lsn = 1
        self.rng = random.Random(SEED)

    def produce(self, writer: JournalWriter, wake_fd: int, until: float) -> int:
        """Append a burst and watch until the time is up; returns the last LSN that was reported durable."""
        burst = self.rng.randrange(1, 300)
        while time.monotonic() < until:
            if burst == 0:
                continue  # the recorder makes checkpoints meanwhile
            burst -= 1
            self.count += 1
            key = b"k%d" % self.rng.randrange(200)
            value = b"%d " % self.count * self.rng.randrange(1, 40)
            keyed = self.rng.random() < 0.1
            payload = encode_effect(
                b"%d" % self.count, True, [(key, value)], key=b"id %d" % self.count if keyed else b""
            )
            try:
                lsn = writer.append(Kind.EFFECT, payload, ref=1, flags=FLAG_KEYED if keyed else 0)
            except JournalFull:
                self.count -= 1
            else:
                assert lsn == self.next_lsn
                self.next_lsn += 1
                self.state[key] = value
            if writer.wake_needed(self.rng.random() < 0.3):
                os.eventfd_write(wake_fd, 1)
        return writer.durable_lsn


def _round(address: Path, producer: Producer) -> tuple[int, int]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(address))
        message, fds, _, _ = socket.recv_fds(connection, 65536, 1)
        assert message, "the recorder ended before it was ready"
        hello = json.loads(message)
        # Nothing that was appended is lost by a kill, reported durable or not, and nothing is doubled.
        assert hello["first_lsn"] == producer.next_lsn, hello
        assert all(not entry["problem"] for entry in hello["recovered"])
        writer = JournalWriter.open(hello["ring"])
        try:
            lifetime = producer.rng.uniform(0.0, 0.04)
            durable = producer.produce(writer, fds[0], time.monotonic() + lifetime)
            os.kill(hello["pid"], signal.SIGKILL)
            # It still appends for a moment, as a worker would.
            producer.produce(writer, fds[0], time.monotonic() + 0.001)
        finally:
            writer.close()
            os.close(fds[0])
        while connection.recv(1):
            pass
    return int(hello["epoch"]), durable


@pytest.mark.timeout(300)
def test_nothing_is_lost_when_the_recorder_is_killed(recorders: Path, tmp_path: Path) -> None:
    producer = Producer()
    durable = 0
    for number in range(ROUNDS):
        epoch, told = _round(recorders, producer)
        assert epoch == number + 1
        durable = max(durable, told)
    assert durable > ROUNDS
    state = state_dir(tmp_path / "state")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(recorders))
        message, fds, _, _ = socket.recv_fds(connection, 65536, 1)
        os.close(fds[0])
        hello = json.loads(message)
        assert hello["first_lsn"] == producer.next_lsn
        old = JournalWriter.open(hello["ring"])
        os.kill(hello["pid"], signal.SIGKILL)
        while connection.recv(1):
            pass
        old.close()
    environment = Environment.for_reader(state.journal)
    assert verify(environment).problems == []
    assert Planner(environment, "counter", pytest.fail).state() == producer.state
    environment.close()
    _check_reader(state.path, producer)


def _check_reader(path: Path, producer: Producer) -> None:
    reader = AgentReader(state_dir(path), "counter", pytest.fail)
    base = reader.base()
    assert base > 0
    state = {key: reader.block(key, base) for key in reader.keys(base)}
    for batch in reader.records(base):
        for record in batch:
            if record.kind == Kind.EFFECT:
                state.update(iterate_changes(record.payload))
    assert state == producer.state
    assert reader.last_lsn() == producer.next_lsn - 1
    reader.close()


def test_worker_of_a_killed_recorder_is_fenced_by_the_next(recorders: Path) -> None:
    """A zombie that goes on appending after its successor was activated must not be believed."""
    producer = Producer()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(recorders))
        message, fds, _, _ = socket.recv_fds(connection, 65536, 1)
        hello = json.loads(message)
        zombie = JournalWriter.open(hello["ring"])
        producer.produce(zombie, fds[0], time.monotonic() + 0.01)
        os.kill(hello["pid"], signal.SIGKILL)
        while connection.recv(1):
            pass
        os.close(fds[0])
    _round(recorders, producer)
    with pytest.raises(JournalFenced):
        zombie.append(Kind.REQUEST, b"from the grave")
    zombie.close()
