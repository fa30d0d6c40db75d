"""Commands on what is stored, whether a runtime runs or not.

Reading is done from the database directly, beside the runtime or without it. A change goes through the running
runtime, which is the only writer; without one this process takes the lock, takes over what a dead orun left in
its journals, makes the change and lets go.

What the runtime has to answer, with the arguments and documents used here and there:

- ``restore {agent, checkpoint | at_lsn | at_ms | source, dry_run}`` gives ``{"dry_run", "agents": [...]}`` with
  ``storage.restored`` of each plan;
- ``compact {}`` gives the report of ``Recorder.compact``;
- ``deadletters_drop {ids, all, agent}`` and ``deadletters_retry`` (running only) give ``{"ids": [...]}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orun import project, settings_file
from orun.cli import output
from orun.errors import UsageError
from orun.observe import storage
from orun.store import backup
from orun.store.environment import Environment
from orun.store.layout import StateDir
from orun.store.lock import StateLock
from orun.store.recorder import Recorder

Document = dict[str, Any]

_READS: dict[str, Callable[[Environment, Mapping[str, Any]], Document]] = {
    "checkpoints": lambda db, args: storage.list_checkpoints(db, args["agent"]),
    "checkpoint_show": lambda db, args: storage.show_checkpoint(db, args["id"], args["agent"]),
    "checkpoint_verify": lambda db, args: storage.verify_checkpoints(db, args["ids"], args["agent"]),
    "wal_show": lambda db, args: storage.show_records(db, args["agent"], args["from"], args["to"], args["limit"]),
    "wal_verify": lambda db, args: storage.verify_log(db, args["agent"]),
    "deadletters": lambda db, args: storage.list_deadletters(db, args["agent"]),
    "deadletters_show": lambda db, args: storage.show_deadletter(db, args["id"]),
    "backup": lambda db, args: storage.write_backup(db, args["path"]),
}


def perform(state_dir: str | None, op: str, args: Mapping[str, Any]) -> Document:
    """Perform an operation and return its document."""
    folder = project.find_state_dir(state_dir)
    if op in _READS:
        with storage.opened(folder) as environment:
            return _READS[op](environment, args)
    if op == "restore" and args.get("source") and not (StateDir(folder).journal / "data.mdb").exists():
        return _fill(folder, Path(args["source"]), dry_run=args["dry_run"])
    if project.running(project.require_state_dir(folder)) is not None:
        from orun.worker import plain

        document = plain.control(folder, op, args)
        assert isinstance(document, dict)
        return document
    with _recorder(folder) as recorder:
        return _CHANGES[op](recorder, args)


@contextmanager
def _recorder(folder: str) -> Iterator[Recorder]:
    """The writer of a state directory that nothing runs in."""
    state = StateDir(folder)
    state.require()
    settings = settings_file.load().settings
    with StateLock(state):
        recorder = Recorder(
            state,
            settings.store,
            on_failure=lambda error: output.warn(error.message),
            on_event=lambda kind, fields: None,
            idempotency_ttl=settings.agent.idempotency_ttl,
        )
        recorder.start()
        try:
            recorder.recover()
            yield recorder
        finally:
            recorder.stop()


def _fill(folder: str, source: Path, *, dry_run: bool) -> Document:
    """Restore a backup into a directory that holds nothing yet."""
    if dry_run:
        info = backup.verify_backup(source)
    else:
        info = backup.restore_backup(source, StateDir(folder), settings_file.load().settings.store)
    agents = [{"agent": name, "source": str(source)} for name in info.agents]
    return {"dry_run": dry_run, "fresh": True, "state_dir": folder, "agents": agents}


def _restore(recorder: Recorder, args: Mapping[str, Any]) -> Document:
    dry_run = bool(args["dry_run"])
    plans = [
        recorder.restore(agent, target, dry_run).result()
        for agent, target in storage.restore_targets(recorder.agents(), args)
    ]
    return {"dry_run": dry_run, "agents": [storage.restored(plan) for plan in plans]}


def _compact(recorder: Recorder, args: Mapping[str, Any]) -> Document:
    del args
    return recorder.compact().result()


def _drop(recorder: Recorder, args: Mapping[str, Any]) -> Document:
    if args["all"]:
        names = [name for name in recorder.agents() if args["agent"] in (None, name)]
        chosen = [(name, letter.lsn) for name in names for letter in recorder.dead_letters(name).result()]
    else:
        chosen = [storage.parse_letter_id(id) for id in args["ids"]]
    dropped = [storage.letter_id(name, lsn) for name, lsn in chosen if recorder.drop_dead_letter(name, lsn).result()]
    if not args["all"] and len(dropped) < len(chosen):
        raise UsageError(f"only {len(dropped)} of {len(chosen)} were there", hint="`orun deadletters list` shows them")
    return {"ids": dropped}


_CHANGES: dict[str, Callable[[Recorder, Mapping[str, Any]], Document]] = {
    "restore": _restore,
    "compact": _compact,
    "deadletters_drop": _drop,
}
