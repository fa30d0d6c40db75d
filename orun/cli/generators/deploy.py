"""A systemd unit and a Dockerfile, to be read and adapted."""

from __future__ import annotations

import json
import os
import sys

from orun import __version__
from orun.errors import UsageError

WATCHDOG_S = 30
STOP_S = 90


def unit(file: str, *, state_dir: str | None, http: str | None) -> str:
    """A unit of type notify: systemd is told when the agents answer, and that they still do."""
    path = os.path.abspath(file)
    name = os.path.basename(os.path.dirname(path)) or "agent"
    state = os.path.abspath(state_dir) if state_dir else os.path.join(os.path.dirname(path), ".orun")
    command = [sys.executable, "-P", "-m", "orun", "run", path, "--state-dir", state]
    if http:
        command += ["--http", http]
    return f"""# As yourself:  ~/.config/systemd/user/{name}.service, then systemctl --user enable --now {name}
# For all:      /etc/systemd/system/{name}.service with User= below, then systemctl enable --now {name}
[Unit]
Description=orun: {_specifier(name)}
After=network.target

[Service]
Type=notify
NotifyAccess=all
ExecStart={" ".join(_word(part) for part in command)}
ExecReload={_word(sys.executable)} -P -m orun reload --state-dir {_word(state)}
WorkingDirectory={_specifier(os.path.dirname(path))}
WatchdogSec={WATCHDOG_S}
TimeoutStopSec={STOP_S}
Restart=on-failure
# Settings that cannot be used, and damaged data, are not mended by another start.
RestartPreventExitStatus=2 12 13
# How orun ends after an orderly stop by SIGTERM or SIGINT.
SuccessExitStatus=143 130
KillMode=mixed

[Install]
WantedBy=default.target multi-user.target
"""


def dockerfile(file: str, *, http: str | None) -> str:
    """An image with the engine built in, so that a container starts at once."""
    if os.path.isabs(file):
        raise UsageError("the agent file must be relative to the build folder", hint="for example agent.py")
    command = ["orun", "run", file, *(("--http", http) if http else ())]
    return f"""FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim
RUN pip install --no-cache-dir orun=={__version__}
WORKDIR /app
# Name .orun in .dockerignore: the state belongs into the volume.
COPY . .
RUN orun engine build
ENV ORUN_STATE_DIR=/state
VOLUME /state
# orun's guard takes signals and reaps processes: it may be process 1.
STOPSIGNAL SIGTERM
HEALTHCHECK CMD ["orun", "status", "--json"]
CMD {json.dumps(command)}
"""


def _specifier(text: str) -> str:
    """systemd expands per cent signs."""
    return text.replace("%", "%%")


def _word(text: str) -> str:
    """One word of a command line as systemd reads it."""
    text = _specifier(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{text}"' if any(letter in text for letter in " \t'\"") else text
