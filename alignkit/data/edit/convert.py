"""Convert records to any format and back without loss, or list what would be lost.

If a writer would not restore the row that a record was read from (an empty column, an unusual role
name), the difference is kept in `extra.as_read`. It is used again only while that part of the
record is unchanged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

from alignkit.data.columns import Columns
from alignkit.data.formats import Format, format_named
from alignkit.data.formats.fields import Fields
from alignkit.data.formats.prompt_columns import claims
from alignkit.data.formats.template_keys import write_template_keys
from alignkit.data.grades import demonstration_of
from alignkit.data.pairs import ranking_of
from alignkit.data.read import Reading, exact_value, records_of, scan
from alignkit.data.records import KINDS, Candidates, Preference, Ranking, Record
from alignkit.errors import DataError
from alignkit.files.problems import Problem, RowError
from alignkit.files.rows import Row, container_of
from alignkit.files.tables import cell_value
from alignkit.files.write import refuse_in_place, write_rows

AS_READ = "as_read"
MOST_SHOWN = 5


def canonical(value: Any) -> bytes:
    """Return bytes that are equal exactly when two JSON values are; true is not 1."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return json.dumps(value, sort_keys=True).encode()  # an integer beyond 64 bits


def _digest(value: Any) -> str:
    return hashlib.blake2b(canonical(value), digest_size=8).hexdigest()


# --- reading for conversion ---------------------------------------------------------------------


def remember(records: list[Record], row: Row, form: Format) -> list[Record]:
    """Store in a row's records what their format's writer alone would not restore."""
    if form.name == "alignkit" or not records:
        return records
    try:
        written = _merged([_plain_row(record, form) for record in records], form)
    except RowError:
        # The writer cannot express this: the row is kept whole as long as nothing changes.
        records[0].extra[AS_READ] = {
            "format": form.name, "whole": exact_value(row), "of": _content(records)
        }  # fmt: skip
        return records
    value = exact_value(row)
    different = {
        key: [_digest(written.get(key)), cell]
        for key, cell in value.items()
        if key not in written or canonical(written[key]) != canonical(cell)
    }
    absent = {key: _digest(written[key]) for key in written if key not in value}
    if different or absent or list(written) != list(value):
        order = list(value)
        records[0].extra[AS_READ] = {
            "format": form.name, "keep": different, "absent": absent, "order": order
        }  # fmt: skip
    return records


def _content(records: list[Record]) -> str:
    """Return a digest of the records without their source and extra keys."""
    return _digest([record.model_dump(exclude={"extra", "source"}) for record in records])


def _restored(written: Fields, as_read: Any, form: Format) -> Fields:
    """Return the row as it was read, as far as the record is unchanged."""
    if not isinstance(as_read, dict) or as_read.get("format") != form.name:
        return written
    # All or nothing: if only an instruction is repaired, restoring its input would repeat it.
    unchanged = all(
        _digest(written.get(key)) == digest
        for key, digest in [
            *((key, digest) for key, (digest, _) in as_read["keep"].items()),
            *as_read["absent"].items(),
        ]
    )
    row = dict(written)
    if unchanged:
        row.update((key, value) for key, (_, value) in as_read["keep"].items())
        row = {key: value for key, value in row.items() if key not in as_read["absent"]}
    order = {key: position for position, key in enumerate(as_read["order"])}
    return dict(sorted(row.items(), key=lambda item: order.get(item[0], len(order))))


# --- writing ------------------------------------------------------------------------------------


def _plain_row(record: Record, form: Format) -> Fields:
    """Return what the writer writes, plus unknown keys and an id that is not generated."""
    row = form.write(record)
    row |= write_template_keys(record, form.places)
    for key, value in record.extra.items():
        if key != AS_READ and key not in row and not claims(form, key, value):
            row[key] = value
    if not _id_was_generated(record) and "id" not in row:
        row["id"] = record.id
    return row


def _id_was_generated(record: Record) -> bool:
    source = record.source
    return not record.id or (
        source is not None and record.id.startswith(f"{source.file}:{source.row}")
    )


def _merged(rows: list[Fields], form: Format) -> Fields:
    return form.merge(rows) if form.merge and len(rows) > 1 else rows[0]


def row_of(records: list[Record], form: Format) -> Fields:
    """Return a record, or several that came from one row, as a row of a format."""
    if form.name == "alignkit":
        return records[0].model_dump()
    as_read = records[0].extra.get(AS_READ)
    if isinstance(as_read, dict) and "whole" in as_read and as_read.get("format") == form.name:
        if as_read["of"] == _content(records):
            return dict(as_read["whole"])
        as_read = None
    fitted = [fit_kind(record, form) for record in records]
    row = _merged([_plain_row(record, form) for record in fitted], form)
    return _restored(row, as_read, form)


def fit_kind(record: Record, form: Format) -> Record:
    """Return the record as the kind a format holds, if that takes no decision."""
    if form.kind in ("any", record.kind):
        return record
    if form.kind == "ranking" and isinstance(record, Preference):
        return ranking_of(record)
    if form.kind == "demonstration" and isinstance(record, Candidates):
        demonstration = demonstration_of(record)
        if demonstration is not None:
            return demonstration
    if form.kind == "preference" and isinstance(record, Ranking):
        raise RowError(
            "kind",
            f"{form.name} holds preferences, this is a ranking",
            "cut rankings into preferences first: alignkit data pairs",
        )
    raise RowError(
        "kind",
        f"{form.name} holds {form.kind} records, this is a {record.kind}",
        f"choose a format for {record.kind} records: alignkit data formats",
    )


def lost_in(record: Record, row: Fields, form: Format) -> list[str]:
    """Return the fields of a record that reading the row would not restore."""
    if form.name == "alignkit":
        return []
    source = record.source
    name, number = (source.file, source.row) if source else ("", 0)
    try:
        back = records_of(Row(1, number, row), form, name)[0]
    except RowError as error:
        return [error.field or error.message]
    if back.kind != record.kind:
        record = fit_kind(record, form)
    before, after = record.model_dump(), back.model_dump()
    before["extra"] = {key: v for key, v in before["extra"].items() if key != AS_READ}
    if _id_was_generated(record):
        after["id"] = before["id"]
    return [
        key
        for key in KINDS[record.kind].model_fields
        if key != "source" and canonical(before.get(key)) != canonical(after.get(key))
    ]


# --- files --------------------------------------------------------------------------------------


@dataclass
class Conversion:
    """The result of a conversion."""

    rows: int = 0
    format: str = ""
    problems: list[Problem] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    first_lost: dict[str, str] = field(default_factory=dict)


def read_to_convert(
    path: str | Path,
    warn: Callable[[Problem], object],
    *,
    format: str | None = None,
    columns: Columns | None = None,
    reading: Reading | None = None,
) -> Iterator[Record]:
    """Yield every well-formed record, whatever the rules find, able to become its row again.

    `warn` receives what is dropped or doubtful, such as a last row that is cut short.
    """

    def bad(problem: Problem) -> None:
        if problem.level == "error":
            raise problem.error()
        warn(problem)

    state = reading or Reading(str(path))
    for row, records in scan(path, bad, format=format, columns=columns, reading=state):
        assert state.format is not None
        yield from remember(records, row, state.format)


def convert(
    paths: Iterable[str | Path],
    output: str | Path,
    *,
    to: str = "alignkit",
    format: str | None = None,
    columns: Columns | None = None,
    lossy: bool = False,
) -> Conversion:
    """Convert files into one; it is an error unless `lossy` if the target cannot hold all."""
    files = list(paths)
    refuse_in_place(files, output)
    form, done = format_named(to), Conversion(format=to)
    done.rows = write_rows(output, _converted(files, form, format, columns, lossy, done, output))
    return done


def _converted(
    files: list[str | Path],
    form: Format,
    source_format: str | None,
    columns: Columns | None,
    lossy: bool,
    done: Conversion,
    output: str | Path,
) -> Iterator[Fields]:
    for path in files:
        records = read_to_convert(path, done.problems.append, format=source_format, columns=columns)
        for group in by_row(records, form):
            where = _place(group[0], path)
            try:
                row = row_of(group, form)
                if container_of(str(output)) in ("csv", "tsv"):
                    row = _as_cells(row)
                for name in lost_in(group[0], row, form):
                    done.lost[name] = done.lost.get(name, 0) + 1
                    done.first_lost.setdefault(name, where)
            except RowError as error:
                raise DataError(error.message, where=where, hint=f"Fix: {error.fix}") from None
            yield row
    if done.lost and not lossy:
        raise lossy_error(done)


def _place(record: Record, path: str | Path) -> str:
    return f"{path}: row {record.source.row}" if record.source else str(path)


def _as_cells(row: Fields) -> Fields:
    """Return the row as a table restores it, except that numbers become text in a table.

    A text that reads as an object or an array becomes one, and null becomes an empty text.
    """
    return {
        key: cell_value(value) if isinstance(value, str) else "" if value is None else value
        for key, value in row.items()
    }


def by_row(records: Iterable[Record], form: Format) -> Iterator[list[Record]]:
    """Group records that came from one row if the format merges; else yield each alone."""
    if form.merge is None:
        yield from ([record] for record in records)
        return
    for _, group in groupby(records, key=lambda r: r.source and (r.source.file, r.source.row)):
        yield list(group)


def lossy_error(done: Conversion) -> DataError:
    """Report what would be lost, and where first."""
    fields = "; ".join(
        f"{name} in {count:,} rows (first {done.first_lost[name]})"
        for name, count in sorted(done.lost.items(), key=lambda item: -item[1])[:MOST_SHOWN]
    )
    return DataError(
        f"{done.format} cannot hold: {fields}",
        hint="Fix: choose another format, or accept the loss with --lossy",
    )
