"""The JSON Schema of orun.toml, from the settings' dataclasses."""

from __future__ import annotations

import json
import typing
from dataclasses import is_dataclass
from typing import Any

from orun import settings_file
from orun.settings import ChildSettings, Settings

SIZE = r"^[0-9.]+\s*[KMGTkmgt]?[iI]?[bB]?$"
DURATION = r"^([0-9.]+(ms|s|m|h|d)?)+$"


def text() -> str:
    """The schema, indented, with a line end."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def schema() -> dict[str, Any]:
    """The schema as data."""
    properties: dict[str, Any] = {}
    for key in settings_file.keys_of(Settings):
        if key.name == settings_file.CHILDREN:
            child = _table(ChildSettings, "A plain command beside the agents")
            child["required"] = ["name", "command"]
            properties[key.name] = {"type": "array", "items": child}
        elif is_dataclass(key.kind):
            kind = typing.cast(type, key.kind)
            properties[key.name] = _table(kind, (kind.__doc__ or "").rstrip("."))
        else:
            properties[key.name] = _property(key)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "orun.toml",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def _table(kind: type, doc: str) -> dict[str, Any]:
    keys = settings_file.keys_of(kind)
    return {
        "type": "object",
        "description": doc,
        "additionalProperties": False,
        "properties": {key.name: _property(key) for key in keys},
    }


def _property(key: settings_file.Key) -> dict[str, Any]:
    default = list(key.default) if isinstance(key.default, tuple) else key.default
    return {"description": key.doc, **_type(key), "default": default}


def _type(key: settings_file.Key) -> dict[str, Any]:
    number = "integer" if key.kind is int else "number"
    if key.unit:
        pattern = SIZE if key.unit == "bytes" else DURATION
        return {"anyOf": [{"type": number, "minimum": 0}, {"type": "string", "pattern": pattern}]}
    origin = typing.get_origin(key.kind)
    if origin is typing.Literal:
        return {"enum": list(typing.get_args(key.kind))}
    if origin is dict:
        return {"type": "object", "additionalProperties": {"type": "string"}}
    if origin is tuple:
        item = "string" if typing.get_args(key.kind)[0] is str else "integer"
        return {"type": "array", "items": {"type": item}}
    return {"type": "string"} if key.kind is str else {"type": number, "minimum": 0}
