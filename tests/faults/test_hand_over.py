"""Reloads under load: no acknowledged reply is lost, and no request is done twice or refused."""

from __future__ import annotations

import itertools
import random

from tests.faults.counting import CHAIN, ROUNDS, shake
from tests.support import Orun


def test_reloads_under_load_lose_and_repeat_nothing(orun: Orun) -> None:
    agent = orun.write(CHAIN)
    orun.start(str(agent), "--durability", "process")
    versions = {orun.agent()["version"]}
    numbers = itertools.count()

    def strike(rng: random.Random) -> None:
        agent.write_text(f"{CHAIN}\n# edit {next(numbers)}\n")
        orun.ok("reload")
        versions.add(orun.agent()["version"])

    shake(orun, ROUNDS, strike).check()
    assert len(versions) == ROUNDS + 1
    assert orun.agent()["restarts"] == 0
