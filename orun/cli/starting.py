"""From the arguments of ``orun run`` to the options of a runtime, with everything checked that can be checked."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

from orun import project, settings_file
from orun.cli import output
from orun.errors import InUse, UsageError

START_ALLOWANCE_S = 30.0
"""Beyond the agent's own time to start: recovery of a large log, building nothing."""


@dataclass(frozen=True, slots=True)
class Wish:
    """The command line of ``orun run``."""

    files: list[str]
    command: list[str] | None
    detach: bool
    http: str | None
    token_file: str | None
    durability: str | None
    watch: bool
    overrides: list[str]
    state_dir: str | None
    json: bool
    quiet: bool


def start(wish: Wish) -> int:
    """Start what was asked for; in the foreground this process becomes the guard and does not return."""
    from orun.runtime import launch

    loaded = _load(wish)
    options = _options(wish, loaded)
    running = project.running(options.state_dir)
    if running is not None:
        raise InUse(
            f"{options.state_dir} is in use by orun pid {running['pid']}",
            hint="stop it with `orun stop`, or choose another --state-dir",
        )
    progress = output.progress(quiet=wish.quiet)
    if not wish.detach:
        if wish.json:
            raise UsageError("--json goes with --detach; in the foreground there is no result to print")
        launch.exec_foreground(options, progress)
    timeout_s = loaded.settings.runtime.start_timeout + START_ALLOWANCE_S
    document = launch.detach(options, progress, timeout_s=timeout_s)
    if wish.json:
        output.document({"state_dir": options.state_dir, **document})
    else:
        output.note(_ready(document, options, loaded), quiet=wish.quiet)
    return 0


def _load(wish: Wish) -> settings_file.Loaded:
    overrides: dict[str, Any] = dict(settings_file.split_override(text) for text in wish.overrides)
    flags: dict[str, str] = {}
    for name, value, flag in (
        ("runtime.http", wish.http, "--http"),
        ("runtime.token_file", wish.token_file, "--token-file"),
        ("agent.durability", wish.durability, "--durability"),
    ):
        if value is not None:
            overrides[name] = value
            flags[name] = flag
    return settings_file.load(overrides=overrides, flags=flags)


def _options(wish: Wish, loaded: settings_file.Loaded) -> Any:
    from orun.runtime.launch import Options

    settings = loaded.settings
    agents, command = _targets(wish, loaded)
    token_file = settings.runtime.token_file
    if token_file:
        token_file = _resolve(token_file, loaded, "runtime.token_file")
        if not os.path.isfile(token_file):
            raise UsageError(f"no token file {token_file}")
    if settings.runtime.http and not token_file and not _is_loopback(settings.runtime.http):
        raise UsageError(
            f"HTTP on {settings.runtime.http} needs a token: the address is not loopback",
            hint="write a secret to a file and name it with --token-file",
        )
    overridden = {name: _plain(settings, name) for name, origin in loaded.origins.items() if origin.startswith("--")}
    return Options(
        state_dir=project.find_state_dir(wish.state_dir),
        agents=agents,
        command=command,
        http=settings.runtime.http,
        token_file=token_file,
        settings=overridden,
        settings_file=loaded.file,
        foreground=not wish.detach,
        # A command that runs alone has the terminal for its own output.
        live=not wish.detach and not wish.quiet and not command and output.is_terminal(sys.stdout),
        watch=wish.watch,
        quiet=wish.quiet,
    )


def _targets(wish: Wish, loaded: settings_file.Loaded) -> tuple[list[str], list[str]]:
    """What to run: files, a command, or what the settings name."""
    if wish.command is not None:
        if wish.files:
            raise UsageError(
                "either agent files or a command after --, not both", hint="[[children]] in orun.toml run beside agents"
            )
        if not wish.command:
            raise UsageError("no command after --", hint="orun run -- CMD ARG...")
        return [], wish.command
    files = [os.path.abspath(file) for file in wish.files]
    if not files and loaded.settings.agent.path:
        files = [_resolve(loaded.settings.agent.path, loaded, "agent.path")]
    if not files and not loaded.settings.children:
        raise UsageError(
            "nothing to run", hint="name an agent file, set agent.path in orun.toml, or make one with `orun init NAME`"
        )
    for file in files:
        if os.path.isdir(file):
            inside = os.path.join(os.path.relpath(file), "agent.py")
            hint = f"name the file in it: {inside}" if os.path.isfile(inside) else "name a Python file with an agent"
            raise UsageError(f"{file} is a folder", hint=hint)
        if not os.path.isfile(file):
            raise UsageError(f"no agent file {file}", hint=_neighbours(file))
        if files.count(file) > 1:
            raise UsageError(f"{file} is named twice")
    return files, []


def _resolve(path: str, loaded: settings_file.Loaded, name: str) -> str:
    """A path of the settings file counts from that file; one from a flag or variable from the working folder."""
    path = os.path.expanduser(path)
    from_file = loaded.file is not None and loaded.origins[name].startswith(loaded.file)
    return os.path.abspath(os.path.join(os.path.dirname(loaded.file or "") if from_file else os.getcwd(), path))


def _plain(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings


def _is_loopback(address: str) -> bool:
    import ipaddress

    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _neighbours(file: str) -> str:
    """What might have been meant."""
    import difflib

    try:
        names = [name for name in os.listdir(os.path.dirname(file)) if name.endswith(".py")]
    except OSError:
        return f"there is no folder {os.path.dirname(file)}"
    close = difflib.get_close_matches(os.path.basename(file), names, n=1, cutoff=0.7)
    return f"did you mean {close[0]}?" if close else "make one with `orun init NAME`"


def _ready(document: dict[str, Any], options: Any, loaded: settings_file.Loaded) -> str:
    agents = [str(agent["name"]) for agent in document.get("agents", ())]
    commands = options.command[:1] or [child.name for child in loaded.settings.children]
    text = f"{', '.join(agents + commands)} ready (pid {document.get('pid')}), state in {options.state_dir}"
    if document.get("http"):
        text += f", http://{document['http']}"
    return text
