"""An agent's program: its files as one snapshot, addressed by their content, and how it is loaded.

A worker runs a snapshot, never the working tree: a standby forked tomorrow runs the same code as the
worker it replaces, whatever was edited meanwhile. The agent file and the local modules that it imports
make up a snapshot; they are executed under their original names and paths, so that tracebacks and
``__file__`` point at the user's files.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import final

from orun.errors import Damaged, NotFound, OrunError, StorageFailed, UsageError
from orun.store.layout import sync_folder, write_durably
from orun.worker.agent import Agent

FILES_MAX = 500
_MANIFEST = "manifest.json"


@final
@dataclass(frozen=True, slots=True)
class Program:
    """The files of one version. ``files`` maps paths relative to ``root`` to their bytes."""

    root: str
    main: str
    files: dict[str, bytes]

    @property
    def version(self) -> str:
        """The content hash: 12 hexadecimal digits over the names and bytes of all files."""
        digest = hashlib.blake2b(digest_size=6)
        for name in sorted(self.files):
            digest.update(f"{name}\0{len(self.files[name])}\0".encode())
            digest.update(self.files[name])
        return digest.hexdigest()

    def save(self, folder: str) -> str:
        """Write the snapshot below ``folder``, unless it is there; returns its own folder.

        Raises StorageFailed. What a power cut has left of an earlier attempt is written anew.
        """
        home = os.path.join(folder, self.version)
        if self._is_saved(home):
            return home
        try:
            for name, content in self.files.items():
                path = Path(home, "files", name)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_durably(path, content)
            manifest = {"root": self.root, "main": self.main, "files": sorted(self.files)}
            write_durably(Path(home, _MANIFEST), json.dumps(manifest, indent=1).encode())
            for parent in (Path(home, "files"), Path(folder)):
                sync_folder(parent)
        except OSError as error:
            full = error.errno == errno.ENOSPC
            raise StorageFailed(
                f"the agent's code cannot be kept in {home}: {error.strerror}",
                hint="free some space, then start orun again: nothing is lost" if full else None,
            ) from error
        return home

    def _is_saved(self, home: str) -> bool:
        if not os.path.exists(os.path.join(home, _MANIFEST)):
            return False
        try:
            return load_snapshot(home) == self
        except Damaged:
            return False


def snapshot(agent_file: str) -> Program:
    """Read the agent file and the local modules that it imports.

    Raises NotFound when there is no such file, UsageError when it cannot be read or parsed.
    """
    main = os.path.abspath(agent_file)
    if not os.path.isfile(main):
        raise NotFound(f"there is no agent file {agent_file}", hint="`orun init NAME` makes one")
    root = os.path.dirname(main)
    files: dict[str, bytes] = {}
    waiting = [main]
    while waiting:
        path = waiting.pop()
        name = os.path.relpath(path, root)
        if name in files:
            continue
        if len(files) >= FILES_MAX:
            raise UsageError(f"{agent_file} imports more than {FILES_MAX} local files")
        try:
            files[name] = Path(path).read_bytes()
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        waiting += _local_imports(path, files[name], root)
    return Program(root, os.path.basename(main), files)


def load_snapshot(home: str) -> Program:
    """Read a saved snapshot. Raises Damaged when it is not what its name says."""
    try:
        with open(os.path.join(home, _MANIFEST), encoding="utf-8") as file:
            manifest = json.load(file)
        files = {name: Path(home, "files", name).read_bytes() for name in manifest["files"]}
        program = Program(manifest["root"], manifest["main"], files)
    except (OSError, ValueError, KeyError) as error:
        raise Damaged(f"the version in {home} cannot be read: {error}") from error
    if program.version != os.path.basename(home):
        raise Damaged(f"the version in {home} has been changed: its content is {program.version}")
    return program


def load(program: Program) -> Agent:
    """Execute the program and return its agent.

    Raises UsageError, with file and line, when it does not compile, fails, or defines no agent or several.
    """
    sys.meta_path.insert(0, _SnapshotFinder(program))
    sys.path.insert(0, program.root)
    path = os.path.join(program.root, program.main)
    module = ModuleType("__agent__")
    module.__file__ = path
    sys.modules["__agent__"] = module
    try:
        code = compile(program.files[program.main], path, "exec")
        exec(code, module.__dict__)
    except SyntaxError as error:
        text = f"\n    {error.text.rstrip()}" if error.text else ""
        # A null byte has neither file nor line.
        place = f"{error.filename}:{error.lineno}" if error.filename else path
        raise UsageError(f"{place}: {error.msg}{text}") from error
    except OrunError as error:
        raise type(error)(f"{_place(error, program)}{error.message}", hint=error.hint) from error
    except BaseException as error:
        raise UsageError(f"{_place(error, program)}{type(error).__name__}: {error}") from error
    agents = {id(value): value for value in vars(module).values() if isinstance(value, Agent)}
    if len(agents) != 1:
        found = "no agent" if not agents else f"{len(agents)} agents"
        raise UsageError(f"{path} defines {found}", hint='it needs one line such as `agent = Agent("name")`')
    agent = next(iter(agents.values()))
    if not agent.handlers:
        raise UsageError(f"{path}: agent {agent.name} has no handler", hint="decorate a function with `@agent.handler`")
    return agent


def _place(error: BaseException, program: Program) -> str:
    """The last line of the user's own files that the error passed through."""
    place = os.path.join(program.root, program.main) + ": "
    for frame in traceback.extract_tb(error.__traceback__):
        if os.path.relpath(frame.filename, program.root) in program.files:
            place = f"{frame.filename}:{frame.lineno}: "
    return place


def _local_imports(path: str, source: bytes, root: str) -> list[str]:
    """The files below ``root`` that a module's import statements name, wherever they stand in it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []  # Loading it reports the place; a snapshot only collects.
    found: list[str] = []
    here = os.path.dirname(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found += _resolve(root, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = root
            if node.level:
                base = os.path.normpath(os.path.join(here, *[".."] * (node.level - 1)))
            parts = node.module.split(".") if node.module else []
            found += _resolve(base, parts)
            for alias in node.names:
                found += _resolve(base, [*parts, alias.name])
    return [file for file in found if not os.path.relpath(file, root).startswith("..")]


def _resolve(base: str, parts: Sequence[str]) -> list[str]:
    """The package and module files along a dotted name, as far as they exist below ``base``."""
    found = []
    folder = base
    for part in parts:
        module = os.path.join(folder, part + ".py")
        folder = os.path.join(folder, part)
        package = os.path.join(folder, "__init__.py")
        if os.path.isfile(package):
            found.append(package)
        elif os.path.isfile(module):
            found.append(module)
            break
    return found


@final
class _SnapshotLoader(importlib.machinery.SourceFileLoader):
    """Loads a module from the snapshot under its original path; nothing is cached on disk."""

    def __init__(self, fullname: str, path: str, content: bytes) -> None:
        super().__init__(fullname, path)
        self._content = content

    def get_data(self, path: str | bytes) -> bytes:
        """The snapshot's bytes in place of the file's."""
        return self._content

    def get_code(self, fullname: str) -> CodeType:
        """Compiled from the snapshot, never from a bytecode file beside the original."""
        code: CodeType = compile(self._content, self.path, "exec", dont_inherit=True)
        return code


@final
class _SnapshotFinder(importlib.abc.MetaPathFinder):
    """Finds the snapshot's modules before the working tree's."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec for a module of the snapshot, or None for every other."""
        stem = os.path.join(*fullname.split("."))
        for name in (os.path.join(stem, "__init__.py"), stem + ".py"):
            content = self._program.files.get(name)
            if content is not None:
                location = os.path.join(self._program.root, name)
                return importlib.util.spec_from_file_location(
                    fullname, location, loader=_SnapshotLoader(fullname, location, content)
                )
        return None
