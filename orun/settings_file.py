"""Loading the settings: file, then environment, then flags, each value with the place it came from.

A later source beats an earlier one key by key; two files are never merged. A key that nothing knows is an
error with a suggestion, for a setting that silently does nothing is worse than none.
"""

from __future__ import annotations

import math
import os
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any

from orun import project
from orun.errors import UsageError
from orun.settings import ChildSettings, Settings
from orun.settings_check import check
from orun.units import parse_duration, parse_size

ENV_PREFIX = "ORUN_"
_SECTIONS = ("runtime", "agent", "store", "logs")
CHILDREN = "children"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings with their provenance: dotted key to ``default``, ``PATH:LINE``, ``ORUN_…`` or the flag."""

    settings: Settings
    origins: dict[str, str]
    file: str | None


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its dotted name, its dataclass field and its type."""

    name: str
    field: Field[Any]
    kind: Any

    @property
    def unit(self) -> str:
        """What its text values are read in: bytes, seconds or nothing."""
        return str(self.field.metadata["unit"])

    @property
    def doc(self) -> str:
        """What it means."""
        return str(self.field.metadata["doc"])

    @property
    def env(self) -> str:
        """The environment variable that sets it."""
        return ENV_PREFIX + self.name.upper().replace(".", "_")

    @property
    def default(self) -> Any:
        """Its value when nobody says otherwise."""
        if self.field.default is not MISSING:
            return self.field.default
        return self.field.default_factory() if self.field.default_factory is not MISSING else None


def load(
    *,
    start: str | None = None,
    file: str | None = None,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
    flags: Mapping[str, str] | None = None,
) -> Loaded:
    """The effective settings.

    ``file`` names the settings file, else the nearest one upwards from ``start`` is taken. ``overrides`` maps
    dotted keys to values or texts and beats everything; ``flags`` says which option an override came from.
    """
    path = file or project.find_settings_file(start or os.getcwd())
    values: dict[str, Any] = {}
    origins = dict.fromkeys(keys(), "default")
    children: tuple[ChildSettings, ...] = ()
    if path is not None:
        if not os.path.isfile(path):
            raise UsageError(f"no settings file {path}")
        source = _File(path)
        children = source.children()
        for name, value in source.values().items():
            values[name] = value
            origins[name] = source.place(name)
    for name, key in keys().items():
        if key.env in environ and key.name != CHILDREN:
            values[name] = convert(key, environ[key.env], key.env)
            origins[name] = key.env
    _refuse_unknown_variables(environ)
    for name, value in (overrides or {}).items():
        place = (flags or {}).get(name, f"--set {name}")
        values[name] = convert(find_key(name, place), value, place)
        origins[name] = place
    settings = _assemble(values, children)
    check(settings, origins)
    return Loaded(settings, origins, path)


def keys() -> dict[str, Key]:
    """Every setting but those of ``[[children]]``, by its dotted name, in the order of the settings module."""
    found: dict[str, Key] = {}
    for key in keys_of(Settings):
        if key.name == CHILDREN:
            continue
        if is_dataclass(key.kind):
            found |= {inner.name: inner for inner in keys_of(typing.cast(type, key.kind), f"{key.name}.")}
        else:
            found[key.name] = key
    return found


def keys_of(section: type, prefix: str = "") -> list[Key]:
    """The settings of one section."""
    kinds = typing.get_type_hints(section)
    return [Key(prefix + field.name, field, kinds[field.name]) for field in fields(section)]


def find_key(name: str, place: str) -> Key:
    """The setting of this dotted name, or a UsageError with the nearest one."""
    known = keys()
    if name not in known:
        raise UsageError(f"{place}: no setting {name!r}", hint=_nearest(name, [*known, *_SECTIONS, CHILDREN]))
    return known[name]


def split_override(text: str) -> tuple[str, str]:
    """``section.key=value`` as its two halves."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(
            f"--set takes section.key=value, not {text!r}", hint="for example --set store.checkpoints_kept=20"
        )
    return name.strip(), value


def convert(key: Key, value: Any, place: str) -> Any:
    """A value as its setting's type; texts are read with units. Raises UsageError that names key and place."""
    expected = describe_kind(key)
    try:
        return _convert(key.kind, key.unit, value)
    except ValueError as error:
        reason = str(error) or f"expected {expected}"
        named = place if place.endswith(key.name) else f"{place}: {key.name}"
        raise UsageError(
            f"{named}: {reason}, got {_shown(value)}", hint=f"{key.doc[:1].lower()}{key.doc[1:]}"
        ) from None


def describe_kind(key: Key) -> str:
    """What may stand for a value of this setting, in words."""
    if key.unit == "bytes":
        return "a size such as 4MB"
    if key.unit == "seconds":
        return "a duration such as 30s"
    if typing.get_origin(key.kind) is typing.Literal:
        return "one of " + ", ".join(typing.get_args(key.kind))
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    if key.kind in names:
        return names[key.kind]
    origin = typing.get_origin(key.kind)
    if origin is dict:
        return "a table of texts"
    return "a list of whole numbers" if int in typing.get_args(key.kind) else "a list of texts"


def _convert(kind: Any, unit: str, value: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ValueError("expected one of " + ", ".join(choices))
        return value
    if origin is tuple:
        return _sequence(typing.get_args(kind)[0], value)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise ValueError("expected a table of texts")
        return value
    if kind is str:
        if not isinstance(value, str):
            raise ValueError("expected text")
        return value
    return _number(kind, unit, value)


def _number(kind: Any, unit: str, value: Any) -> int | float:
    if isinstance(value, str):
        if unit == "bytes":
            return parse_size(value)
        if unit == "seconds":
            return parse_duration(value)
        try:
            return int(value) if kind is int else float(value)
        except ValueError:
            raise ValueError("expected a whole number" if kind is int else "expected a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(
            {"bytes": "expected a size such as 4MB", "seconds": "expected a duration such as 30s"}.get(unit, "")
        )
    if not math.isfinite(value):
        raise ValueError("expected a finite number")
    if kind is int and not isinstance(value, int):
        raise ValueError("expected a whole number")
    return value if kind is int else float(value)


def _sequence(kind: type, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, kind) for item in value):
        raise ValueError("expected a list of texts" if kind is str else "expected a list of whole numbers")
    return tuple(value)


class _File:
    """A settings file: its values, and the line that each stands on."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._table = project.read_table(path) or {}
        self._prefix = "tool.orun." if os.path.basename(path) == "pyproject.toml" else ""
        self._lines = _key_lines(path)

    def values(self) -> dict[str, Any]:
        """Dotted keys to converted values, without the children."""
        found: dict[str, Any] = {}
        for name, value in self._table.items():
            if name == CHILDREN:
                continue
            if name in _SECTIONS:
                if not isinstance(value, dict):
                    raise UsageError(f"{self.place(name)}: {name} must be a table, [{self._prefix}{name}]")
                for inner, content in value.items():
                    dotted = f"{name}.{inner}"
                    found[dotted] = convert(self._known(dotted), content, self.place(dotted))
            else:
                found[name] = convert(self._known(name), value, self.place(name))
        return found

    def children(self) -> tuple[ChildSettings, ...]:
        """The plain commands, in the order of the file."""
        tables = self._table.get(CHILDREN, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise UsageError(f"{self.place(CHILDREN)}: children must be tables, [[{self._prefix}children]]")
        known = {key.name: key for key in keys_of(ChildSettings)}
        children = []
        for number, table in enumerate(tables):
            values = {}
            for name, value in table.items():
                place = self.place(f"{CHILDREN}.{number}.{name}")
                if name not in known:
                    raise UsageError(f"{place}: no setting {name!r} in [[children]]", hint=_nearest(name, list(known)))
                values[name] = convert(known[name], value, place)
            children.append(ChildSettings(**values))
        return tuple(children)

    def place(self, name: str) -> str:
        """Where a key stands, as PATH:LINE."""
        line = self._lines.get(self._prefix + name)
        return f"{self._path}:{line}" if line else self._path

    def _known(self, name: str) -> Key:
        return find_key(name, self.place(name))


def _key_lines(path: str) -> dict[str, int]:
    """The line of each key, as far as a reader of lines can tell; only used to point at it."""
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    section = ""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if text.startswith("["):
                name = text.strip("[] \t").split("#")[0].strip("[] \t")
                section = name + "."
                if text.startswith("[["):
                    section += f"{counts.get(name, 0)}."
                    counts[name] = counts.get(name, 0) + 1
                lines.setdefault(name, number)
            elif "=" in text and not text.startswith("#"):
                lines.setdefault(section + text.split("=")[0].strip().strip("\"'"), number)
    return lines


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    """A variable that begins like a section's but names no key is a typing error, not a wish to be ignored."""
    known = {key.env for key in keys().values()}
    for name in environ:
        section = name.removeprefix(ENV_PREFIX).partition("_")[0].lower()
        if name.startswith(ENV_PREFIX) and section in _SECTIONS and name not in known:
            raise UsageError(f"{name}: no such setting", hint=_nearest(name, sorted(known)))


def _assemble(values: Mapping[str, Any], children: tuple[ChildSettings, ...]) -> Settings:
    parts: dict[str, Any] = {CHILDREN: children}
    for key in keys_of(Settings):
        if key.name == CHILDREN:
            continue
        if is_dataclass(key.kind):
            start = key.name + "."
            section: Any = key.kind
            own = {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}
            parts[key.name] = section(**own)
        elif key.name in values:
            parts[key.name] = values[key.name]
    return Settings(**parts)


def _nearest(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "`orun config` lists every setting"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
