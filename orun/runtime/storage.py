"""The store's operations as documents: the same for a running runtime and for a command that holds the lock.

Each takes the arguments of its operation on the control socket and returns what ``--json`` prints. They block,
so the runtime runs them in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, final

from orun.errors import NotFound, OrunError, UsageError
from orun.store import checkpoints, log
from orun.store.checkpoints import CheckpointInfo
from orun.store.deadletters import DeadLetter
from orun.store.environment import Environment
from orun.store.frames import FrameCodec
from orun.store.recorder import Recorder
from orun.store.records import Kind, decode_effect
from orun.store.restore import RestorePlan
from orun.store.targets import Target
from orun.store.verify import Problem, verify_checkpoint
from orun.worker import wire

T = TypeVar("T")

SCHEMA = 1
RECORDS_SHOWN = 20
SUMMARY_CHARS = 100


@final
class Storage:
    """Operations on everything that is stored, through a recorder that is started and has recovered."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def table(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """Every operation by its name."""
        return {
            "checkpoints": self.checkpoints,
            "checkpoint_show": self.checkpoint_show,
            "checkpoint_verify": self.checkpoint_verify,
            "deadletters": self.deadletters,
            "deadletters_show": self.deadletters_show,
            "deadletters_drop": self.deadletters_drop,
            "wal_show": self.wal_show,
            "wal_verify": self.wal_verify,
            "compact": self.compact,
            "backup": self.backup,
            "restore": self.restore,
        }

    def agents(self, name: str | None) -> list[str]:
        """The agent of this name, or all that there are. Raises NotFound."""
        known = self._recorder.agents()
        if name is None:
            return known
        if name not in known:
            raise NotFound(f"there is no agent {name!r} here", hint=f"agents: {', '.join(known) or 'none'}")
        return [name]

    def checkpoints(self, args: dict[str, Any]) -> dict[str, Any]:
        """All checkpoints, the latest last."""
        found = [info for agent in self.agents(args.get("agent")) for info in self._recorder.checkpoints(agent)]
        found.sort(key=lambda info: info.time)
        return {"schema": SCHEMA, "checkpoints": [info.as_dict() for info in found]}

    def checkpoint_show(self, args: dict[str, Any]) -> dict[str, Any]:
        """One checkpoint."""
        return {"schema": SCHEMA, "checkpoint": self._checkpoint(args["id"], args.get("agent")).as_dict()}

    def checkpoint_verify(self, args: dict[str, Any]) -> dict[str, Any]:
        """Read every block that can be reached from some checkpoints, or from all."""
        agent = args.get("agent")
        wanted = [self._checkpoint(text, agent) for text in args.get("ids") or []]
        wanted = wanted or [info for name in self.agents(agent) for info in self._recorder.checkpoints(name)]
        entries = []
        for info in wanted:
            problems = self._view(partial(_verify_checkpoint, info))
            problem = "; ".join(found.describe() for found in problems) or None
            entries.append({"id": info.id, "agent": info.agent, "ok": not problems, "problem": problem})
        return {"schema": SCHEMA, "ok": all(entry["ok"] for entry in entries), "checkpoints": entries}

    def deadletters(self, args: dict[str, Any]) -> dict[str, Any]:
        """The requests that were set aside."""
        letters = [_letter(agent, letter) for agent, letter in self._letters(args.get("agent"))]
        return {"schema": SCHEMA, "deadletters": letters}

    def deadletters_show(self, args: dict[str, Any]) -> dict[str, Any]:
        """One of them, with its payload and the stack dumps kept."""
        agent, letter = self.letter(args["id"])
        dumps = sorted(str(path) for path in self._recorder.state.dumps.glob(f"{agent}-*.txt"))
        return {"schema": SCHEMA, "deadletter": {**_letter(agent, letter, whole=True), "dumps": dumps}}

    def deadletters_drop(self, args: dict[str, Any]) -> dict[str, Any]:
        """Forget some for good."""
        dropped = []
        for agent, letter in self.chosen(args):
            if self._recorder.drop_dead_letter(agent, letter.lsn).result():
                dropped.append(_letter_id(agent, letter))
        return {"schema": SCHEMA, "ids": dropped}

    def chosen(self, args: dict[str, Any]) -> list[tuple[str, DeadLetter]]:
        """The dead letters that ``ids`` or ``all`` name. Raises NotFound."""
        if args.get("all"):
            return list(self._letters(args.get("agent")))
        return [self.letter(text) for text in args.get("ids") or []]

    def letter(self, text: str) -> tuple[str, DeadLetter]:
        """A dead letter by its id. Raises NotFound."""
        for agent, letter in self._letters(None):
            if _letter_id(agent, letter) == text:
                return agent, letter
        raise NotFound(f"there is no dead letter {text}", hint="`orun deadletters list` shows them")

    def wal_show(self, args: dict[str, Any]) -> dict[str, Any]:
        """Records of the log: from a position on, or the last few."""
        limit = int(args.get("limit") or RECORDS_SHOWN)
        records = []
        for agent in self.agents(args.get("agent")):
            last = self._recorder.position(agent)["last_lsn"]
            start, end = args.get("from"), args.get("to") or last
            after = (start if start is not None else max(end - limit + 1, 1)) - 1
            records += self._view(partial(_records, agent, after, end, limit))
        return {"schema": SCHEMA, "records": records}

    def wal_verify(self, args: dict[str, Any]) -> dict[str, Any]:
        """Check everything that is stored, agent by agent."""
        entries = []
        for agent in self.agents(args.get("agent")):
            summary = self._recorder.verify(agent).result()
            first = self._view(partial(_first_lsn, agent))
            entries.append(
                {
                    "agent": agent,
                    "records": summary.records,
                    "blocks": summary.blocks,
                    "checkpoints": summary.checkpoints,
                    "log_bytes": summary.log_bytes,
                    "first_lsn": first,
                    "last_lsn": self._recorder.position(agent)["last_lsn"],
                    "problems": [
                        {
                            "where": problem.where,
                            "lsn": problem.lsn,
                            "why": problem.what,
                            "segment": problem.segment,
                            "offset": problem.offset,
                        }
                        for problem in summary.problems
                    ],
                }
            )
        return {"schema": SCHEMA, "ok": not any(entry["problems"] for entry in entries), "agents": entries}

    def compact(self, args: dict[str, Any]) -> dict[str, Any]:
        """Drop what the settings no longer keep."""
        self.agents(args.get("agent"))
        return self._recorder.compact().result()

    def backup(self, args: dict[str, Any]) -> dict[str, Any]:
        """Write everything of this moment to one file."""
        info = self._recorder.backup(Path(args["path"])).result()
        return {
            "schema": SCHEMA,
            "path": info.path,
            "bytes": info.bytes,
            "rows": info.rows,
            "agents": list(info.agents),
        }

    def restore(self, args: dict[str, Any]) -> dict[str, Any]:
        """Bring agents back to an earlier state; they must have no worker unless it is a dry run."""
        dry_run = bool(args.get("dry_run"))
        plans = [
            self._recorder.restore(agent, target, dry_run=dry_run).result() for agent, target in self.targets(args)
        ]
        return {"schema": SCHEMA, "applied": not dry_run, "agents": [_plan(plan) for plan in plans]}

    def targets(self, args: dict[str, Any]) -> list[tuple[str, Target]]:
        """Which agents go back to what. Raises UsageError or NotFound when that is not clear."""
        agents = self.agents(args.get("agent"))
        if not agents:
            raise NotFound("there is no agent here to restore")
        if (text := args.get("checkpoint")) is not None:
            if text in ("latest", "previous"):
                return [(agent, Target(checkpoint=text)) for agent in agents]
            info = self._checkpoint(text, args.get("agent"))
            return [(info.agent, Target(checkpoint=info.id))]
        if (lsn := args.get("at_lsn")) is not None:
            if len(agents) > 1:
                raise UsageError("a log position belongs to one agent", hint=f"--agent {agents[0]}")
            return [(agents[0], Target(lsn=lsn))]
        if (time_ms := args.get("at_ms")) is not None:
            return [(agent, Target(time_ms=time_ms)) for agent in agents]
        return [(agent, Target(source=Path(args["source"]))) for agent in agents]

    def _checkpoint(self, text: str, agent: str | None) -> CheckpointInfo:
        infos = [info for name in self.agents(agent) for info in self._recorder.checkpoints(name)]
        return checkpoints.find(sorted(infos, key=lambda info: info.time), text)

    def _letters(self, agent: str | None) -> Iterator[tuple[str, DeadLetter]]:
        for name in self.agents(agent):
            for letter in self._recorder.dead_letters(name).result():
                yield name, letter

    def _view(self, task: Callable[[Environment], T]) -> T:
        return self._recorder.view(task).result()


def _plan(plan: RestorePlan) -> dict[str, Any]:
    return {
        "agent": plan.agent,
        "from_lsn": plan.from_lsn,
        "to_lsn": plan.target_lsn,
        "checkpoint": plan.checkpoint,
        "source": plan.source,
        "blocks": plan.blocks_changed,
        "replayed": plan.replayed_records,
        "lsn": plan.lsn,
    }


def _letter_id(agent: str, letter: DeadLetter) -> str:
    return f"{agent}-{letter.lsn}"


def _letter(agent: str, letter: DeadLetter, *, whole: bool = False) -> dict[str, Any]:
    handler, payload = _request(letter.request)
    error = wire.unpack(letter.error)
    entry = {
        "id": _letter_id(agent, letter),
        "agent": agent,
        "lsn": letter.lsn,
        "time": letter.time_ms / 1000,
        "handler": handler,
        "attempts": letter.attempts,
        "error": error.get("message") if isinstance(error, dict) else str(error),
    }
    return {**entry, "payload": payload} if whole else entry


def _request(frame: bytes) -> tuple[str | None, Any]:
    """Handler and payload of a request's frame; None where the log no longer had it."""
    if not frame:
        return None, None
    parts = wire.unpack(frame)
    return parts[1], parts[2]


def _verify_checkpoint(info: CheckpointInfo, environment: Environment) -> list[Problem]:
    with environment.read() as txn:
        return verify_checkpoint(txn, info)


def _first_lsn(agent: str, environment: Environment) -> int:
    with environment.read() as txn:
        return log.first_lsn(txn, agent)


def _records(agent: str, after: int, end: int, limit: int, environment: Environment) -> list[dict[str, Any]]:
    codec = FrameCodec()
    entries: list[dict[str, Any]] = []
    with environment.read() as txn:
        after = max(after, log.first_lsn(txn, agent) - 1)
        while after < end and len(entries) < limit:
            batch = log.read(txn, agent, codec, after, upto_lsn=end, bytes_max=1 << 16)
            if not batch:
                break
            for record in (record for records in batch for record in records):
                if len(entries) < limit:
                    entries.append(_record(agent, record))
            after = batch[-1][-1].lsn
    return entries


def _record(agent: str, record: Any) -> dict[str, Any]:
    try:
        summary = _summary(record)
    except (ValueError, OrunError) as error:
        summary = f"unreadable: {error}"
    return {
        "agent": agent,
        "lsn": record.lsn,
        "kind": Kind(record.kind).name.lower(),
        "time": record.time_ms / 1000,
        "ref": record.ref,
        "epoch": record.epoch,
        "bytes": len(record.payload),
        "summary": summary[:SUMMARY_CHARS],
    }


def _summary(record: Any) -> str:
    if record.kind == Kind.REQUEST:
        handler, payload = _request(bytes(record.payload))
        return "delivered again" if handler is None else f"{handler} {payload}"
    if record.kind in (Kind.EFFECT, Kind.DEAD, Kind.RESTORE):
        effect = decode_effect(record.payload)
        blocks = ", ".join(key.decode("utf-8", "replace") for key, _ in effect.changes[:5])
        more = ", …" if len(effect.changes) > 5 else ""
        outcome = "" if record.kind == Kind.RESTORE else ("answered" if effect.ok else "refused")
        return f"{outcome} {f'changed {blocks}{more}' if blocks else ''}".strip()
    return str(wire.unpack(record.payload))
