"""Every setting, once: its name, default, unit and meaning.

The settings file, the environment variables, ``orun config``, the JSON schema and the manual are
all derived from the dataclasses below. Sizes are bytes and durations seconds in the code; in files
and on the command line both may carry a unit (``"4MB"``, ``"30s"``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Durability = Literal["disk", "process"]
Restart = Literal["permanent", "transient", "temporary"]
Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]


def setting(default: Any, doc: str, unit: Literal["", "bytes", "seconds"] = "") -> Any:
    """A settings field: its default, what it means, and the unit that text values are read in."""
    return field(default=default, metadata={"doc": doc, "unit": unit})


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """[runtime]: supervision."""

    strategy: Strategy = setting("one_for_one", "What is restarted when a child dies")
    intensity: int = setting(3, "Restarts allowed within the period; one more gives up")
    period: float = setting(5.0, "The window that restarts are counted in", "seconds")
    backoff: float = setting(0.05, "Pause before the second restart in a row; it doubles from there", "seconds")
    backoff_max: float = setting(5.0, "The longest pause between restarts", "seconds")
    start_timeout: float = setting(30.0, "How long a child may take until it is ready", "seconds")
    shutdown: float = setting(5.0, "How long a child may take to stop before it is killed", "seconds")
    standby: int = setting(1, "Warm standbys kept beside each agent (0 or 1)")
    stale: float = setting(5.0, "A counter that has not moved for so long is a hang", "seconds")
    http: str = setting("", "Address of the HTTP gateway, HOST:PORT; empty: none")
    token_file: str = setting("", "File with the bearer token; needed when the address is not loopback")


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """[agent]: how requests are served."""

    path: str = setting("", "The agent file that `orun run` starts when none is named")
    durability: Durability = setting("disk", "A reply leaves after the disk has it, or after the journal has it")
    queue_limit: int = setting(1024, "Requests waiting; one more is answered `busy`")
    concurrency: int = setting(64, "Async handlers that may be under way at once")
    handler_timeout: float = setting(30.0, "A handler that runs longer is hung", "seconds")
    request_bytes_max: int = setting(1 << 20, "The largest request accepted", "bytes")
    attempts_max: int = setting(3, "A request that ends its worker so often goes to the dead letters")
    idempotency_ttl: float = setting(86400.0, "How long the reply to an idempotency key is kept", "seconds")
    cache_bytes: int = setting(64 << 20, "Memory for decoded blocks", "bytes")


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """[store]: the log, checkpoints and what is kept."""

    commit_interval: float = setting(0.02, "Longest wait of a `process` record for its disk commit", "seconds")
    ring_bytes: int = setting(8 << 20, "Size of a worker's journal; a power of two", "bytes")
    map_bytes: int = setting(1 << 30, "Initial address space of the database; it grows by itself", "bytes")
    segment_bytes: int = setting(4 << 20, "Size at which a log segment is closed", "bytes")
    log_bytes_kept: int = setting(256 << 20, "Log kept beyond what checkpoints need", "bytes")
    checkpoint_bytes: int = setting(4 << 20, "Log size that triggers a checkpoint", "bytes")
    checkpoint_interval: float = setting(300.0, "A checkpoint at least so often, when anything changed", "seconds")
    checkpoints_kept: int = setting(10, "Checkpoints that can be restored")
    export_every: int = setting(10, "Every n-th checkpoint is also written to a file; 0: none")
    exports_kept: int = setting(3, "Exported checkpoint files kept")
    dumps_kept: int = setting(50, "Stack dumps kept")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """[logs]: what children print."""

    file_bytes: int = setting(10 << 20, "Size at which a log file is rotated", "bytes")
    files: int = setting(5, "Log files kept for each child")
    rate: int = setting(1 << 20, "Bytes a second that one child may log; more is dropped and counted", "bytes")
    burst: int = setting(8 << 20, "Bytes that may exceed the rate for a moment", "bytes")


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """[[children]]: a plain command beside the agents."""

    name: str = setting("", "Its name in `orun status` and its log file")
    command: tuple[str, ...] = setting((), "Program and arguments")
    restart: Restart = setting("permanent", "Restarted always, after a failure, or never")
    env: dict[str, str] = field(default_factory=dict, metadata={"doc": "Environment variables added", "unit": ""})
    cwd: str = setting("", "Working folder; empty: where orun was started")
    shutdown: float = setting(5.0, "Time to stop before it is killed", "seconds")
    ready: str = setting("", "`notify`, `port:NUMBER` or `command:CMD`; empty: ready once started")
    start_timeout: float = setting(30.0, "How long it may take until it is ready", "seconds")
    success_codes: tuple[int, ...] = setting((0,), "Exit codes that count as a clean end")
    no_restart_codes: tuple[int, ...] = setting((), "Exit codes after which it is not restarted")
    memory_max: int = setting(0, "Address space limit; 0: none", "bytes")
    files_max: int = setting(0, "Limit on open files; 0: none")
    cpu_max: float = setting(0.0, "CPU time limit; 0: none", "seconds")


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole of ``orun.toml`` or ``[tool.orun]``."""

    state_dir: str = setting(".orun", "Where everything durable lives")
    runtime: RuntimeSettings = RuntimeSettings()
    agent: AgentSettings = AgentSettings()
    store: StoreSettings = StoreSettings()
    logs: LogSettings = LogSettings()
    children: tuple[ChildSettings, ...] = ()
