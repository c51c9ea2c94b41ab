"""Files to records: find the format, read row by row, keep or refuse what is bad.

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
from alignkit.data.due import wrong_kind
from alignkit.data.formats import Format, beside, detect, format_named
from alignkit.data.formats.chat import is_text
from alignkit.data.formats.shape import Fields, missing
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
from alignkit.data.unread_columns import Unread
from alignkit.data.voting import ballot_of, line_of
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
    "nothing in this row is compared: no record of it",
    "remove the row if that is not meant",
    level="warning",
)


@dataclass(slots=True)
class Reading:
    """A file being read: `format` is known with the first row, `rows` at the end of the file."""

    file: str
    format: Format | None = None
    rows: int = 0
    first_shape: tuple[str, int] | None = None


@dataclass
class Malformed:
    """Passes problems on and counts the rows they stand for."""

    report: Report
    count: int = 0

    def __call__(self, problem: Problem) -> None:
        """One problem of reading rows."""
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
    """(row, its records) of every well-formed row; what is wrong with the others is reported."""
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
    good, left = 0, Unread(reading.format)
    for row in chain(ahead, rows):
        good += 1
        place = row.file or file
        try:
            part = Path(row.file).name if row.file else name
            records = records_of(row, reading.format, part)
        except RowError as error:
            report(Problem.of(error, place, row.line))
            continue
        if not records:
            report(Problem.found(NOTHING_COMPARED, place, row.line))
        left.add(row.value, records)
        yield row, records
    reading.rows = good + malformed.count
    for finding in left.findings():
        report(Problem.found(finding, file, None))


def _format(name: str | None, ahead: list[Row], file: str, report: Report) -> Format | None:
    if name is not None:
        return format_named(name)
    if not ahead:
        return None
    try:
        return detect(row.value for row in ahead)
    except RowError as error:
        report(Problem.of(error, ahead[0].file or file, ahead[0].line))
        return None


def records_of(row: Row, form: Format, file: str) -> list[Record]:
    """The records of one row: one, unless several annotators share the row."""
    value = row.value
    if not form.keys <= value.keys():
        raise missing(value, form.keys)
    read = form.read(value)
    source = {"format": form.name, "file": file, "row": row.number}
    if isinstance(read, dict):
        beside.join(read, value, form)
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
    """Give the fields what templates read besides messages; the keys it was read from."""
    found, taken = read_template_keys(row.value, unknown, kind)
    fields.update(found)
    side = ANSWERS.get(kind)
    if side and fields[side] and fields[side][-1]["role"] == "assistant":
        turn = dict(fields[side][-1])
        thought = read_reasoning(row.value, set(unknown) - taken, turn)
        fields[side] = [*fields[side][:-1], turn]
        taken |= thought
    return taken


# Where the one answer of a record stands, of which a column may tell the reasoning.
ANSWERS: dict[type[Record], str] = {Demonstration: "messages", Label: "completion"}


def unread(value: dict[str, Any], form: Format) -> set[str]:
    """The columns of a row that neither its format nor the question beside them reads."""
    unknown = value.keys() - form.own(value)
    return unknown.difference(beside.columns(value, form)) if unknown else unknown


def _extra(row: Row, unknown: Collection[str]) -> dict[str, Any]:
    """The keys nobody asked for, in their order, integers beyond 64 bits intact."""
    value = row.value
    extra = {key: value[key] for key in value if key in unknown}
    return {key: _exact(row, key, inner) for key, inner in extra.items()}


def _exact(row: Row, key: str, value: Any) -> Any:
    """The value, read anew when a number in it is too large for the fast decoder."""
    return exact_value(row)[key] if _has_huge_float(value) else value


def exact_value(row: Row) -> dict[str, Any]:
    """The row's object with integers beyond 64 bits intact."""
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
    """The records of a file, streaming.

    A bad row raises a DataError, or with `on_bad_row="drop"` is left out and told to `on_problem`;
    warnings are told too. `rules=False` accepts every well-formed row.
    """
    tell = on_problem or _ignore
    reading = reading or Reading(str(path))

    def bad(problem: Problem) -> None:
        if problem.level == "error" and on_bad_row == "error":
            raise problem.error()
        tell(problem)

    for row, records in scan(path, bad, format=format, columns=columns, reading=reading):
        for record in records:
            if kinds is not None and record.kind not in kinds:
                raise wrong_kind(record.kind, kinds, str(row.file or path), row.line)
            if not rules or all(
                [_passes(finding, path, row, bad) for finding in row_findings(record, row, reading)]
            ):
                yield record


def row_findings(record: Record, row: Row, reading: Reading) -> Iterable[Finding]:
    """What the rules find in a record, and whether its row is shaped as the first one was."""
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
            "write all rows one way: alignkit data convert",
            sample,
        )


def _passes(finding: Any, path: str | Path, row: Row, bad: Report) -> bool:
    bad(Problem.found(finding, str(row.file or path), row.line))
    return bool(finding.level != "error")


def _ignore(problem: Problem) -> None:
    """Warnings nobody asked for; but a row that is lost is always told."""
    if problem.kind == "torn":
        logging.getLogger(__name__).warning("%s", problem)


@dataclass(frozen=True)
class Loaded(Generic[R]):
    """Records in memory, the format they came in, and what was left out or doubtful."""

    records: list[R]
    format: str
    problems: list[Problem] = field(default_factory=list)


class Stream(Generic[R]):
    """The records of a file, one at a time: memory does not grow with the file.

    Rows are read and checked as they are asked for; at the end of the file every bad row is named
    at once, and a file without a good one is an error. `format` and `problems` are known then.
    """

    def __init__(
        self,
        path: str | Path,
        kinds: Collection[str],
        made: Callable[[Iterator[Record]], Iterator[R]],
        *,
        format: str | None = None,
        on_bad_row: OnBadRow = "error",
        columns: Columns | None = None,
    ) -> None:
        self.path = path
        self.format = format or ""
        self.problems: list[Problem] = []
        self._kinds = kinds
        self._made = made
        self._named = format
        self._on_bad_row = on_bad_row
        self._columns = columns

    def __iter__(self) -> Iterator[R]:
        return self._made(self._records())

    @property
    def dropped(self) -> list[Problem]:
        """The problems that cost a row, by line."""
        return [problem for problem in self.problems if problem.level == "error"]

    def again(self) -> Iterator[Record]:
        """The same good records from the start, nothing told."""
        return read_records(
            self.path,
            format=self._named,
            kinds=self._kinds,
            on_bad_row="drop",
            columns=self._columns,
        )

    def load(self) -> Loaded[R]:
        """All of them in memory."""
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
                f"0 of {reading.rows} rows left; reasons: {reasons or 'no rows'}",
                where=str(self.path),
                hint=f"Fix: see alignkit data check {self.path}",
            )


def load_records(path: str | Path, kinds: Collection[str], **options: Any) -> Loaded[Record]:
    """All records of a file; every bad row is named at once, and an empty result is an error."""
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
                hint=f"Fix: see alignkit data check {errors[0].file}",
            )
        )
    return ErrorList(shown)


def stream_demonstrations(path: str | Path, **options: Any) -> Stream[Demonstration]:
    """The demonstrations of a file; one graded answer is one, whatever its grade."""

    def made(records: Iterator[Record]) -> Iterator[Demonstration]:
        for record in records:
            if isinstance(record, Demonstration):
                yield record
            elif isinstance(record, Candidates):
                shown = demonstration_of(record)
                if shown is None:
                    raise wrong_kind(record.kind, ("demonstration",), str(path), line_of(record))
                yield shown

    return Stream(path, ("demonstration", "candidates"), made, **options)


def load_demonstrations(path: str | Path, **options: Any) -> Loaded[Demonstration]:
    """The demonstrations of a file, in memory."""
    return stream_demonstrations(path, **options).load()


def stream_prompts(path: str | Path, **options: Any) -> Stream[Prompt]:
    """The prompts of a file of any kind; from other kinds each distinct prompt once."""
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
    """The prompts of a file of any kind, in memory; from other kinds each distinct prompt once."""
    return stream_prompts(path, **options).load()


def prompt_of(record: Record) -> Prompt | None:
    """The prompt a record was made for; null when it has none."""
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
    """The rankings of a file; a preference becomes a ranking of two, standing votes theirs."""

    def made(records: Iterator[Record]) -> Iterator[Ranking]:
        for record in _that_count(stream, _votes_last(path, records)):
            if isinstance(record, Ranking):
                yield record
            elif isinstance(record, Preference):
                yield ranking_of(record)

    stream = Stream(path, RANKED, made, **options)
    return stream


def load_rankings(path: str | Path, **options: Any) -> Loaded[Ranking]:
    """The rankings of a file, in memory."""
    return stream_rankings(path, **options).load()


def stream_preferences(
    path: str | Path, *, pairs: Pairs = "all", weight: Weight = "group", **options: Any
) -> Stream[Preference]:
    """The preferences of a file; rankings and votes are expanded, ties give none."""

    def made(records: Iterator[Record]) -> Iterator[Preference]:
        for record in _that_count(stream, _votes_last(path, records)):
            if isinstance(record, Ranking):
                yield from expand(record, pairs=pairs, weight=weight)
            elif isinstance(record, Preference) and not record.tie:
                yield record

    stream = Stream(path, RANKED, made, **options)
    return stream


def load_preferences(path: str | Path, **options: Any) -> Loaded[Preference]:
    """The preferences of a file, in memory."""
    return stream_preferences(path, **options).load()


RANKED = ("ranking", "preference", "event", "candidates")


def _votes_last(path: str | Path, records: Iterator[Record]) -> Iterator[Record]:
    """The records, and behind them rankings from the standing votes among them.

    A later event may undo an earlier one, so events are kept to the end of the file; a file of
    events in which nobody voted is an error.
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
        raise DataError("no votes: only skips, flags and what was undone", where=str(path))
    yield from voted


def _that_count(stream: Stream[Any], records: Iterator[Record]) -> Iterator[Record]:
    """The records without votes that their annotator replaced later in the file; those are told.

    Which vote is the last is known at the end only, so a file that names annotators is read twice.
    """
    last: dict[bytes, int] | None = None
    told = []
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
            told.append(
                Problem(
                    str(stream.path),
                    line_of(record),
                    None,
                    "contradiction",
                    "its annotator voted on the same answers again: the last vote counts",
                    "remove the vote that is wrong",
                    "warning",
                )
            )
    stream.problems += told


def graded_last(path: str | Path, records: Iterable[Record]) -> Iterator[Record]:
    """The records, and behind them rankings from the answers that were graded one by one.

    The next answer to a prompt may stand anywhere, so graded ones are kept to the end of the file.
    Raises DataError for candidates without grades, and when no prompt has two graded answers.
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
            f"{len(graded)} graded answers, and no prompt has two of them: nothing is compared",
            where=str(path),
            hint="Fix: give rows with the same prompt, or train with sft, which takes each answer",
        )
    yield from compared


def load_candidates(path: str | Path, **options: Any) -> Loaded[Candidates]:
    """The candidates of a file."""
    loaded = load_records(path, {"candidates"}, **options)
    records = [record for record in loaded.records if isinstance(record, Candidates)]
    return Loaded(records, loaded.format, loaded.problems)
