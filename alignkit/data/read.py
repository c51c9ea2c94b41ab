"""Read files into records: detect the format, read row by row, keep or refuse bad rows.

Everything streams, so that memory does not grow with the file; the `load_…` functions return lists.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from alignkit.data.columns import Columns, resolve
from alignkit.data.formats import Format, detect, format_named, prompt_columns
from alignkit.data.formats.chat import is_text
from alignkit.data.formats.fields import Fields, missing
from alignkit.data.formats.template_keys import KEYS, read_reasoning, read_template_keys
from alignkit.data.grades import demonstration_of, is_graded, rankings_from_grades
from alignkit.data.pairs import Pairs, Weight, expand, ranking_of, rankings_from_votes
from alignkit.data.records import (
    KINDS,
    Candidates,
    Demonstration,
    Event,
    Label,
    Preference,
    Prompt,
    Ranking,
    Record,
    template_keys,
)
from alignkit.data.rules import findings
from alignkit.data.unread_columns import UnreadColumns
from alignkit.data.voting import ballot_of, line_of
from alignkit.data.wrong_kind import wrong_kind
from alignkit.errors import DataError, ErrorList
from alignkit.files.json_text import decode_exactly
from alignkit.files.problems import Finding, Problem, RowError, tally
from alignkit.files.rows import Report, Row, read_rows
from alignkit.files.validated import validated

OnBadRow = Literal["error", "drop"]
R = TypeVar("R", bound=Record)

LOOK_AHEAD = 20
NO_ROW = ("not-jsonl", "empty")
MOST_ERRORS_SHOWN = 20


NOTHING_COMPARED = Finding(
    "unranked",
    "nothing in this row is compared: it gives no record",
    "remove the row unless that is intended",
    level="warning",
)


@dataclass(slots=True)
class Reading:
    """State of reading a file: `format` is known at the first row, `rows` at the end."""

    file: str
    format: Format | None = None
    rows: int = 0
    first_shape: tuple[str, int] | None = None


@dataclass
class Malformed:
    """Passes problems on and counts the rows they concern."""

    report: Report
    count: int = 0

    def __call__(self, problem: Problem) -> None:
        """Count and report one problem."""
        is_row = problem.line is not None and problem.kind not in NO_ROW
        self.count += is_row and problem.level == "error"
        self.report(problem)


def scan(
    path: str | Path,
    report: Report,
    *,
    format: str | None = None,
    columns: Columns | None = None,
    reading: Reading | None = None,
) -> Iterator[tuple[Row, list[Record]]]:
    """Yield (row, its records) per well-formed row; report what is wrong with the others."""
    file, named = resolve(str(path))
    columns = columns or named
    reading = reading or Reading(str(path))
    malformed = Malformed(report)
    rows = read_rows(file, malformed)
    if columns:
        rows = (columns.applied(row) for row in rows)
    ahead = list(islice(rows, LOOK_AHEAD))
    reading.format = _format(format, ahead, file, report)
    if reading.format is None:
        reading.rows = len(ahead) + malformed.count
        return
    if reading.format.gather is not None:
        rows, ahead = reading.format.gather(chain(ahead, rows)), []
        reading.format = format_named(reading.format.gathered)
    name = Path(file).name
    good, unread_columns = 0, UnreadColumns(reading.format)
    for row in chain(ahead, rows):
        good += 1
        place = row.file or file
        try:
            part = Path(row.file).name if row.file else name
            records = records_of(row, reading.format, part)
        except RowError as error:
            report(Problem.from_error(error, place, row.line))
            continue
        if not records:
            report(Problem.from_finding(NOTHING_COMPARED, place, row.line))
        unread_columns.add(row.value, records)
        yield row, records
    reading.rows = good + malformed.count
    for finding in unread_columns.findings():
        report(Problem.from_finding(finding, file, None))


def _format(name: str | None, ahead: list[Row], file: str, report: Report) -> Format | None:
    if name is not None:
        return format_named(name)
    if not ahead:
        return None
    try:
        return detect(row.value for row in ahead)
    except RowError as error:
        report(Problem.from_error(error, ahead[0].file or file, ahead[0].line))
        return None


def records_of(row: Row, form: Format, file: str) -> list[Record]:
    """Return the records of one row: a single one, unless several annotators share the row."""
    value = row.value
    if not form.keys <= value.keys():
        raise missing(value, form.keys)
    read = form.read(value)
    source = {"format": form.name, "file": file, "row": row.number}
    if isinstance(read, dict):
        prompt_columns.join(read, value, form)
        return [_record(read, form, row, source, f"{file}:{row.number}")]
    return [
        _record(fields, form, row, source, f"{file}:{row.number}.{position}")
        for position, fields in enumerate(read)
    ]


def _record(
    fields: Fields, form: Format, row: Row, source: dict[str, Any], generated_id: str
) -> Record:
    if form.name == "alignkit":
        kind = fields["kind"]
        if not fields.get("source"):
            fields["source"] = source
        if isinstance(fields.get("extra"), dict) and fields["extra"]:
            fields["extra"] = _exact(row, "extra", fields["extra"])
    else:
        kind = form.kind
        fields["source"] = source
        unknown = unread(row.value, form)
        if not KEYS.isdisjoint(unknown):
            unknown -= _template_keys(fields, row, unknown, KINDS[kind])
        if unknown:
            fields["extra"] = _extra(row, unknown) | fields.get("extra", {})
            given = fields["extra"].get("id")
            if isinstance(given, str) and given:
                fields["id"] = fields["extra"].pop("id")
    if not fields.get("id"):
        fields["id"] = generated_id
    return validated(KINDS[kind], fields)


def _template_keys(
    fields: Fields, row: Row, unknown: Collection[str], kind: type[Record]
) -> set[str]:
    """Set the fields that templates read besides messages; return the keys they came from."""
    values, taken = read_template_keys(row.value, unknown, kind)
    fields.update(values)
    side = COMPLETIONS.get(kind)
    if side and fields[side] and fields[side][-1]["role"] == "assistant":
        turn = dict(fields[side][-1])
        thought = read_reasoning(row.value, set(unknown) - taken, turn)
        fields[side] = [*fields[side][:-1], turn]
        taken |= thought
    return taken


# The field with a record's one completion, whose reasoning a column may hold.
COMPLETIONS: dict[type[Record], str] = {Demonstration: "messages", Label: "completion"}


def unread(value: dict[str, Any], form: Format) -> set[str]:
    """Return the columns that neither the format nor the prompt reads."""
    unknown = value.keys() - form.own(value)
    return unknown.difference(prompt_columns.columns(value, form)) if unknown else unknown


def _extra(row: Row, unknown: Collection[str]) -> dict[str, Any]:
    """Return the unread keys in their order, with integers beyond 64 bits intact."""
    value = row.value
    extra = {key: value[key] for key in value if key in unknown}
    return {key: _exact(row, key, inner) for key, inner in extra.items()}


def _exact(row: Row, key: str, value: Any) -> Any:
    """Return the value, decoded again if a number in it is too large for the fast decoder."""
    return exact_value(row)[key] if _has_huge_float(value) else value


def exact_value(row: Row) -> dict[str, Any]:
    """Return the row's object with integers beyond 64 bits intact."""
    if row.raw is None or not _has_huge_float(row.value):
        return row.value
    exact: dict[str, Any] = decode_exactly(row.raw)
    return exact


def _has_huge_float(value: Any) -> bool:
    if isinstance(value, float):
        return abs(value) >= 2**63
    if isinstance(value, dict):
        return any(_has_huge_float(inner) for inner in value.values())
    return isinstance(value, list) and any(_has_huge_float(inner) for inner in value)


# --- records with rules -------------------------------------------------------------------------


def read_records(
    path: str | Path,
    *,
    format: str | None = None,
    kinds: Collection[str] | None = None,
    on_bad_row: OnBadRow = "error",
    on_problem: Callable[[Problem], None] | None = None,
    columns: Columns | None = None,
    rules: bool = True,
    reading: Reading | None = None,
) -> Iterator[Record]:
    """Stream the records of a file.

    A bad row raises a DataError, or with `on_bad_row="drop"` is skipped and passed to
    `on_problem`; warnings are passed on too. `rules=False` accepts every well-formed row.
    """
    warn = on_problem or _ignore
    reading = reading or Reading(str(path))

    def bad(problem: Problem) -> None:
        if problem.level == "error" and on_bad_row == "error":
            raise problem.error()
        warn(problem)

    for row, records in scan(path, bad, format=format, columns=columns, reading=reading):
        for record in records:
            if kinds is not None and record.kind not in kinds:
                raise wrong_kind(record.kind, kinds, str(row.file or path), row.line)
            if not rules or all(
                [_passes(finding, path, row, bad) for finding in row_findings(record, row, reading)]
            ):
                yield record


def row_findings(record: Record, row: Row, reading: Reading) -> Iterable[Finding]:
    """Yield what the rules find in a record, and whether its row is shaped unlike the first."""
    yield from findings(record, row.raw)
    sample = reading.format.sample if reading.format else None
    if sample is None or sample not in row.value:
        return
    shape = "plain" if is_text(row.value[sample]) else "chat"
    if reading.first_shape is None:
        reading.first_shape = (shape, row.line)
    first, line = reading.first_shape
    if shape != first:
        yield Finding(
            "mixed",
            f"line {line} is {first}, line {row.line} is {shape}",
            "write all rows the same way: alignkit data convert",
            sample,
        )


def _passes(finding: Any, path: str | Path, row: Row, bad: Report) -> bool:
    bad(Problem.from_finding(finding, str(row.file or path), row.line))
    return bool(finding.level != "error")


def _ignore(problem: Problem) -> None:
    """Ignore warnings by default, but always report a row that is lost."""
    if problem.kind == "torn":
        logging.getLogger(__name__).warning("%s", problem)


@dataclass(frozen=True)
class Loaded(Generic[R]):
    """Records in memory, the format they came in, and what was dropped or doubtful."""

    records: list[R]
    format: str
    problems: list[Problem] = field(default_factory=list)


class Stream(Generic[R]):
    """The records of a file, one at a time, so that memory does not grow with the file.

    Rows are read and checked on demand. At the end of the file all bad rows are reported together,
    and a file without a good row is an error; `format` and `problems` are then known.
    """

    def __init__(
        self,
        path: str | Path,
        kinds: Collection[str],
        convert: Callable[[Iterator[Record]], Iterator[R]],
        *,
        format: str | None = None,
        on_bad_row: OnBadRow = "error",
        columns: Columns | None = None,
    ) -> None:
        self.path = path
        self.format = format or ""
        self.problems: list[Problem] = []
        self._kinds = kinds
        self._convert = convert
        self._named = format
        self._on_bad_row = on_bad_row
        self._columns = columns

    def __iter__(self) -> Iterator[R]:
        return self._convert(self._records())

    @property
    def dropped(self) -> list[Problem]:
        """Return the problems that cost a row, by line."""
        return [problem for problem in self.problems if problem.level == "error"]

    def again(self) -> Iterator[Record]:
        """Read the same good records again from the start, without reporting problems."""
        return read_records(
            self.path,
            format=self._named,
            kinds=self._kinds,
            on_bad_row="drop",
            columns=self._columns,
        )

    def load(self) -> Loaded[R]:
        """Load all records into memory."""
        return Loaded(list(self), self.format, self.problems)

    def _records(self) -> Iterator[Record]:
        problems: list[Problem] = []
        reading = Reading(str(self.path))
        good = 0
        for record in read_records(
            self.path,
            format=self._named,
            kinds=self._kinds,
            on_bad_row="drop",
            on_problem=problems.append,
            columns=self._columns,
            reading=reading,
        ):
            good += 1
            yield record
        self.format = reading.format.name if reading.format else ""
        self.problems = sorted(problems, key=lambda problem: problem.line or 0)
        errors = self.dropped
        if errors and (self._on_bad_row == "error" or reading.format is None):
            raise _all_of(errors)
        if not good:
            reasons = ", ".join(f"{kind} {count}" for kind, count in tally(errors).items())
            raise DataError(
                f"0 of {reading.rows} rows remain; reasons: {reasons or 'no rows'}",
                where=str(self.path),
                hint=f"Fix: run alignkit data check {self.path}",
            )


def load_records(path: str | Path, kinds: Collection[str], **options: Any) -> Loaded[Record]:
    """Load all records; report all bad rows together; an empty result is an error."""
    return Stream(path, kinds, iter, **options).load()


def _all_of(errors: list[Problem]) -> ErrorList | DataError:
    if len(errors) == 1:
        return errors[0].error()
    shown: list[Any] = [problem.error() for problem in errors[:MOST_ERRORS_SHOWN]]
    if len(errors) > MOST_ERRORS_SHOWN:
        rest = len(errors) - MOST_ERRORS_SHOWN
        shown.append(
            DataError(
                f"and {rest} more",
                where=errors[0].file,
                hint=f"Fix: run alignkit data check {errors[0].file}",
            )
        )
    return ErrorList(shown)


def stream_demonstrations(path: str | Path, **options: Any) -> Stream[Demonstration]:
    """Stream the demonstrations of a file; a single graded completion counts as one."""

    def convert(records: Iterator[Record]) -> Iterator[Demonstration]:
        for record in records:
            if isinstance(record, Demonstration):
                yield record
            elif isinstance(record, Candidates):
                demonstration = demonstration_of(record)
                if demonstration is None:
                    raise wrong_kind(record.kind, ("demonstration",), str(path), line_of(record))
                yield demonstration

    return Stream(path, ("demonstration", "candidates"), convert, **options)


def load_demonstrations(path: str | Path, **options: Any) -> Loaded[Demonstration]:
    """Load the demonstrations of a file."""
    return stream_demonstrations(path, **options).load()


def stream_prompts(path: str | Path, **options: Any) -> Stream[Prompt]:
    """Stream the prompts of a file of any kind; from other kinds each distinct prompt once."""
    kinds = {"prompt", "candidates", "ranking", "preference", "demonstration", "label"}
    return Stream(path, kinds, _prompts, **options)


def _prompts(records: Iterator[Record]) -> Iterator[Prompt]:
    seen: set[str] = set()
    for record in records:
        if isinstance(record, Prompt):
            yield record
            continue
        prompt = prompt_of(record)
        if prompt is not None and (key := prompt.model_dump_json(include={"prompt"})) not in seen:
            seen.add(key)
            yield prompt


def load_prompts(path: str | Path, **options: Any) -> Loaded[Prompt]:
    """Load the prompts of a file of any kind; from other kinds each distinct prompt once."""
    return stream_prompts(path, **options).load()


def prompt_of(record: Record) -> Prompt | None:
    """Return the prompt a record was made for; None if it has none."""
    if isinstance(record, Demonstration):
        end = len(record.messages)
        while end and record.messages[end - 1].role in ("assistant", "tool"):
            end -= 1
        messages = record.messages[:end]
    elif isinstance(record, Prompt):
        return record
    else:
        messages = getattr(record, "prompt", None) or []
    if not isinstance(messages, list) or not messages:
        return None
    return Prompt(id=record.id, prompt=messages, source=record.source, **template_keys(record))


def stream_rankings(path: str | Path, **options: Any) -> Stream[Ranking]:
    """Stream the rankings of a file; preferences become rankings of two, votes rankings."""

    def convert(records: Iterator[Record]) -> Iterator[Ranking]:
        for record in _without_replaced(stream, _votes_last(path, records)):
            if isinstance(record, Ranking):
                yield record
            elif isinstance(record, Preference):
                yield ranking_of(record)

    stream = Stream(path, RANKED, convert, **options)
    return stream


def load_rankings(path: str | Path, **options: Any) -> Loaded[Ranking]:
    """Load the rankings of a file."""
    return stream_rankings(path, **options).load()


def stream_preferences(
    path: str | Path, *, pairs: Pairs = "all", weight: Weight = "group", **options: Any
) -> Stream[Preference]:
    """Stream the preferences of a file; rankings and votes are expanded, ties give none."""

    def convert(records: Iterator[Record]) -> Iterator[Preference]:
        for record in _without_replaced(stream, _votes_last(path, records)):
            if isinstance(record, Ranking):
                yield from expand(record, pairs=pairs, weight=weight)
            elif isinstance(record, Preference) and not record.tie:
                yield record

    stream = Stream(path, RANKED, convert, **options)
    return stream


def load_preferences(path: str | Path, **options: Any) -> Loaded[Preference]:
    """Load the preferences of a file."""
    return stream_preferences(path, **options).load()


RANKED = ("ranking", "preference", "event", "candidates")


def _votes_last(path: str | Path, records: Iterator[Record]) -> Iterator[Record]:
    """Yield the records, followed by rankings from the standing votes among them.

    A later event may undo an earlier one, so events are held until the end of the file. A file of
    events without a vote is an error.
    """
    events: list[Event] = []
    others = 0
    for record in graded_last(path, records):
        if isinstance(record, Event):
            events.append(record)
        else:
            others += 1
            yield record
    voted = rankings_from_votes(events)
    if events and not voted and not others:
        raise DataError("no votes: only skips, flags and undone votes", where=str(path))
    yield from voted


def _without_replaced(stream: Stream[Any], records: Iterator[Record]) -> Iterator[Record]:
    """Yield the records but not votes that their annotator replaced later; report those.

    The last vote is known only at the end, so a file that names annotators is read twice.
    """
    last: dict[bytes, int] | None = None
    replaced = []
    for number, record in enumerate(records):
        ballot = ballot_of(record)
        if ballot is None:
            yield record
            continue
        if last is None:
            again = _votes_last(stream.path, stream.again())
            last = {key: place for place, vote in enumerate(again) if (key := ballot_of(vote))}
        if last[ballot] == number:
            yield record
        else:
            replaced.append(
                Problem(
                    str(stream.path),
                    line_of(record),
                    None,
                    "contradiction",
                    "the same annotator voted on these completions again: the last vote counts",
                    "remove the vote that is wrong",
                    "warning",
                )
            )
    stream.problems += replaced


def graded_last(path: str | Path, records: Iterable[Record]) -> Iterator[Record]:
    """Yield the records, followed by rankings from completions that were graded one by one.

    The next completion of a prompt may come anywhere, so graded ones are held until the end of the
    file. Raises DataError for candidates without grades, and if no prompt has two graded
    completions.
    """
    graded: list[Candidates] = []
    for record in records:
        if not isinstance(record, Candidates):
            yield record
        elif is_graded(record):
            graded.append(record)
        else:
            raise wrong_kind(record.kind, RANKED, str(path), line_of(record))
    compared = rankings_from_grades(graded)
    if graded and not compared:
        raise DataError(
            f"{len(graded)} graded completions, but no prompt has two: nothing is compared",
            where=str(path),
            hint="Fix: add rows with the same prompt, or train with sft, which takes each one",
        )
    yield from compared


def load_candidates(path: str | Path, **options: Any) -> Loaded[Candidates]:
    """Load the candidates of a file."""
    loaded = load_records(path, {"candidates"}, **options)
    records = [record for record in loaded.records if isinstance(record, Candidates)]
    return Loaded(records, loaded.format, loaded.problems)
