"""The only module that prints: results to standard output, talk to standard error.

Colour is judged for each stream by itself; ``NO_COLOR``, ``TERM=dumb`` and a pipe turn it off.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any, TextIO

    from orun.errors import OrunError

SCHEMA = 1
SIGPIPE_EXIT = 141
"""What a shell reports for a program that wrote to a closed pipe."""

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at this stream, on a terminal that can do more than print."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def colour(stream: TextIO) -> bool:
    """Whether colour may be used on this stream."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def width(stream: TextIO) -> int | None:
    """The columns of the terminal that this stream is, or None where nothing limits a line."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except OSError:
        return None


def paint(text: str, style: str, enabled: bool) -> str:
    """The text in a style, or as it is."""
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if enabled else text


def result(text: str) -> None:
    """A result for people: to standard output."""
    _write(sys.stdout, text if text.endswith("\n") else text + "\n")


def raw(data: str) -> None:
    """A result as it is, without a line end of ours."""
    _write(sys.stdout, data)


def document(value: Mapping[str, Any]) -> None:
    """A result for programs: one JSON document on one line, with the schema's number first."""
    result(to_json({"schema": SCHEMA, **value}))


def note(text: str, *, quiet: bool = False) -> None:
    """Talk: to standard error, unless it is not wanted."""
    if not quiet:
        _write(sys.stderr, text + "\n")


def warn(text: str) -> None:
    """A warning; never silenced."""
    _write(sys.stderr, f"{paint('warning:', 'yellow', colour(sys.stderr))} {text}\n")


def progress(*, quiet: bool = False) -> Callable[[str], None]:
    """A function that says what takes its time, a line each."""
    return lambda text: note(text, quiet=quiet)


def ask(question: str) -> bool:
    """Ask on the terminal; only an explicit yes counts."""
    _write(sys.stderr, f"{question} [y/N] ")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def can_ask() -> bool:
    """Whether a person is there to answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def failure(error: OrunError, *, as_json: bool) -> None:
    """Say what went wrong and what to do, on standard error."""
    if as_json:
        _write(sys.stderr, to_json({"schema": SCHEMA, "error": describe(error)}) + "\n")
        return
    styled = colour(sys.stderr)
    text = f"{paint('error:', 'red', styled)} {error.message}\n"
    where = getattr(error, "error", {}).get("where")
    if where:
        text += f"{paint('at:', 'dim', styled)} {where}\n"
    if error.hint:
        text += f"{paint('hint:', 'cyan', styled)} {error.hint}\n"
    _write(sys.stderr, text)


def describe(error: OrunError) -> dict[str, Any]:
    """An error as its JSON form; an agent's own structured error keeps everything it says."""
    from orun.errors import RequestFailed

    if isinstance(error, RequestFailed):
        return {"message": error.message, **error.error, "code": error.code}
    content: dict[str, Any] = {"type": error_type(error), "message": error.message, "code": error.code}
    if error.hint:
        content["hint"] = error.hint
    return content


def error_type(error: OrunError) -> str:
    """The class name in the spelling of the wire: NotRunning is ``not_running``."""
    name = type(error).__name__.removesuffix("Error")
    if name in ("Orun", "Broken"):
        return "failed"
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def to_json(value: Any) -> str:
    """JSON on one line. Bytes become base64 text; NaN and infinities, which JSON lacks, raise OrunError."""
    import json

    from orun.errors import OrunError

    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_foreign)
    except ValueError as error:
        raise OrunError("the result holds NaN or an infinity, which JSON cannot express") from error
    except RecursionError as error:
        raise OrunError("the result is nested too deeply for JSON") from error
    except TypeError:
        return json.dumps(_text_keys(value), ensure_ascii=False, allow_nan=False, default=_foreign)


def table(header: Sequence[str], rows: Iterable[Sequence[object]], *, styled: bool = False) -> str:
    """Columns aligned by spaces; numbers to the right. Nothing is cut, whatever the terminal's width."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(header))]
    right = [len(cells) > 1 and all(_is_number(row[at]) for row in cells[1:]) for at in range(len(header))]
    lines = []
    for number, row in enumerate(cells):
        parts = [
            text.rjust(width) if flush else text.ljust(width)
            for text, width, flush in zip(row, widths, right, strict=True)
        ]
        line = "  ".join(parts).rstrip()
        lines.append(paint(line, "bold", styled) if number == 0 else line)
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    return str(value)


def _is_number(text: str) -> bool:
    return text == "-" or text[:1].isdigit()


def _foreign(value: Any) -> Any:
    """What MessagePack has and JSON has not."""
    if isinstance(value, bytes | bytearray | memoryview):
        import base64

        return base64.b64encode(value).decode("ascii")
    return str(value)


def _text_keys(value: Any) -> Any:
    """The same value with every key as text: MessagePack allows keys that JSON does not."""
    if isinstance(value, dict):
        return {
            key if isinstance(key, str | int | float | bool | None) else str(_foreign(key)): _text_keys(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_text_keys(item) for item in value]
    return value


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except UnicodeEncodeError:
        stream.write(text.encode(stream.encoding or "ascii", "backslashreplace").decode(stream.encoding or "ascii"))
        stream.flush()
    except BrokenPipeError:
        # The reader has gone (`orun status | head`): end quietly, and keep the interpreter from trying again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise SystemExit(SIGPIPE_EXIT) from None
