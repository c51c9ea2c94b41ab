"""Rows of judged files, through the reader of all records, and the fields that a row may have.

A field that is not what it should be is a DataError in words; whoever knows the line adds it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from alignkit.data.records import Candidate, Messages
from alignkit.errors import DataError, did_you_mean
from alignkit.files.json_text import type_name
from alignkit.files.problems import Problem, RowError
from alignkit.files.rows import read_rows
from alignkit.files.validated import validated

logger = logging.getLogger(__name__)

Row = dict[str, Any]
M = TypeVar("M", bound=BaseModel)
# No length, score or count of tokens comes near; squares and sums of it stay finite.
LARGEST = 1e15


class RowFile:
    """One input: iterate it once for (line, row), then read `rows` and `sha256`.

    What is wrong with a line is a DataError with its place; a last line that a power cut left
    unfinished is left out and told as a warning.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.rows = 0
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of the bytes read so far: of the whole file once the iteration is over."""
        return self._digest.hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """What a report keeps of its input."""
        return {"path": self.path, "sha256": self.sha256, "rows": self.rows}

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        for row in read_rows(self.path, _hear, heard=self._digest.update):
            self.rows += 1
            yield row.line, row.value
        if not self.rows:
            raise DataError("holds no whole row", where=self.path)


def _hear(problem: Problem) -> None:
    if problem.level == "error":
        raise problem.error()
    if problem.level == "warning":
        logger.warning("%s", problem)


# --- fields of a row -----------------------------------------------------------------------------


def shown(value: object) -> str:
    """A value as a message names it: short, and containers by their kind."""
    return type_name(value) if isinstance(value, dict | list) else f"{value!r:.60}"


def need(row: Row, key: str) -> Any:
    """The value of a key that must be there."""
    try:
        return row[key]
    except KeyError:
        raise DataError(f"{key!r} is missing{did_you_mean(key, row)}") from None


def name(row: Row, key: str) -> str:
    """A text that is not empty, or a whole number as text."""
    value = need(row, key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _non_empty(value, key)


def word(row: Row, key: str) -> str:
    """A text that is not empty."""
    return _non_empty(row.get(key), key)


def _non_empty(value: object, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise DataError(f"{key!r} must be a non-empty text, not {shown(value)}")
    return value


def text(row: Row, key: str) -> str | None:
    """A text, or None."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{key!r} must be a text or null, not {shown(value)}")
    return value


def label(row: Row, key: str) -> str | None:
    """A text, a number or true or false, as text; None where it is null or missing."""
    value = row.get(key)
    if isinstance(value, dict | list):
        raise DataError(f"{key!r} must be a text or a number, not {shown(value)}")
    return None if value is None else str(value)


def texts(row: Row, key: str) -> tuple[str, ...]:
    """A list of texts; empty where it is null or missing."""
    value = row.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise DataError(f"{key!r} must be a list of texts, not {shown(value)}")
    return tuple(value)


def flag(row: Row, key: str) -> bool | None:
    """True, false or None."""
    value = row.get(key)
    if value is not None and not isinstance(value, bool):
        raise DataError(f"{key!r} must be true, false or null, not {shown(value)}")
    return value


def count(row: Row, key: str) -> int | None:
    """A whole number from 0, or None."""
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise DataError(f"{key!r} must be a whole number from 0 or null, not {shown(value)}")
    return value


def measure(row: Row, key: str) -> float | None:
    """A number that can be added and squared, or None."""
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{key!r} must be a number or null, not {shown(value)}")
    if not abs(value) <= LARGEST:
        raise DataError(f"{key!r} is {shown(value)}, which no measure comes near")
    return float(value)


def number(value: object, key: str, low: float, high: float) -> float:
    """A number within limits; nan is not."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise DataError(f"{key!r} must be a number from {low:g} to {high:g}, not {shown(value)}")
    return float(value)


def choice(value: object, key: str, table: Mapping[str, Any]) -> Any:
    """What one of a few known texts stands for."""
    if not isinstance(value, str) or value not in table:
        near = did_you_mean(value, table) if isinstance(value, str) else ""
        known = ", ".join(repr(each) for each in table)
        raise DataError(f"{key!r} is {shown(value)}{near}", hint=f"Known: {known} or null")
    return table[value]


def extra_of(row: Row) -> Row:
    """What the row knows besides its own keys."""
    value = row.get("extra")
    if value is not None and not isinstance(value, dict):
        raise DataError(f"'extra' must be an object or null, not {shown(value)}")
    return value or {}


def looked_up(row: Row, key: str) -> Row:
    """The row where it has the key, else its `extra`: what other readers read a field from."""
    return row if row.get(key) is not None else extra_of(row)


def ranks(value: object, key: str = "ranks") -> dict[str, int]:
    """Candidates and their ranks, 1 is best."""
    if not isinstance(value, dict):
        raise DataError(f"{key!r} must be an object of candidates and ranks, not {shown(value)}")
    for cid, rank in value.items():
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise DataError(
                f"the rank of {shown(cid)} must be a whole number from 1, not {shown(rank)}"
            )
    return dict(value)


def one_of(row: Row, key: str, known: Collection[str], hint: str) -> str:
    """One of a few words."""
    value = row.get(key)
    if not isinstance(value, str) or value not in known:
        raise DataError(f"{key!r} is {shown(value)}", hint=hint)
    return value


def as_model(model: type[M], fields: object) -> M:
    """`model` with these fields, or a DataError that says which of them does not fit."""
    try:
        return validated(model, fields)
    except RowError as error:
        raise DataError(error.message, hint=f"Fix: {error.fix}") from None


class Shown(BaseModel):
    """The part of a record that was on the screen, and whose answers they were."""

    model_config = ConfigDict(strict=True)

    prompt: Messages
    candidates: list[Candidate]


def shown_of(row: Row) -> Shown:
    """What a row with texts showed; DataError where a candidate's name comes twice."""
    shown = as_model(Shown, {key: row.get(key) for key in ("prompt", "candidates")})
    if len({candidate.cid for candidate in shown.candidates}) < len(shown.candidates):
        raise DataError("two candidates have the same cid")
    return shown


def conversation_text(value: object, key: str = "prompt") -> str | None:
    """A prompt's text: as it is, or the contents of its messages, one paragraph each."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        return contents(value)
    raise DataError(f"{key!r} must be a text, a list of messages or null, not {shown(value)}")


def contents(messages: Sequence[Mapping[str, Any]]) -> str:
    """The turns' texts, one paragraph each."""
    return "\n\n".join(str(turn.get("content") or "") for turn in messages)
