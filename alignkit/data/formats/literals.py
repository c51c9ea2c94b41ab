"""Read lists and objects that a table wrote as text, in JSON or in Python."""

from __future__ import annotations

import ast
from contextlib import suppress
from typing import Any

from alignkit.files.json_text import decode
from alignkit.files.problems import RowError

LONGEST_LITERAL = 1 << 20


def json_list(value: object) -> list[Any] | None:
    """Return a list, also one written as text in JSON or Python; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        value = parse_literal(text) if text[:1] == "[" and text[-1:] == "]" else None
    return value if isinstance(value, list) else None


def parse_literal(text: str) -> Any:
    """Return the value that a text writes in JSON or as a Python literal; None if neither."""
    with suppress(RowError, UnicodeEncodeError):  # not JSON: Python is tried next
        return decode(text.encode())
    if len(text) > LONGEST_LITERAL:
        return None
    try:
        return _as_json(ast.literal_eval(text.strip()))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _as_json(value: Any) -> Any:
    """Convert a literal to JSON: tuples to arrays; ValueError for sets, bytes and other keys."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key that is not text")
        return {key: _as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inner) for inner in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError("not a JSON value")
