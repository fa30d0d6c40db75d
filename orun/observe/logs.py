"""Reading the logs that the runtime writes: the last lines across rotated files, and what comes after them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from orun.errors import NotFound

SUFFIX = ".log"
ROTATED_MAX = 1000
READ_BYTES = 1 << 16
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:[.,](\d{1,6}))?(Z|[+-]\d\d:\d\d)?")
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log; ``time`` is unix time where the line carries one."""

    name: str
    text: str
    time: float | None


def names(folder: str) -> list[str]:
    """The logs there are; the runtime's own comes first."""
    try:
        found = [entry.removesuffix(SUFFIX) for entry in os.listdir(folder) if entry.endswith(SUFFIX)]
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda name: (name != "runtime", name))


def choose(folder: str, name: str | None, running: Iterable[str] = ()) -> list[str]:
    """The log of this name, or all. Raises NotFound with what there is.

    ``running``: agents that run. One that has not printed anything yet has no file, and that is no error.
    """
    known = names(folder)
    known += sorted(set(running) - set(known))
    if name is None:
        return known
    if name not in known:
        raise NotFound(
            f"no log {name!r} in {folder}", hint=f"there is {', '.join(known)}" if known else "nothing was logged yet"
        )
    return [name]


def time_of(text: str) -> float | None:
    """The time that a line carries near its beginning; without a zone it is local."""
    match = _TIME.search(text[:64])
    if match is None:
        return None
    day, clock, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone == 'Z' else zone or ''}")
    except ValueError:
        return None
    return moment.timestamp() + (float(f"0.{fraction}") if fraction else 0.0)


def clean(text: str, *, coloured: bool) -> str:
    """A line without what would act on a terminal; colours stay when they are wanted."""
    if "\x1b" in text:
        text = _ESCAPES.sub(lambda match: match.group() if coloured and _COLOUR.fullmatch(match.group()) else "", text)
        parts = _COLOUR.split(text)
        return "".join(part if _COLOUR.fullmatch(part) else _CONTROLS.sub("", part) for part in parts)
    return _CONTROLS.sub("", text)


class Reader:
    """One log: its last lines up to this moment, then what comes, with nothing lost or doubled between them."""

    def __init__(self, folder: str, name: str) -> None:
        self.name = name
        self._path = os.path.join(folder, name + SUFFIX)
        self._rest = b""
        self._inode, self._at = self._find()

    def past(self, count: int, *, since: float | None = None) -> list[Line]:
        """The last ``count`` lines, rotated files included; with ``since`` only what is not older.

        A line that carries no time is as old as the line before it that does.
        """
        texts: list[str] = []
        for number in range(ROTATED_MAX):
            part = self._path if number == 0 else f"{self._path}.{number}"
            if len(texts) >= count or not os.path.exists(part):
                break
            if since is not None and os.stat(part).st_mtime < since:
                break
            texts = _last_lines(part, count - len(texts), self._at if number == 0 else None) + texts
        lines = []
        last: float | None = None
        for text in texts:
            at = time_of(text)
            last = last if at is None else at
            if since is None or last is None or last >= since:
                lines.append(Line(self.name, text, at))
        return lines

    def fresh(self) -> list[Line]:
        """What was written since the last look, through a rotation too."""
        data = b""
        inode, size = self._find()
        if inode != self._inode:
            data = self._read(f"{self._path}.1")
            self._inode, self._at = inode, 0
        elif size < self._at:
            self._at = 0
        fresh = self._read(self._path)
        self._at += len(fresh)
        *complete, self._rest = (self._rest + data + fresh).split(b"\n")
        texts = [line.decode("utf-8", "replace") for line in complete]
        return [Line(self.name, text, time_of(text)) for text in texts]

    def _find(self) -> tuple[int, int]:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_size

    def _read(self, path: str) -> bytes:
        try:
            with open(path, "rb") as file:
                file.seek(self._at)
                return file.read()
        except FileNotFoundError:
            return b""


def _last_lines(path: str, count: int, end: int | None) -> list[str]:
    """The last lines of a file, or of its first ``end`` bytes, read from there backwards."""
    with open(path, "rb") as file:
        at = file.seek(0, os.SEEK_END) if end is None else end
        data = b""
        while at > 0 and data.count(b"\n") <= count:
            step = min(READ_BYTES, at)
            at -= step
            file.seek(at)
            data = file.read(step) + data
    lines = data.decode("utf-8", "replace").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return lines[-count:] if count else []
