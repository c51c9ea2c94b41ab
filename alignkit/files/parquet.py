"""Read Parquet in batches whose size is known before they are unpacked.

A dictionary stores a text once, but rows may refer to it a million times, so a file of a kilobyte
can unpack to gigabytes. The lengths of texts and the numbers of values are therefore looked up
first. Columns that could grow too large are read as dictionary and indices, and their rows are
built one by one. The sizes of pages are taken from the file's own metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from math import isfinite
from typing import Any, BinaryIO

from alignkit.files.problems import Problem, RowError
from alignkit.files.row import MAX_LINE, Report, Row, bomb, most_bytes, nothing, too_long

MOST_ROWS = 256
BATCH_BYTES = 32 << 20
# What the values of nested columns may add up to, as if one row held them all.
NESTED_BYTES = 256 << 20
# What a cell costs besides its text: names, quotes and brackets of the same row as JSON.
CELL_BYTES = 16
# How densely numbers may be packed: a list of a million zeros takes a few bytes.
MOST_PACKED = 20


def read_parquet(name: str, stream: BinaryIO, report: Report) -> Iterator[Row]:
    """Yield the rows of a Parquet file; a row's line is its number counted from one.

    DataError when it unpacks to more than a file of its size may.
    """
    import pyarrow as pa

    if not stream.seekable():
        message = "Parquet is compressed inside and cannot be read from a compressed file"
        report(Problem(name, None, None, "parquet", message, "decompress it first"))
        return
    try:
        yield from _Reader(name, stream, report).rows()
    except pa.ArrowException as error:
        report(Problem(name, None, None, "parquet", f"not Parquet: {error}", "copy it again"))
    except RowError as error:
        report(Problem.from_error(error, name, None))


def refuse_repeated(names: Sequence[str]) -> None:
    """Refuse a table with two columns of the same name, since only one of them could be read."""
    for name in names:
        if names.count(name) > 1:
            called = f'are called "{name}"' if name else "have no name"
            message = f"{names.count(name)} columns {called}"
            raise RowError("duplicate-key", message, "rename or remove all but one", field=name)


@dataclass
class _Plan:
    """How to read one row group: how many rows at a time, which columns as dictionaries."""

    rows: int
    coded: list[str] = field(default_factory=list)


class _Reader:
    """Reads one file."""

    def __init__(self, name: str, stream: BinaryIO, report: Report) -> None:
        import pyarrow.parquet as pq

        self.name, self.stream, self.report = name, stream, report
        self.left = most_bytes(stream.seek(0, 2))
        self.most = self.left
        self.file = pq.ParquetFile(stream)
        self.metadata = self.file.metadata
        marks = {
            each.name: (each.metadata or {}).get(b"alignkit") for each in self.file.schema_arrow
        }
        self.as_json = {name for name, mark in marks.items() if mark == b"json"}
        self.null_is_absent = {name for name, mark in marks.items() if mark is not None}
        self.not_finite: set[str] = set()
        refuse_repeated(self.file.schema_arrow.names)

    def rows(self) -> Iterator[Row]:
        """Yield every row, group by group; report and skip a row that is too long."""
        line = 0
        for group in range(self.metadata.num_row_groups):
            for batch, size in self._batches(group):
                if batch.num_rows == 1 and size > MAX_LINE:
                    line += 1
                    self.report(too_long(self.name, line, size, "row"))
                    continue
                for value in batch.to_pylist():
                    line += 1
                    yield Row(line, line - 1, self._row(value, line))
        if line == 0:
            self.report(nothing(self.name, fix="write at least one row"))

    def _batches(self, group: int) -> Iterator[tuple[Any, int]]:
        """Yield (batch, its unpacked size); only single rows may exceed the limit."""
        import pyarrow.parquet as pq

        plan = self._plan(group)
        file = self.file
        if plan.coded:
            file = pq.ParquetFile(self.stream, metadata=self.metadata, read_dictionary=plan.coded)
        for batch in file.iter_batches(batch_size=plan.rows, row_groups=[group]):
            for part, size in _parts(batch):
                self.left -= size
                if self.left < 0:
                    raise bomb(self.name)
                yield part, size

    def _plan(self, group: int) -> _Plan:
        """Bound the size of a row group, column by column, from its metadata and dictionaries."""
        about = self.metadata.row_group(group)
        columns = [about.column(i) for i in range(about.num_columns)]
        if sum(column.total_uncompressed_size for column in columns) > self.most:
            raise bomb(self.name)
        schema = self.metadata.schema
        plan, per_row, nested = _Plan(MOST_ROWS), 1.0, 0
        for i, column in enumerate(columns):
            is_list = schema.column(i).max_repetition_level > 0
            longest = self._longest(group, column, schema.column(i).length)
            if is_list and column.num_values * 8 > max(
                NESTED_BYTES, MOST_PACKED * column.total_compressed_size
            ):
                raise bomb(self.name)
            if not is_list:
                per_row += min(longest, MAX_LINE)
            elif column.physical_type == "BYTE_ARRAY" and (
                nested + column.num_values * longest > NESTED_BYTES
            ):
                plan.coded.append(column.path_in_schema)
            else:
                nested += column.num_values * longest
        stored = sum(column.total_uncompressed_size for column in columns) / max(1, about.num_rows)
        plan.rows = max(1, min(MOST_ROWS, int(BATCH_BYTES / max(per_row, stored, 1))))
        return plan

    def _longest(self, group: int, column: Any, width: int) -> int:
        """Bound the bytes of one value of a column whose values are not stored one by one."""
        if column.physical_type != "BYTE_ARRAY":
            return max(8, width)
        stored = int(column.total_uncompressed_size)
        if "DELTA_BYTE_ARRAY" in column.encodings:
            return stored
        if not column.has_dictionary_page:
            return 0
        if column.num_values * stored <= BATCH_BYTES:
            return stored
        return self._longest_in_dictionary(group, column.path_in_schema)

    def _longest_in_dictionary(self, group: int, path: str) -> int:
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        coded = pq.ParquetFile(self.stream, metadata=self.metadata, read_dictionary=[path])
        for batch in coded.iter_batches(MOST_ROWS, row_groups=[group], columns=[path]):
            for array in _dictionaries(batch.column(0)):
                if len(array.dictionary):
                    return int(pc.max(pc.binary_length(array.dictionary)).as_py() or 0)
        return 0

    def _row(self, value: dict[str, Any], line: int) -> dict[str, Any]:
        """Build the row; Arrow gives every struct all keys, so null inside a row means no key."""
        row: dict[str, Any] = {}
        for key, cell in value.items():
            if cell is None:
                if key not in self.null_is_absent:
                    row[key] = None
                continue
            if key in self.as_json:
                row[key] = self._of_json(cell, key, line)
                continue
            try:
                row[key] = _plain(cell)
            except _NotFinite:
                self._warn_not_finite(key, line)
                row[key] = None
        return row

    def _of_json(self, cell: Any, column: str, line: int) -> Any:
        """Decode a cell that the file declares as JSON; keep text that is not JSON as text."""
        try:
            return json.loads(cell)
        except (ValueError, TypeError, RecursionError):
            message = f'"{column}" is declared as JSON by the file but is not: read as text'
            fix = "write the file again"
            self.report(Problem(self.name, line, column, "json", message, fix, "warning"))
            return cell if isinstance(cell, str) else _plain(cell)

    def _warn_not_finite(self, column: str, line: int) -> None:
        if column not in self.not_finite:
            self.not_finite.add(column)
            message = f'"{column}" holds NaN or infinity; read as null'
            fix = "write null, or a number"
            self.report(Problem(self.name, line, column, "not-finite", message, fix, "warning"))


def _dictionaries(array: Any) -> Iterator[Any]:
    """Yield the dictionary arrays inside a column, at any depth."""
    import pyarrow as pa

    if isinstance(array, pa.DictionaryArray):
        yield array
    elif isinstance(array, pa.StructArray):
        for i in range(array.type.num_fields):
            yield from _dictionaries(array.field(i))
    elif isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray | pa.MapArray):
        yield from _dictionaries(array.values)


def _parts(batch: Any) -> Iterator[tuple[Any, int]]:
    """Yield (part, its unpacked size) of a batch, halving it until an overlong row is alone."""
    size = sum(_unpacked(column) for column in batch.columns)
    size += CELL_BYTES * batch.num_rows * (1 + batch.num_columns)
    if batch.num_rows < 2 or size <= MAX_LINE:
        yield batch, size
        return
    half = batch.num_rows // 2
    yield from _parts(batch.slice(0, half))
    yield from _parts(batch.slice(half))


def _unpacked(array: Any) -> int:
    """Return the bytes of a column's values; one in a dictionary counts each time it is used."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(array, pa.DictionaryArray):
        lengths = pc.binary_length(array.dictionary)
        return int(pc.sum(lengths.take(array.indices)).as_py() or 0) + 4 * len(array)
    if isinstance(array, pa.StructArray):
        return len(array) + sum(_unpacked(child) for child in array.flatten())
    if isinstance(array, pa.ListArray | pa.LargeListArray):
        return 4 * len(array) + _unpacked(array.flatten())
    return int(array.nbytes)


class _NotFinite(Exception):
    """Raised for a number that JSON cannot represent."""


def _plain(value: Any) -> Any:
    """Convert a value to what JSON can represent."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not isfinite(value):
        raise _NotFinite
    convert = next((how for kind, how in _AS_JSON.items() if isinstance(value, kind)), None)
    return value if convert is None else convert(value)


def _number(value: Decimal) -> int | float | str:
    """Return a decimal as the number equal to it, or as text if there is none."""
    if not value.is_finite():
        raise _NotFinite
    number = int(value) if value == value.to_integral_value() else float(value)
    return number if Decimal(repr(number)) == value else str(value)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        message = "a column of bytes that are not text"
        raise RowError("type", message, "leave the column out") from None


_AS_JSON: dict[type, Callable[[Any], Any]] = {
    datetime: datetime.isoformat,
    date: date.isoformat,
    time: time.isoformat,
    Decimal: _number,
    bytes: _text,
}
