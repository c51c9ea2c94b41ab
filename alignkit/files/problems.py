"""Describe what is wrong with a row, printed as `file:line[:col]: what. Fix: how`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from alignkit.errors import DataError

Level = Literal["error", "warning", "note"]


class RowError(Exception):
    """A row cannot become a record; whoever knows the file adds the place."""

    def __init__(
        self,
        kind: str,
        message: str,
        fix: str,
        *,
        field: str | None = None,
        column: int | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.fix = fix
        self.field = field
        self.column = column

    def within(self, field: str) -> RowError:
        """Prefix the field: `[2].role` within `messages` becomes `messages[2].role`."""
        inner = self.field or ""
        joint = "" if not inner or inner.startswith("[") else "."
        self.field = f"{field}{joint}{inner}"
        return self


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a rule found in one record, before the place is known."""

    kind: str
    message: str
    fix: str
    field: str | None = None
    level: Level = "error"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem with its place; `line` is null when it concerns the whole file."""

    file: str
    line: int | None
    field: str | None
    kind: str
    message: str
    fix: str
    level: Level = "error"
    column: int | None = None

    @property
    def where(self) -> str:
        """`file`, `file:line` or `file:line:column`."""
        places = [self.file, self.line, self.column if self.line else None]
        return ":".join(str(place) for place in places if place is not None)

    def __str__(self) -> str:
        message = self.message if self.message.endswith("?") else f"{self.message}."
        return f"{self.where}: {message}{f' Fix: {self.fix}' if self.fix else ''}"

    def as_json(self) -> dict[str, object]:
        """Return the six keys that `data check --json` prints per problem."""
        keys = ("line", "field", "kind", "message", "fix", "level")
        return {key: getattr(self, key) for key in keys}

    def error(self) -> DataError:
        """Return the problem as an exception."""
        return DataError(
            self.message, where=self.where, hint=f"Fix: {self.fix}" if self.fix else None
        )

    @classmethod
    def from_error(cls, error: RowError, file: str, line: int | None) -> Problem:
        """Add the place to a row error."""
        return cls(
            file, line, error.field, error.kind, error.message, error.fix, "error", error.column
        )

    @classmethod
    def from_finding(cls, finding: Finding, file: str, line: int | None) -> Problem:
        """Add the place to a finding."""
        return cls(
            file, line, finding.field, finding.kind, finding.message, finding.fix, finding.level
        )


def tally(problems: Iterable[Problem]) -> dict[str, int]:
    """Count the problems of each kind, most frequent first."""
    counts: dict[str, int] = {}
    for problem in problems:
        counts[problem.kind] = counts.get(problem.kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
