"""Read the rows of judged files and check their fields one by one.

A field of the wrong type or value raises a DataError without a place; the caller adds the line.
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
# Larger than any length, score or token count; its squares and sums stay finite.
LARGEST = 1e15


class RowFile:
    """One input file: iterate it once for (line, row), then read `rows` and `sha256`.

    A bad line raises DataError with its place. A last line that a power cut left unfinished is
    skipped with a warning.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.rows = 0
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Return the digest of the bytes read so far: of the whole file after the iteration."""
        return self._digest.hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of a report's list of inputs."""
        return {"path": self.path, "sha256": self.sha256, "rows": self.rows}

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        for row in read_rows(self.path, _report, heard=self._digest.update):
            self.rows += 1
            yield row.line, row.value
        if not self.rows:
            raise DataError("contains no complete row", where=self.path)


def _report(problem: Problem) -> None:
    if problem.level == "error":
        raise problem.error()
    if problem.level == "warning":
        logger.warning("%s", problem)


# --- fields of a row -----------------------------------------------------------------------------


def shown(value: object) -> str:
    """Format a value for a message: shortened, and containers by their type."""
    return type_name(value) if isinstance(value, dict | list) else f"{value!r:.60}"


def need(row: Row, key: str) -> Any:
    """Return the value of a required key."""
    try:
        return row[key]
    except KeyError:
        raise DataError(f"{key!r} is missing{did_you_mean(key, row)}") from None


def name(row: Row, key: str) -> str:
    """Return a non-empty text, or an integer as text."""
    value = need(row, key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _non_empty(value, key)


def word(row: Row, key: str) -> str:
    """Return a non-empty text."""
    return _non_empty(row.get(key), key)


def _non_empty(value: object, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise DataError(f"{key!r} must be non-empty text, not {shown(value)}")
    return value


def text(row: Row, key: str) -> str | None:
    """Return a text or None."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{key!r} must be text or null, not {shown(value)}")
    return value


def label(row: Row, key: str) -> str | None:
    """Return a text, number or boolean as text; None if null or missing."""
    value = row.get(key)
    if isinstance(value, dict | list):
        raise DataError(f"{key!r} must be text or a number, not {shown(value)}")
    return None if value is None else str(value)


def texts(row: Row, key: str) -> tuple[str, ...]:
    """Return a list of texts; empty if null or missing."""
    value = row.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise DataError(f"{key!r} must be a list of texts, not {shown(value)}")
    return tuple(value)


def flag(row: Row, key: str) -> bool | None:
    """Return true, false or None."""
    value = row.get(key)
    if value is not None and not isinstance(value, bool):
        raise DataError(f"{key!r} must be true, false or null, not {shown(value)}")
    return value


def count(row: Row, key: str) -> int | None:
    """Return a non-negative integer or None."""
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise DataError(f"{key!r} must be a non-negative integer or null, not {shown(value)}")
    return value


def measure(row: Row, key: str) -> float | None:
    """Return a number that can be added and squared, or None."""
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{key!r} must be a number or null, not {shown(value)}")
    if not abs(value) <= LARGEST:
        raise DataError(f"{key!r} is {shown(value)}, beyond any plausible measurement")
    return float(value)


def number(value: object, key: str, low: float, high: float) -> float:
    """Return a number within limits; nan is refused."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise DataError(f"{key!r} must be a number from {low:g} to {high:g}, not {shown(value)}")
    return float(value)


def choice(value: object, key: str, table: Mapping[str, Any]) -> Any:
    """Look up a text in a table of allowed values."""
    if not isinstance(value, str) or value not in table:
        near = did_you_mean(value, table) if isinstance(value, str) else ""
        allowed = ", ".join(repr(each) for each in table)
        raise DataError(f"{key!r} is {shown(value)}{near}", hint=f"Use {allowed} or null")
    return table[value]


def extra_of(row: Row) -> Row:
    """Return the row's `extra` object; empty if null or missing."""
    value = row.get("extra")
    if value is not None and not isinstance(value, dict):
        raise DataError(f"'extra' must be an object or null, not {shown(value)}")
    return value or {}


def looked_up(row: Row, key: str) -> Row:
    """Return the row if it has the key, else its `extra`: pass the result to another reader."""
    return row if row.get(key) is not None else extra_of(row)


def ranks(value: object, key: str = "ranks") -> dict[str, int]:
    """Return ranks by candidate, 1 is best."""
    if not isinstance(value, dict):
        raise DataError(f"{key!r} must be an object of ranks by candidate, not {shown(value)}")
    for cid, rank in value.items():
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise DataError(
                f"the rank of {shown(cid)} must be a positive integer, not {shown(rank)}"
            )
    return dict(value)


def one_of(row: Row, key: str, allowed: Collection[str], hint: str) -> str:
    """Return one of a few allowed words."""
    value = row.get(key)
    if not isinstance(value, str) or value not in allowed:
        raise DataError(f"{key!r} is {shown(value)}", hint=hint)
    return value


def as_model(model: type[M], fields: object) -> M:
    """Validate fields as `model`; DataError names the one that does not fit."""
    try:
        return validated(model, fields)
    except RowError as error:
        raise DataError(error.message, hint=f"Fix: {error.fix}") from None


class Shown(BaseModel):
    """The part of a record that was on the screen, and the models of its completions."""

    model_config = ConfigDict(strict=True)

    prompt: Messages
    candidates: list[Candidate]


def shown_of(row: Row) -> Shown:
    """Return what a row with texts showed; DataError if two candidates share a cid."""
    shown = as_model(Shown, {key: row.get(key) for key in ("prompt", "candidates")})
    if len({candidate.cid for candidate in shown.candidates}) < len(shown.candidates):
        raise DataError("two candidates have the same cid")
    return shown


def conversation_text(value: object, key: str = "prompt") -> str | None:
    """Return a prompt as text: as it is, or the contents of its messages, one paragraph each."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        return contents(value)
    raise DataError(f"{key!r} must be text, a list of messages or null, not {shown(value)}")


def contents(messages: Sequence[Mapping[str, Any]]) -> str:
    """Join the texts of the turns, one paragraph each."""
    return "\n\n".join(str(turn.get("content") or "") for turn in messages)
