"""What is stored, as documents: checkpoints, the log, dead letters, and whether they are sound.

Everything here reads the database beside its writer, or without one, and changes nothing; so it works the same
while the runtime runs, when it hangs, and after it ended. What the recorder has not committed yet (0.02 s at
most) is not seen. Changes are in ``orun.observe.changes``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orun import project
from orun.engine.journal import RecordView
from orun.errors import NotFound, UsageError
from orun.store import agents, backup, checkpoints, deadletters, log
from orun.store.checkpoints import CheckpointInfo, checkpoint_id
from orun.store.deadletters import DeadLetter
from orun.store.environment import Environment, Txn
from orun.store.frames import FrameCodec
from orun.store.layout import StateDir
from orun.store.records import Kind, decode_effect
from orun.store.restore import RestorePlan
from orun.store.targets import Target
from orun.store.verify import Summary, verify_agent, verify_checkpoint
from orun.units import format_count
from orun.worker import wire

READ_BYTES = 1 << 20
TEXT_SHOWN = 80
CHECKPOINT_WORDS = ("latest", "previous")

Document = dict[str, Any]


@contextmanager
def opened(state_dir: str) -> Iterator[Environment]:
    """The database of a state directory, to read. Raises NotFound when there is none."""
    state = StateDir(project.require_state_dir(state_dir))
    state.require()
    environment = Environment.for_reader(state.journal)
    try:
        yield environment
    finally:
        environment.close()


def list_checkpoints(environment: Environment, agent: str | None) -> Document:
    """Every checkpoint, oldest first."""
    with environment.read() as txn:
        return {"checkpoints": [info.as_dict() for info in _checkpoints(txn, agent)]}


def show_checkpoint(environment: Environment, id: str, agent: str | None) -> Document:
    """One checkpoint."""
    with environment.read() as txn:
        return {"checkpoint": checkpoints.find(_checkpoints(txn, agent), id).as_dict()}


def verify_checkpoints(environment: Environment, ids: list[str], agent: str | None) -> Document:
    """Read every block of checkpoints, of all when none is named."""
    entries: list[Document] = []
    with environment.read() as txn:
        if ids:
            known = _checkpoints(txn, agent)
            infos = [checkpoints.find(known, id) for id in ids]
        else:
            infos = []
            for name in _names(txn, agent):
                damaged = list(checkpoints.verify_rows(txn, name))
                entries += [_damaged_checkpoint(name, lsn, what) for lsn, what in damaged]
                infos += [] if damaged else checkpoints.load(txn, name)
        for info in infos:
            problems = [problem.describe() for problem in verify_checkpoint(txn, info)]
            entry = {"id": info.id, "agent": info.agent, "lsn": info.lsn, "ok": not problems}
            entries.append({**entry, "problem": problems[0], "problems": problems} if problems else entry)
    return {"ok": all(entry["ok"] for entry in entries), "checkpoints": entries}


def verify_log(environment: Environment, agent: str | None) -> Document:
    """Check every record, block, marker and reply that is stored."""
    entries: list[Document] = []
    with environment.read() as txn:
        for name in _names(txn, agent):
            summary = Summary(agents=1)
            problems = [{**asdict(problem), "text": problem.describe()} for problem in verify_agent(txn, name, summary)]
            entry = {"agent": name, "first_lsn": log.first_lsn(txn, name), **summary.as_dict(), "problems": problems}
            del entry["agents"]
            entries.append(entry)
    return {"ok": not any(entry["problems"] for entry in entries), "agents": entries}


def show_records(
    environment: Environment, agent: str | None, first: int | None, last: int | None, limit: int
) -> Document:
    """Records of the log: from ``first`` on, or the last ones."""
    codec = FrameCodec()
    entries: list[Document] = []
    with environment.read() as txn:
        for name in _names(txn, agent):
            end = log.find_end(txn, name, codec).last_lsn
            upto = end if last is None else min(last, end)
            start = upto - limit + 1 if first is None else first
            start = max(start, log.first_lsn(txn, name), 1)
            upto = min(upto, start + limit - 1)
            entries += [_record(name, view) for view in _read(txn, name, codec, start, upto)]
    return {"records": entries}


def list_deadletters(environment: Environment, agent: str | None) -> Document:
    """Requests that were set aside, oldest first."""
    with environment.read() as txn:
        entries = [_letter(name, letter) for name in _names(txn, agent) for letter in deadletters.load(txn, name)]
    return {"deadletters": sorted(entries, key=lambda entry: float(entry["time"]))}


def show_deadletter(environment: Environment, id: str) -> Document:
    """One request that was set aside, with its payload and the reply that its caller got."""
    name, lsn = parse_letter_id(id)
    with environment.read() as txn:
        letter = deadletters.get(txn, name, lsn)
    request = _decoded(letter.request)
    payload = request[2] if isinstance(request, list) and len(request) > 2 else None
    return {"deadletter": {**_letter(name, letter), "payload": payload, "reply": _decoded(letter.error)}}


def write_backup(environment: Environment, path: str) -> Document:
    """Write everything of this moment to an archive."""
    info = backup.write_backup(environment, Path(path))
    return {**asdict(info), "agents": list(info.agents)}


def restore_targets(names: list[str], args: Mapping[str, Any]) -> list[tuple[str, Target]]:
    """The agents that a restore is about, and where each goes: the one named, the one of the id, or all."""
    target = Target(
        checkpoint=args.get("checkpoint"),
        lsn=args.get("at_lsn"),
        time_ms=args.get("at_ms"),
        source=Path(args["source"]) if args.get("source") else None,
    )
    by_id = target.checkpoint is not None and target.checkpoint not in CHECKPOINT_WORDS
    chosen = names
    if args.get("agent") is not None:
        chosen = [name for name in names if name == args["agent"]]
    elif by_id:
        chosen = [name for name in names if str(target.checkpoint).startswith(f"{name}-")] or names
    if not chosen:
        raise _unknown_agent(args.get("agent"), names)
    if len(chosen) > 1 and (target.lsn is not None or by_id):
        raise UsageError(f"there are {len(chosen)} agents: {', '.join(chosen)}", hint="name one with --agent")
    return [(name, target) for name in chosen]


def restored(plan: RestorePlan) -> Document:
    """A restore, planned or done."""
    return {
        "agent": plan.agent,
        "from_lsn": plan.from_lsn,
        "to_lsn": plan.target_lsn,
        "checkpoint": plan.checkpoint,
        "source": plan.source,
        "blocks": plan.blocks_changed,
        "replayed": plan.replayed_records,
        "lsn": plan.lsn if plan.applied else None,
    }


def letter_id(agent: str, lsn: int) -> str:
    """The name of a dead letter that a person types."""
    return f"{agent}-{lsn}"


def parse_letter_id(id: str) -> tuple[str, int]:
    """The agent and log position in a dead letter's id. Raises NotFound for what is none."""
    name, _, position = id.rpartition("-")
    if not name or not position.isdecimal():
        raise NotFound(f"{id!r} is no dead letter's id", hint="`orun deadletters list` shows them")
    return name, int(position)


def _names(txn: Txn, agent: str | None) -> list[str]:
    known = agents.agent_names(txn)
    if agent is None:
        return known
    if agent not in known:
        raise _unknown_agent(agent, known)
    return [agent]


def _unknown_agent(agent: str | None, known: list[str]) -> NotFound:
    if not known:
        return NotFound("no agent has stored anything here yet", hint="start one with `orun run FILE`")
    return NotFound(f"nothing is stored of an agent {agent!r}", hint=f"there is {', '.join(known)}")


def _checkpoints(txn: Txn, agent: str | None) -> list[CheckpointInfo]:
    """The checkpoints of one agent or of all, oldest first."""
    infos = [info for name in _names(txn, agent) for info in checkpoints.load(txn, name)]
    return sorted(infos, key=lambda info: info.time)


def _damaged_checkpoint(agent: str, lsn: int, what: str) -> Document:
    place = {"id": checkpoint_id(agent, lsn), "agent": agent, "lsn": lsn}
    return {**place, "ok": False, "problem": what, "problems": [what]}


def _read(txn: Txn, agent: str, codec: FrameCodec, start: int, upto: int) -> Iterator[RecordView]:
    after = start - 1
    while after < upto:
        batch = log.read(txn, agent, codec, after, upto_lsn=upto, bytes_max=READ_BYTES)
        for views in batch:
            yield from views
        if not batch or not batch[-1]:
            return
        after = batch[-1][-1].lsn


def _record(agent: str, view: RecordView) -> Document:
    content = _content(view)
    return {
        "agent": agent,
        "lsn": view.lsn,
        "kind": Kind(view.kind).name.lower() if view.kind in set(Kind) else f"kind {view.kind}",
        "time": view.time_ms / 1000,
        "ref": view.ref,
        "epoch": view.epoch,
        "flags": view.flags,
        "bytes": len(view.payload),
        "summary": _summary(view.kind, content),
        **content,
    }


def _content(view: RecordView) -> Document:
    """What a record says, decoded; what cannot be decoded is given as bytes."""
    payload = bytes(view.payload)
    try:
        if view.kind == Kind.REQUEST:
            if not payload:
                return {"handler": None, "payload": None, "key": None}
            _, handler, body, *options = wire.unpack(payload)
            return {"handler": handler, "payload": body, "key": (options[0] if options else {}).get("key")}
        if view.kind in (Kind.EFFECT, Kind.DEAD, Kind.RESTORE):
            effect = decode_effect(payload)
            changes = [
                {"block": name.decode("utf-8", "replace"), "bytes": None if value is None else len(value)}
                for name, value in effect.changes
            ]
            return {"ok": effect.ok, "reply": _decoded(effect.reply), "changes": changes}
        return {"content": wire.unpack(payload)}
    except (ValueError, TypeError, AttributeError, struct.error):
        return {"undecoded": payload}


def _summary(kind: int, content: Mapping[str, Any]) -> str:
    if "handler" in content:
        handler = content["handler"]
        return _short("delivered again" if handler is None else f"{handler} {_json(content['payload'])}")
    if "changes" in content:
        changes = f"{format_count(len(content['changes']), 'block')} changed"
        if kind == Kind.RESTORE:
            return changes
        return _short(f"{changes}, {'reply' if content['ok'] else 'error'} {_json(content['reply'])}")
    return _short(_json(content["content"]) if "content" in content else "cannot be decoded")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _letter(agent: str, letter: DeadLetter) -> Document:
    request = _decoded(letter.request)
    error = _decoded(letter.error)
    return {
        "id": letter_id(agent, letter.lsn),
        "agent": agent,
        "lsn": letter.lsn,
        "time": letter.time_ms / 1000,
        "attempts": letter.attempts,
        "handler": request[1] if isinstance(request, list) and len(request) > 1 else None,
        "error": error.get("message") if isinstance(error, dict) else error,
    }


def _decoded(data: bytes) -> Any:
    if not data:
        return None
    try:
        return wire.unpack(data)
    except wire.BadFrame:
        return data


def _short(text: str) -> str:
    return text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 3] + "..."
