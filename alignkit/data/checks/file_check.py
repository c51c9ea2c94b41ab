"""Check a file row by row and across rows; report each problem with line, reason and fix."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from alignkit.data.checks.dataset_checks import FilePrints, leaks
from alignkit.data.columns import Columns
from alignkit.data.read import Reading, row_findings, scan
from alignkit.data.records import Record
from alignkit.files.problems import Finding, Problem
from alignkit.files.shards import parts_of

# Problems of one kind kept with their text per file; all are counted.
MOST_KEPT = 10_000


class Inspector(Protocol):
    """Looks at every record for what this module does not know, such as tokens."""

    def inspect(self, record: Record) -> Iterable[Finding]:
        """Yield what is wrong with one record."""

    def overall(self) -> Iterable[Finding]:
        """Yield what is wrong with all of them together; reset for the next file."""


@dataclass
class FileReport:
    """The problems of one file."""

    file: str
    format: str | None = None
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Return whether there is no error; warnings and notes are allowed."""
        return not self.levels.get("error")

    def add(self, problem: Problem) -> None:
        """Count a problem, and keep it unless there are too many of its kind."""
        seen = self.counts[problem.kind] = self.counts.get(problem.kind, 0) + 1
        self.levels[problem.level] = self.levels.get(problem.level, 0) + 1
        if seen <= MOST_KEPT:
            self.problems.append(problem)

    def as_json(self) -> dict[str, Any]:
        """Return the object that `data check --json` prints per file."""
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
) -> tuple[FileReport, FilePrints]:
    """Report on one file; also return its records' fingerprints for comparison with others."""
    report, prints = FileReport(str(path)), FilePrints(near=near)
    reading = Reading(str(path))

    def add(problem: Problem) -> None:
        if problem.kind in allowed and problem.level != "note":
            problem = replace(problem, level="note")
        report.add(problem)

    for row, records in scan(path, add, format=format, columns=columns, reading=reading):
        for record in records:
            prints.add(record, row.line)
            for finding in chain(
                row_findings(record, row, reading), *(each.inspect(record) for each in inspectors)
            ):
                add(Problem.from_finding(finding, row.file or str(path), row.line))
    overall = chain.from_iterable(inspector.overall() for inspector in inspectors)
    of_file = (Problem.from_finding(finding, str(path), None) for finding in overall)
    for problem in chain(prints.problems(str(path)), of_file):
        add(problem)
    report.format = reading.format.name if reading.format else None
    report.rows = reading.rows
    report.problems.sort(key=lambda problem: problem.line or 0)
    return report, prints


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
    """Report on all files, held-out ones last; a prompt in both is a leak."""
    options: dict[str, Any] = {
        "format": format, "columns": columns, "near": near, "allowed": allowed,
        "inspectors": inspectors
    }  # fmt: skip
    checked = [check_file(part, **options) for path in paths for part in _parts(path)]
    tests = [check_file(part, **options) for path in held_out for part in _parts(path)]
    for report, prints in checked:
        for test_report, test_prints in tests:
            for problem in leaks(prints, report.file, test_prints, test_report.file):
                report.add(replace(problem, level="note") if problem.kind in allowed else problem)
        report.problems.sort(key=lambda problem: problem.line or 0)
    return [report for report, _ in [*checked, *tests]]


def _parts(path: str | Path) -> Sequence[str | Path]:
    """Return the files of a folder, each with lines of its own, or the file itself."""
    return parts_of(str(path)) or [path]


def summary(report: FileReport) -> str:
    """Summarize in one line: format, rows, and the number of problems of each kind."""
    kinds = ", ".join(f"{kind} {count}" for kind, count in _by_count(report.counts))
    form = report.format or "unknown format"
    return f"{report.file}: {form}, {report.rows:,} rows, {kinds or 'no problems'}"


def _by_count(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
