"""JSON at the edge: what a caller may send, and what a handler may answer.

Stricter than the standard library: NaN, Infinity and numbers too large for a double are refused instead of
passed on, and every complaint says where the text goes wrong.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NoReturn


class BadJson(ValueError):
    """Text that is not JSON, or says something that JSON must not say."""


def _refuse_constant(name: str) -> NoReturn:
    raise BadJson(f"{name} is not JSON; send null or a string")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise BadJson(f"the number {text[:40]} is too large for a double")
    return value


_MAY_OVERFLOW: Final = re.compile(r"[eE]\+?\d{3}|\d{309}")
"""A call into Python for each float doubles the time of parsing, so only texts like these pay for it."""
_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode
_decode_careful = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite).decode
_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode


def loads(body: bytes) -> Any:
    """The value of a JSON text. Raises BadJson with the position of what is wrong."""
    try:
        text = body.decode()
        if text.startswith("\ufeff"):
            raise BadJson("the text begins with a byte order mark (BOM)")
        return (_decode_careful if _MAY_OVERFLOW.search(text) else _decode)(text)
    except UnicodeDecodeError as error:
        raise BadJson(f"invalid UTF-8 at byte {error.start}: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise BadJson(f"malformed JSON at line {error.lineno} column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise BadJson("the JSON is nested too deeply") from error
    except BadJson:
        raise
    except ValueError as error:
        # The interpreter refuses integers of thousands of digits, whose conversion takes quadratic time.
        raise BadJson(f"a number is too long: {error}") from error


def dumps(value: Any) -> bytes:
    """A value as JSON text. Raises TypeError or ValueError for what JSON cannot hold."""
    return _encode(value).encode()
