"""What ``orun wal compact`` reports: space before and after the retention of every agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orun.store import blocks, log
from orun.store.environment import Environment
from orun.store.retention import RetentionJob


def measure(environment: Environment, agents: Sequence[str]) -> dict[str, dict[str, int]]:
    """Bytes in use for each agent: pages of its log segments and of its blocks."""
    result: dict[str, dict[str, int]] = {}
    with environment.read() as txn:
        for agent in agents:
            names = [log.segment_name(agent, first) for first in log.segments(txn, agent)]
            result[agent] = {
                "log_bytes": sum(txn.used_bytes(name) for name in names),
                "block_bytes": txn.used_bytes(blocks.database(agent)),
            }
    return result


def report(
    before: dict[str, dict[str, int]],
    after: dict[str, dict[str, int]],
    jobs: Sequence[RetentionJob],
    file_bytes: int,
) -> dict[str, Any]:
    """The document that ``--json`` prints. Pages set free are used again; the file itself does not shrink."""
    agents: list[dict[str, Any]] = []
    for job in jobs:
        was, now = sum(before[job.agent].values()), sum(after[job.agent].values())
        agents.append(
            {
                "agent": job.agent,
                "bytes_before": was,
                "bytes_after": now,
                "bytes_freed": was - now,
                "checkpoints_dropped": len(job.retired),
                "versions_dropped": job.versions_removed,
                "segments_dropped": job.segments_removed,
                **after[job.agent],
            }
        )
    return {"schema": 1, "file_bytes": file_bytes, "agents": agents}
