"""Every problem of a file, row by row and across rows, with its line, its reason and a way out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from alignkit.data.checks.dataset_checks import Across, leaks
from alignkit.data.columns import Columns
from alignkit.data.read import Reading, row_findings, scan
from alignkit.data.records import Record
from alignkit.files.problems import Finding, Problem
from alignkit.files.shards import parts_of

# Problems of one kind kept with their text in one file; all are counted.
MOST_KEPT = 10_000


class Inspector(Protocol):
    """Looks at every record for what this module does not know (tokens, say)."""

    def inspect(self, record: Record) -> Iterable[Finding]:
        """What is wrong with one record."""

    def overall(self) -> Iterable[Finding]:
        """What is wrong with all of them together; starts anew for the next file."""


@dataclass
class FileReport:
    """What was found in one file."""

    file: str
    format: str | None = None
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings and notes are allowed."""
        return not self.levels.get("error")

    def add(self, problem: Problem) -> None:
        """Count a problem, and keep it while there are not too many of its kind."""
        seen = self.counts[problem.kind] = self.counts.get(problem.kind, 0) + 1
        self.levels[problem.level] = self.levels.get(problem.level, 0) + 1
        if seen <= MOST_KEPT:
            self.problems.append(problem)

    def as_json(self) -> dict[str, Any]:
        """The object that `data check --json` prints for a file."""
        return {
            "file": self.file,
            "format": self.format,
            "rows": self.rows,
            "ok": self.ok,
            "problems": [problem.as_json() for problem in self.problems],
        }


def check_file(
    path: str | Path,
    *,
    format: str | None = None,
    columns: Columns | None = None,
    near: bool = True,
    allowed: Collection[str] = (),
    inspectors: Sequence[Inspector] = (),
) -> tuple[FileReport, Across]:
    """The report of one file, and the fingerprints of its records for comparison with others."""
    report, across = FileReport(str(path)), Across(near=near)
    reading = Reading(str(path))

    def tell(problem: Problem) -> None:
        if problem.kind in allowed and problem.level != "note":
            problem = replace(problem, level="note")
        report.add(problem)

    for row, records in scan(path, tell, format=format, columns=columns, reading=reading):
        for record in records:
            across.add(record, row.line)
            for finding in chain(
                row_findings(record, row, reading), *(each.inspect(record) for each in inspectors)
            ):
                tell(Problem.found(finding, row.file or str(path), row.line))
    overall = chain.from_iterable(inspector.overall() for inspector in inspectors)
    found = (Problem.found(finding, str(path), None) for finding in overall)
    for problem in chain(across.problems(str(path)), found):
        tell(problem)
    report.format = reading.format.name if reading.format else None
    report.rows = reading.rows
    report.problems.sort(key=lambda problem: problem.line or 0)
    return report, across


def check_files(
    paths: Sequence[str | Path],
    *,
    held_out: Sequence[str | Path] = (),
    format: str | None = None,
    columns: Columns | None = None,
    near: bool = True,
    allowed: Collection[str] = (),
    inspectors: Sequence[Inspector] = (),
) -> list[FileReport]:
    """Reports of all files, held-out ones last; prompts that stand on both sides are leaks."""
    options: dict[str, Any] = {
        "format": format, "columns": columns, "near": near, "allowed": allowed,
        "inspectors": inspectors
    }  # fmt: skip
    checked = [check_file(part, **options) for path in paths for part in _parts(path)]
    tests = [check_file(part, **options) for path in held_out for part in _parts(path)]
    for report, across in checked:
        for test_report, test_across in tests:
            for problem in leaks(across, report.file, test_across, test_report.file):
                kept = replace(problem, level="note") if problem.kind in allowed else problem
                report.add(kept)
        report.problems.sort(key=lambda problem: problem.line or 0)
    return [report for report, _ in [*checked, *tests]]


def _parts(path: str | Path) -> Sequence[str | Path]:
    """The files of a folder, each with lines of its own; a file itself."""
    return parts_of(str(path)) or [path]


def summary(report: FileReport) -> str:
    """One line for people: format, rows, and how many problems of each kind."""
    kinds = ", ".join(f"{kind} {count}" for kind, count in _by_count(report.counts))
    form = report.format or "unknown format"
    return f"{report.file}: {form}, {report.rows:,} rows, {kinds or 'no problems'}"


def _by_count(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
