"""What the runtime tells: its log, its recent events, the status document, and where it can be found.

Everything worth telling goes through ``logging`` once. A handler writes it to ``logs/runtime.log``, keeps
the latest as the events of the status document, and in the foreground passes it on as plain lines.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, final

from orun.runtime.agents import AgentHost
from orun.runtime.foreground import Foreground
from orun.runtime.logfile import LogFile
from orun.settings import LogSettings
from orun.store.layout import StateDir
from orun.units import format_count

SCHEMA = 1
EVENTS_KEPT = 100
HANDLING_SHOWN_S = 1.0
"""A handler that runs longer is named in the status."""


@final
class Events(logging.Handler):
    """Keeps what was logged: all of it in a file, the latest in memory."""

    def __init__(self, state: StateDir, settings: LogSettings) -> None:
        super().__init__(logging.INFO)
        self.latest: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self.foreground: Foreground | None = None
        self._file = LogFile(Path(state.log_file("runtime")), settings, lambda trouble: None)

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record."""
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        self._file.write(f"{stamp} {record.levelname.lower()} {text}\n".encode())
        self.latest.append({"time": record.created, "text": text})
        if self.foreground is not None:
            self.foreground.event(record.levelno, f"{stamp} {text}")

    def close(self) -> None:
        """Write no more."""
        self._file.close()
        super().close()


QUIET_EVENTS = ("checkpoint", "exported", "recovered", "restored")
"""What the store tells of its daily work; everything else it tells is a warning."""


def event_level(kind: str) -> int:
    """How urgent an event of the store is."""
    return logging.INFO if kind in QUIET_EVENTS else logging.WARNING


def event_text(kind: str, fields: Mapping[str, Any]) -> str:
    """An event of the store as a line for people."""
    agent = fields["agent"]
    match kind:
        case "checkpoint":
            return f"checkpoint {fields['id']} made ({fields['reason']}), {format_count(fields['blocks'], 'block')}"
        case "exported":
            return f"checkpoint {fields['id']}: exported to {fields['path']}"
        case "recovered":
            return f"{agent}: {format_count(fields['records'], 'record')} taken over from the journal of a dead worker"
        case "restored":
            moment = f"from log position {fields['from_lsn']} to {fields['target_lsn']}"
            return f"{agent}: restored {moment}, {format_count(fields['blocks_changed'], 'block')} changed"
        case "dead_letter":
            return f"{agent}: request {fields['lsn']} is set aside, it killed its worker {fields['attempts']} times"
    details = " ".join(f"{name}={value}" for name, value in fields.items() if name != "agent")
    return f"{agent}: {kind.replace('_', ' ')} {details}"


@final
class Rates:
    """Requests per second, from one status document to the next."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, int, float]] = {}

    def of(self, name: str, requests: int) -> float:
        """The rate since the last look, or the last rate when that was a moment ago."""
        now = time.monotonic()
        at, before, rate = self._last.get(name, (now, requests, 0.0))
        if now - at >= 0.5:
            rate = max(0, requests - before) / (now - at)
            at, before = now, requests
        self._last[name] = (at, before, rate)
        return rate


def agent_document(
    host: AgentHost, node: Mapping[str, Any], position: Mapping[str, Any], rates: Rates
) -> dict[str, Any]:
    """One agent in the status document. ``node`` is its worker's place in the supervision tree."""
    page = host.page
    requests = page.requests
    return {
        "name": host.name,
        "pid": node["pid"],
        "state": node["state"],
        "detail": _detail(host, node),
        "restarts": node["restarts"],
        "version": host.version,
        "path": host.path,
        "handlers": host.handlers,
        "socket": str(host.socket_path),
        "standby": host.standby_pid,
        "template": host.template_pid,
        "lsn": max(position["last_lsn"], page.last_lsn),
        "durable_lsn": position["durable_lsn"],
        "epoch": position["epoch"],
        "log_bytes": position["log_bytes"],
        "last_checkpoint": position["last_checkpoint"],
        "requests": requests,
        "errors": page.errors,
        "busy": page.busy,
        "queued": page.queue_depth,
        "in_flight": page.in_flight,
        "requests_per_s": round(rates.of(host.name, requests), 1),
        "p50_ms": page.quantile(0.5) / 1e6 if requests else None,
        "p99_ms": page.quantile(0.99) / 1e6 if requests else None,
        "last_restart_ms": host.last_restart_ms,
        "last_error": node["last_error"],
    }


def _detail(host: AgentHost, node: Mapping[str, Any]) -> str | None:
    """What an agent is at, when its state alone does not tell."""
    if node["state"] != "running":
        return None if node["last_error"] is None else node["last_error"]["text"]
    started_ns = host.page.handler_start_ns
    seconds = (time.monotonic_ns() - started_ns) / 1e9
    if started_ns and seconds >= HANDLING_SHOWN_S:
        return f"handling LSN {host.page.handler_lsn} for {seconds:.0f} s"
    return None


def tree_document(node: Mapping[str, Any], extra: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The supervision tree as it is shown. ``extra`` adds processes below a child, by its id."""
    children = [tree_document(child, extra) for child in node.get("children", ())]
    children += extra.get(node["id"], [])
    error = node.get("last_error")
    return {
        "name": node["id"],
        "kind": node.get("strategy", "") if node["type"] == "supervisor" else "",
        "pid": node["pid"],
        "state": node["state"],
        "restarts": node["restarts"],
        "detail": "" if error is None else f"last: {error['text'].splitlines()[0]}",
        "children": children,
    }


def write_runtime_file(state: StateDir, document: dict[str, Any]) -> None:
    """Say where clients find this runtime; whole or not at all."""
    temporary = state.runtime_file.with_suffix(".part")
    temporary.write_text(json.dumps(document), encoding="utf-8")
    os.replace(temporary, state.runtime_file)


def runtime_document(state: StateDir, started: float, http: str | None, hosts: Iterable[AgentHost]) -> dict[str, Any]:
    """The content of ``run/runtime.json``."""
    return {
        "schema": SCHEMA,
        "pid": guard_pid(),
        "runtime_pid": os.getpid(),
        "started": started,
        "control": str(state.control_socket),
        "http": http,
        "agents": [{"name": host.name, "socket": str(host.socket_path), "handlers": host.handlers} for host in hosts],
    }


def guard_pid() -> int:
    """The process that stands for the whole tree: the guard, or this one when it runs without."""
    return int(os.environ.get("ORUN_GUARD_PID", os.getpid()))


def runtime_pid() -> int:
    """This process."""
    return os.getpid()


def spare_processes(host: AgentHost) -> list[dict[str, Any]]:
    """An agent's processes beside its worker, as entries of the tree."""
    found = []
    for name, pid in (("standby", host.standby_pid), ("template", host.template_pid)):
        if pid is not None:
            entry = {
                "name": name,
                "kind": "",
                "pid": pid,
                "state": "ready",
                "restarts": 0,
                "detail": "",
                "children": [],
            }
            found.append(entry)
    return found
