"""Commands on what is stored, whether a runtime runs or not.

Reading is done from the database directly, beside the runtime or without it. A change goes through the running
runtime, which is the only writer; without one this process takes the lock, takes over what a dead orun left in
its journals, makes the change and lets go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orun import project, settings_file
from orun.cli import output
from orun.observe import changes, storage
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
    """Perform an operation of the store and return its document."""
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
        return changes.CHANGES[op](recorder, args)


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
            on_event=_tell_trouble,
            idempotency_ttl=settings.agent.idempotency_ttl,
        )
        try:
            recorder.start()
            recorder.recover()
            yield recorder
        finally:
            recorder.stop()


def _tell_trouble(kind: str, fields: Mapping[str, Any]) -> None:
    """What the recorder came across while it opened the store; only what is wrong is worth a line here."""
    if fields.get("problem"):
        output.warn(f"{kind.replace('_', ' ')}: {fields.get('agent', '')}: {fields['problem']}")


def _fill(folder: str, source: Path, *, dry_run: bool) -> Document:
    """Restore a backup into a directory that holds nothing yet."""
    if dry_run:
        info = backup.verify_backup(source)
    else:
        info = backup.restore_backup(source, StateDir(folder), settings_file.load().settings.store)
    agents = [{"agent": name, "source": str(source)} for name in info.agents]
    return {"dry_run": dry_run, "fresh": True, "agents": agents}
