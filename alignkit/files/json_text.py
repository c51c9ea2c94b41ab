"""Decode one JSON text, strictly and fast; on failure, report what is wrong and where.

orjson does the work. It keeps the last of two equal keys and turns integers beyond 64 bits into
floats; both are caught here. The slow path runs only on texts that failed or look suspicious.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import orjson

from alignkit.files.problems import RowError

MAX_DEPTH = 64
MAX_DIGITS = 4300

JSON_TYPES = {
    dict: "object",
    list: "array",
    str: "text",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
}

_BRACKET_OR_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_TRAILING_COMMA = re.compile(r",\s*[}\]]")
_PYTHON_QUOTES = re.compile(r"""[{\[,:]\s*'""")
# How a word, the rest of a number or an escape begins where a line was cut off.
_BEGUN = re.compile(r"t|tr|tru|f|fa|fal|fals|n|nu|nul|-|\.|[eE][+-]?|u[0-9a-fA-F]{0,4}")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def type_name(value: object) -> str:
    """Return the JSON name of a value's type: object, array, text, number, boolean or null."""
    return JSON_TYPES.get(type(value), type(value).__name__)


def decode(raw: bytes) -> Any:
    """Decode one JSON text; RowError names what is wrong with it."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        diagnose(raw)
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        _check_depth(raw)
    if _may_repeat_a_key(raw, value):
        _decode_slowly(raw.decode())
    return value


def decode_exactly(raw: bytes) -> Any:
    """Decode like `decode`, but keep integers of any length (for what must round-trip)."""
    return _decode_slowly(raw.decode("utf-8-sig"))


def _may_repeat_a_key(raw: bytes, value: object) -> bool:
    """Return False only if no key appears twice.

    Compares the quotes that delimit strings in the text with those in the value serialized again.
    A repeated key leaves at least two more in the text, and nothing leaves fewer: a quote inside a
    string is written `\\"` or `\\u0022`.
    """
    if type(value) is dict and all([type(inner) is str for inner in value.values()]):
        return _delimiters(raw) != 4 * len(value)
    return _delimiters(raw) != _delimiters(orjson.dumps(value))


def _delimiters(text: bytes) -> int:
    quotes = text.count(b'"')
    return quotes - text.count(b'\\"') if b"\\" in text else quotes


def diagnose(raw: bytes) -> NoReturn:
    """Raise the RowError that explains why `raw` is not JSON."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise RowError(
            "encoding",
            f"byte 0x{byte:02x} at column {error.start + 1} is not UTF-8",
            "save the file as UTF-8",
            column=error.start + 1,
        ) from None
    if (at := raw.find(b"\x00")) >= 0:
        raise RowError(
            "nul", f"NUL character at column {at + 1}", "remove it: tr -d '\\000'", column=at + 1
        )
    _check_depth(raw)
    value = _decode_slowly(text)
    for path, string in strings(value):
        if _LONE_SURROGATE.search(string):
            raise RowError(
                "surrogate",
                f'broken emoji/surrogate in "{path}"',
                "write the text as UTF-8, or drop the half character",
                field=path,
            )
    raise RowError("json", "number too large for JSON", "write a smaller number, or text")


def _check_depth(raw: bytes) -> None:
    depth = 0
    for match in _BRACKET_OR_STRING.finditer(raw):
        token = match[0]
        depth += (token in b"[{") - (token in b"]}")
        if depth > MAX_DEPTH:
            raise RowError(
                "nesting",
                f"nested deeper than {MAX_DEPTH}",
                "flatten the row",
                column=match.start() + 1,
            )


def _decode_slowly(text: str) -> Any:
    try:
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=_bounded_int,
            parse_float=_finite,
            object_pairs_hook=_refuse_repeated_keys,
        )
    except json.JSONDecodeError as error:
        raise _explain(text, error) from None
    except RecursionError:
        raise RowError("nesting", f"nested deeper than {MAX_DEPTH}", "flatten the row") from None


def _refuse_constant(name: str) -> NoReturn:
    raise RowError("json", f"{name} is not JSON", "write null, or remove the row")


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise RowError(
            "json", f"a number of {len(digits):,} digits", "write a smaller number, or text"
        )
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise RowError("json", f"number too large: {digits[:20]}", "write a smaller number")
    return value


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowError(
            "duplicate-key", f'key "{twice}" appears twice', "keep one of them", field=twice
        )
    return row


def _explain(text: str, error: json.JSONDecodeError) -> RowError:
    column = error.colno
    if _ends_too_early(text, error):
        return RowError(
            "incomplete",
            "the line ends in the middle of a value",
            "restore or remove the line",
            column=column,
        )
    around = text[max(0, error.pos - 40) : error.pos + 2]
    if _TRAILING_COMMA.search(around):
        return RowError("json", "trailing comma", "remove the last comma", column=column)
    if _PYTHON_QUOTES.search(around) or text.lstrip()[:2] in ("{'", "['"):
        return RowError(
            "json", "Python-style quotes", "write JSON: json.dumps(row) in Python", column=column
        )
    if error.msg == "Extra data":
        return RowError(
            "json", "more than one value on the line", "one JSON object per line", column=column
        )
    return RowError("json", f"not JSON: {error.msg}", "one JSON object per line", column=column)


def _ends_too_early(text: str, error: json.JSONDecodeError) -> bool:
    rest = text.rstrip()[error.pos :]
    return not rest or error.msg.startswith("Unterminated") or bool(_BEGUN.fullmatch(rest))


def strings(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text inside a JSON value, keys included, with its path: `messages[0].content`."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path}.{key}" if path else key, key
            yield from strings(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from strings(inner, f"{path}[{position}]")
