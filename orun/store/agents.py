"""What the database knows of each agent besides its log: the epoch, and what it was activated with."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from orun.errors import UsageError
from orun.store import rows
from orun.store.environment import Txn

_DATABASE = "meta"
_PREFIX = b"agent/"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class AgentRow:
    """The current life of an agent."""

    epoch: int = 0
    """Raised with every activation; a journal of another epoch is not listened to."""
    version: str = ""
    reason: str = ""
    time: float = 0.0
    durability: str = "disk"
    boot_id: str = ""
    """The run of the machine it was activated in: after a power cut the journal's end may be missing."""


def check_name(agent: str) -> None:
    """Refuse a name that cannot be part of file and database names."""
    if not _NAME.fullmatch(agent):
        raise UsageError(
            f"{agent!r} cannot be an agent's name",
            hint="letters, digits, '_', '-' and '.', at most 64, and not '-' or '.' first",
        )


def agent_names(txn: Txn) -> list[str]:
    """The agents that were ever activated."""
    names: list[str] = []
    for key, _ in txn.rows(_DATABASE, _PREFIX):
        if not key.startswith(_PREFIX):
            break
        names.append(key[len(_PREFIX) :].decode())
    return names


def load(txn: Txn, agent: str) -> AgentRow | None:
    """What is known, None when the agent was never activated; Damaged when it cannot be read."""
    key = _PREFIX + agent.encode()
    row = txn.get(_DATABASE, key)
    return None if row is None else AgentRow(**rows.unpack(key, row, f"the entry of agent {agent}"))


def put(txn: Txn, agent: str, row: AgentRow) -> None:
    """Write or replace."""
    key = _PREFIX + agent.encode()
    txn.put(_DATABASE, key, rows.pack(key, asdict(row)))
