"""The manual: a page for orun, one for each command, and orun.toml(5), in man(7) macros.

The bytes depend on the command tree, the settings, and the version and date in the changelog only.
"""

from __future__ import annotations

import typing
from dataclasses import is_dataclass

from orun import __version__, settings_file
from orun.cli import configuring
from orun.cli.generators import release
from orun.cli.generators.tree import Command, Option, read
from orun.settings import ChildSettings, Settings

EXIT_CODES = (
    ("0", "Done, or already so."),
    ("1", "Failed; the message says why."),
    ("2", "Usage or settings."),
    ("3", "Nothing is running (status, call, stop, reload, checkpoint create)."),
    ("10", "No such state, checkpoint or version."),
    ("11", "In use by another orun."),
    ("12", "Damaged data."),
    ("13", "The engine cannot be built."),
    ("14", "A child died more often than its supervisor allows."),
    ("124", "A deadline given by the user passed."),
    ("130", "Interrupted, after an orderly stop."),
    ("143", "Terminated, after an orderly stop."),
)
ENVIRONMENT = (
    ("ORUN_STATE_DIR", "The state directory, unless --state-dir names one."),
    ("ORUN_SECTION_KEY", "A setting, for example ORUN_STORE_CHECKPOINTS_KEPT; see orun.toml(5)."),
    ("NO_COLOR", "When set and not empty, no colour."),
)
FILES = (
    (".orun/", "The state directory: log, checkpoints, sockets and logs. The nearest one upwards is used."),
    ("orun.toml, pyproject.toml", "The settings, in pyproject.toml below [tool.orun]; the nearest file counts."),
)


def pages() -> dict[str, str]:
    """Every page by its path below a man folder."""
    root = read()
    found = {"man1/orun.1": _root_page(root)}
    for command in root.children:
        found[f"man1/{'-'.join(command.path)}.1"] = _command_page(command)
    found["man5/orun.toml.5"] = _settings_page()
    return found


def _root_page(root: Command) -> str:
    lines = _head("orun", 1, "orun", root.summary)
    lines += [".SH SYNOPSIS", f".B {_quote('orun')}", '.RI [ OPTION ]... " COMMAND " [ ARG ]...']
    lines += [".SH DESCRIPTION", _text(root.text)]
    lines += [".SH COMMANDS"]
    for command in root.children:
        lines += [".TP", f".BR {_escape('-'.join(command.path))} (1)", _text(command.summary)]
    lines += [".SH OPTIONS", *_options(root.options)]
    lines += [".SH EXIT STATUS", *_terms(EXIT_CODES)]
    lines += [".SH ENVIRONMENT", *_terms(ENVIRONMENT)]
    lines += [".SH FILES", *_terms(FILES)]
    others = [f"{'-'.join(command.path)}(1)" for command in root.children]
    return _end(lines, [*others, "orun.toml(5)"])


def _command_page(command: Command) -> str:
    lines = _head("-".join(command.path), 1, "-".join(command.path), command.summary)
    commands = list(command.walk()) if command.children else [command]
    shown = [part for part in commands if not part.children]
    lines.append(".SH SYNOPSIS")
    for number, part in enumerate(shown):
        lines += ([".br"] if number else []) + [
            f".B {_quote(part.name)}",
            _text(part.usage.removeprefix(part.name).strip()),
        ]
    lines.append(".SH DESCRIPTION")
    if command.children:
        lines.append(_text(command.text))
        for part in shown:
            lines += [f".SS {_quote(part.name)}", _text(part.text), *_arguments(part), *_options(part.options)]
    else:
        lines += [_text(command.text), *_arguments(command), ".SH OPTIONS", *_options(command.options)]
    examples = [line for part in shown for line in part.examples]
    if examples:
        lines += [".SH EXAMPLES", ".nf", *(_text(line) for line in examples), ".fi"]
    lines += [".SH EXIT STATUS", "See", ".BR orun (1)."]
    return _end(lines, ["orun(1)", "orun.toml(5)"])


def _settings_page() -> str:
    lines = _head("orun.toml", 5, "orun.toml", "settings of orun")
    lines += [
        ".SH DESCRIPTION",
        _text(
            "orun.toml in the project's folder, or the table [tool.orun] of pyproject.toml. The nearest file upwards "
            "from the working folder counts; two are never merged. An environment variable beats the file, and a flag "
            "or --set beats both. An unknown key is an error. Sizes may carry a unit (KB, MB, GB, in powers of 1024), "
            "durations too (ms, s, m, h, d). Relative paths count from the file. orun-config(1) shows the values in "
            "force and where each comes from."
        ),
    ]
    top = [key for key in settings_file.keys().values() if "." not in key.name]
    lines += [".SH TOP LEVEL", *_keys(top, "")]
    for section in settings_file.keys_of(Settings):
        if is_dataclass(section.kind):
            kind = typing.cast(type, section.kind)
            lines += [
                f".SH [{section.name}]".upper(),
                *_keys(settings_file.keys_of(kind, f"{section.name}."), section.name + "."),
            ]
    lines += [".SH [[CHILDREN]]", _text("A plain command beside the agents; the table may be repeated.")]
    lines += _keys(settings_file.keys_of(ChildSettings, "children."), "children.", variables=False)
    return _end(lines, ["orun(1)", "orun-config(1)"])


def _keys(keys: list[settings_file.Key], prefix: str, *, variables: bool = True) -> list[str]:
    lines = []
    for key in keys:
        kind = settings_file.describe_kind(key)
        default = configuring.shown(key, key.default) or "empty"
        more = f" ({kind}; default {default}" + (f"; {key.env}" if variables else "") + ")"
        lines += [".TP", f".B {_escape(key.name.removeprefix(prefix))}", _text(f"{key.doc}.{more}")]
    return lines


def _head(title: str, section: int, name: str, summary: str) -> list[str]:
    summary = summary.rstrip(".")
    shown = title.upper() if section == 1 else title
    return [
        '.\\" Generated by `orun generate man`; do not edit.',
        f'.TH {shown} {section} {release.DATE} "orun {__version__}" "orun manual"',
        ".SH NAME",
        f"{_escape(name)} \\- {_text(summary[:1].lower() + summary[1:])}",
    ]


def _end(lines: list[str], related: list[str]) -> str:
    lines.append(".SH SEE ALSO")
    for number, page in enumerate(related):
        name, _, section = page.partition("(")
        comma = "," if number < len(related) - 1 else ""
        lines.append(f".BR {_escape(name)} ({section}{comma}")
    return "\n".join(lines) + "\n"


def _options(options: tuple[Option, ...]) -> list[str]:
    lines = []
    for option in options:
        spelled = ", ".join(f"\\fB{_escape(spelling)}\\fR" for spelling in option.spellings)
        value = f" \\fI{_escape(option.value)}\\fR" if option.value else ""
        default = f" Default: {option.default}." if option.default else ""
        repeat = " May be given several times." if option.repeatable else ""
        lines += [".TP", spelled + value, _text(option.help + default + repeat)]
    return lines


def _arguments(command: Command) -> list[str]:
    lines = []
    for argument in command.arguments:
        lines += [".TP", f".I {_quote(argument.metavar)}", _text(argument.help)]
    return lines


def _terms(pairs: tuple[tuple[str, str], ...]) -> list[str]:
    return [line for term, text in pairs for line in (".TP", f".B {_quote(term)}", _text(text))]


def _text(text: str) -> str:
    """Running text: paragraphs kept, nothing that roff would take for a request."""
    paragraphs = [_escape(part) for part in text.split("\n\n")]
    return "\n.PP\n".join(f"\\&{part}" if part[:1] in (".", "'") else part for part in paragraphs)


def _quote(text: str) -> str:
    return '"' + _escape(text).replace('"', "\\(dq") + '"'


def _escape(text: str) -> str:
    return (
        text.replace("\\", "\\e")
        .replace("-", "\\-")
        .replace("'", "\\(aq")
        .replace("`", "\\(ga")
        .replace("~", "\\(ti")
        .replace("^", "\\(ha")
    )
