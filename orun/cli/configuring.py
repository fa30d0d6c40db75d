"""The effective settings as a table and as a document."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from orun import project, settings_file
from orun.cli import output
from orun.settings import Settings


def load(overrides: list[str], state_dir: str | None) -> settings_file.Loaded:
    """The settings, with the state directory as every command would resolve it."""
    values: dict[str, Any] = dict(settings_file.split_override(text) for text in overrides)
    flags = {}
    if state_dir is not None:
        values["state_dir"] = state_dir
        flags["state_dir"] = "--state-dir"
    loaded = settings_file.load(overrides=values, flags=flags)
    resolved = project.find_state_dir(values.get("state_dir"))
    return dataclasses.replace(loaded, settings=dataclasses.replace(loaded.settings, state_dir=resolved))


def document(loaded: settings_file.Loaded) -> dict[str, Any]:
    """Every setting with its value, origin and meaning."""
    return {
        "file": loaded.file,
        "settings": {
            name: {"value": value(loaded.settings, name), "origin": loaded.origins[name], "doc": key.doc}
            for name, key in settings_file.keys().items()
        },
        "children": [dataclasses.asdict(child) for child in loaded.settings.children],
    }


def table(loaded: settings_file.Loaded) -> str:
    """Every setting with its value and origin, aligned."""
    rows = [
        (name, shown(key, value(loaded.settings, name)), loaded.origins[name])
        for name, key in settings_file.keys().items()
    ]
    rows += [
        (f"children.{child.name}", " ".join(child.command), loaded.file or "") for child in loaded.settings.children
    ]
    return output.table(("setting", "value", "from"), rows, styled=output.colour(sys.stdout))


def shown(key: settings_file.Key, content: Any) -> str:
    """A value in the unit that people read."""
    from orun.units import format_duration, format_size

    if key.unit == "bytes":
        return format_size(content)
    if key.unit == "seconds":
        return format_duration(content) if content else "0s"
    if isinstance(content, tuple | list):
        return " ".join(str(item) for item in content)
    return " ".join(f"{name}={item}" for name, item in content.items()) if isinstance(content, dict) else str(content)


def value(settings: Settings, name: str) -> Any:
    """The value behind a dotted name."""
    content: Any = settings
    for part in name.split("."):
        content = getattr(content, part)
    return content
