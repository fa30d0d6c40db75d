"""The wall clock jumps back and forth: order, liveness, deadlines that are not due, keys."""

from __future__ import annotations

import os

from tests.faults.shims import CLOCK, build
from tests.support import COUNTER, Orun

DAY_S = 86_400


def test_a_clock_that_jumps_breaks_neither_order_nor_liveness(orun: Orun) -> None:
    """The runtime and its workers see the jumps, their callers do not."""
    offset = orun.folder / "offset"
    offset.write_text("0")
    shimmed = {"LD_PRELOAD": str(build(CLOCK, orun.folder)), "ORUN_SHIM_CLOCK": str(offset)}
    agent = str(orun.write(COUNTER))

    def start() -> None:
        orun.environment.update(shimmed)
        orun.start(agent, "--set", "runtime.stale=1s", "--set", "store.checkpoint_interval=1s")
        for name in shimmed:
            del orun.environment[name]

    start()
    total = 0
    for jump in (-30 * DAY_S, 5, -3600, 3600, -1, 2 * DAY_S - 3605, 0):
        offset.write_text(str(jump))
        # A caller whose clock is behind has deadlines that have passed by the agent's clock: it asks without one.
        total += 1
        key = f"key at {jump}"
        if jump <= 0:
            assert orun.call("add", {"amount": 1}, "--key", key) == {"total": total}
            assert orun.call("add", {"amount": 1}, "--key", key) == {"total": total}
        else:
            assert orun.call("add", {"amount": 1}, "--timeout", "40d") == {"total": total}
    assert orun.agent()["restarts"] == 0
    assert orun.status()["agents"][0]["lsn"] >= 2 * total
    orun.ok("checkpoint", "create")
    os.kill(orun.agent()["pid"], 9)
    assert orun.call("total") == {"total": total}
    orun.ok("stop")
    offset.write_text(str(-100 * DAY_S))
    start()
    assert orun.call("total") == {"total": total}
    assert orun.call("add", {"amount": 1}) == {"total": total + 1}
    orun.ok("checkpoint", "create")
    assert orun.json("wal", "verify")["ok"]
    lsns = [record["lsn"] for record in orun.json("wal", "show", "--from", "1", "--limit", "1000")["records"]]
    assert lsns == list(range(1, len(lsns) + 1))
