"""Rows of a JSONL file or of one JSON array, each with its line, and the file's fingerprint.

Reading is streaming for JSONL. An array is decoded element by element, so that a mistake in it
has a line too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import orjson

from alignkit.errors import DataError

Row = dict[str, Any]
_BOM = b"\xef\xbb\xbf"
_BLANK = " \t\r\n"


class RowFile:
    """One input: iterate it once for (line, row), then read `rows` and `sha256`."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.rows = 0
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of the bytes read so far: of the whole file once the iteration is over."""
        return self._digest.hexdigest()

    def as_dict(self) -> dict[str, Any]:
        return {"path": self.path, "sha256": self.sha256, "rows": self.rows}

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        for line, value in self._values():
            if not isinstance(value, dict):
                raise DataError("a row must be a JSON object", where=f"{self.path}:{line}")
            self.rows += 1
            yield line, value

    def _values(self) -> Iterator[tuple[int, Any]]:
        try:
            with open(self.path, "rb") as file:
                for number, raw in enumerate(file, start=1):
                    self._digest.update(raw)
                    text = raw.removeprefix(_BOM) if number == 1 else raw
                    if not text.strip():
                        continue
                    if not self.rows and text.lstrip().startswith(b"["):
                        rest = file.read()
                        self._digest.update(rest)
                        yield from self._elements(text + rest, number)
                        return
                    yield number, self._decoded(text, number)
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"cannot be read: {reason}", where=self.path) from None

    def _decoded(self, text: bytes, line: int) -> Any:
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError as error:
            self._refuse(_reason(error), line)

    def _elements(self, raw: bytes, line: int) -> Iterator[tuple[int, Any]]:
        """The elements of an array that starts on `line`."""
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self._refuse("not UTF-8", line + raw.count(b"\n", 0, error.start))
        decoder = json.JSONDecoder(parse_constant=_refuse_constant)
        position, more = text.index("[") + 1, False
        while True:
            position, line = _skip_blank(text, position, line)
            if text[position : position + 1] == "]" and not more:
                break
            try:
                value, end = decoder.raw_decode(text, position)
            except ValueError as error:
                self._refuse(_reason(error), line)
            if "\\ud" in text[position:end].lower() and _has_lone_surrogate(value):
                self._refuse("half of a surrogate pair", line)
            yield line, value
            line += text.count("\n", position, end)
            position, line = _skip_blank(text, end, line)
            more = text[position : position + 1] == ","
            if not more and text[position : position + 1] != "]":
                self._refuse("expected ',' or ']' between the rows of the array", line)
            position += more
        position, line = _skip_blank(text, position + 1, line)
        if position < len(text):
            self._refuse("text after the end of the array", line)

    def _refuse(self, reason: str, line: int) -> NoReturn:
        raise DataError(f"not valid JSON: {reason}", where=f"{self.path}:{line}") from None


def _skip_blank(text: str, position: int, line: int) -> tuple[int, int]:
    while position < len(text) and text[position] in _BLANK:
        line += text[position] == "\n"
        position += 1
    return position, line


def _reason(error: ValueError) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _has_lone_surrogate(value: Any) -> bool:
    """Whether a text of `value` cannot be written as UTF-8 (orjson refuses these by itself)."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
