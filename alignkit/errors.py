"""Define every failure a user can meet, with its exit code.

AlignkitError                 exit 1   the run failed
├── UserError                 exit 2   the user must change something
│   ├── RecipeError           a recipe, an option or a setting
│   ├── DataError             a row or a file of data
│   └── ModelError            a model, an adapter or a tokenizer
├── GateMissed                exit 1   a threshold the user set was not reached
├── TrainingFailed            exit 1   NaN, no weight moved, an invariant broken
├── DiskFull                  exit 1   no space left; the last good checkpoint is intact
└── Interrupted               exit 130 or 143   stopped by a signal, checkpoint saved

Raise where the cause is known, and add `where` (file:line:column) where the place is known. The
command line catches once, prints `where: message. hint` and exits, without a traceback unless
`--debug` is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class AlignkitError(Exception):
    """A failure explained to people: what happened, where, and what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def at(self, where: str) -> AlignkitError:
        """Add the place, for callers that know the file but not the cause; return the error."""
        if self.where is None:
            self.where = where
        return self

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        if not self.hint:
            return f"{place}{self.message}"
        stop = "" if self.message.endswith((".", "?", "!")) else "."
        return f"{place}{self.message}{stop} {self.hint}"


class UserError(AlignkitError):
    """The user must change something before this can work."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe, an option or a setting is wrong."""


class DataError(UserError):
    """A row or a file of data is wrong."""


class ModelError(UserError):
    """A model, an adapter or a tokenizer is missing, broken or does not fit."""


class GateMissed(AlignkitError):
    """A threshold the user asked for was not reached; everything was still written."""


class TrainingFailed(AlignkitError):
    """Training broke an invariant: NaN, no weight moved, the reference drifted."""


class DiskFull(AlignkitError):
    """No space is left; what was sealed before is intact."""


class Interrupted(AlignkitError):
    """A signal asked the run to stop; the checkpoint is saved."""

    def __init__(self, message: str, *, signal_number: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signal_number


class ErrorList(UserError):
    """Several user errors found in one pass, shown one per line."""

    def __init__(self, errors: Iterable[AlignkitError]) -> None:
        self.errors = list(errors)
        super().__init__("\n".join(str(error) for error in self.errors))


LONGEST_WORD = 100  # comparing two words takes time proportional to the product of their lengths


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'beta'?` if a known word is close, else an empty string."""
    if len(word) > LONGEST_WORD:
        return ""
    words = [each for each in known if len(each) <= LONGEST_WORD]
    close = get_close_matches(word, words, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def pick(table: dict[str, T], name: str, *, what: str) -> T:
    """Return `table[name]`; RecipeError with the nearest key and all keys if there is none."""
    try:
        return table[name]
    except KeyError:
        raise RecipeError(
            f"unknown {what} {name!r}{did_you_mean(name, table)}",
            hint=f"Known: {', '.join(sorted(table))}",
        ) from None
