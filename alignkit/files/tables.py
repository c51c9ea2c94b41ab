"""Read tables: comma, semicolon and tab separated files with a header, and labeled lines."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from alignkit.files.json_text import decode, decode_exactly
from alignkit.files.parquet import refuse_repeated
from alignkit.files.problems import Problem, RowError
from alignkit.files.row import MAX_LINE, Report, Row, lines_of, nothing, placed, too_long

SEPARATORS = ",;\t|"
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}

# A byte that is not UTF-8, as the decoder keeps it until its place is known.
_STRAY = re.compile("[\udc80-\udcff]")
# A number that the fast decoder would round.
_HUGE = re.compile(r"\d{19}")
_QUOTED = re.compile(r'"[^"]*"')


def read_table(name: str, stream: BinaryIO, report: Report, usual: str) -> Iterator[Row]:
    """Read a table with a header, separated as usual, or as its header shows; report the latter."""
    csv.field_size_limit(MAX_LINE)
    lines = _Lines(stream)
    try:
        try:
            yield from _rows(name, lines, report, usual)
        except csv.Error as error:
            fix = "quote cells that hold quotes, line breaks or the separator"
            raise RowError("table", f"not a table: {error}", fix) from None
    except RowError as error:
        report(placed(error, name, lines.line if error.column else lines.first))
    except _TooLong as error:
        report(too_long(name, lines.first, error.size, "row"))
    finally:
        lines.text.detach()


def _rows(name: str, lines: _Lines, report: Report, usual: str) -> Iterator[Row]:
    first = next(lines, "")
    separator = separator_of(first, usual)
    if separator != usual:
        message = f"separated by {NAMES[separator]}, and read that way"
        report(Problem(name, 1, None, "separator", message, "", level="note"))
    if first.startswith("sep="):
        lines.next_row()
    else:
        lines.put_back(first)
    table = csv.reader(lines, delimiter=separator, strict=True)
    header: list[str] | None = None
    number = 0
    for cells in table:
        if header is None:
            refuse_repeated(cells)
            header = cells
            lines.next_row()
            continue
        line = lines.next_row()
        if cells:
            if len(cells) == len(header):
                value = {key: cell_value(cell) for key, cell in zip(header, cells, strict=True)}
                yield Row(line, number, value)
            else:
                report(_ragged(name, line, len(cells), len(header)))
            number += 1
    if number == 0:
        report(nothing(name, fix="write a header and at least one row"))


def separator_of(header: str, usual: str) -> str:
    """Return the separator of a table: that of Excel's `sep=` line, or the header's most frequent.

    The usual one wins wherever the header contains it at all.
    """
    if re.fullmatch(r"sep=[,;\t|]\s*", header):
        return header[4]
    bare = _QUOTED.sub("", header)
    if usual in bare or not any(other in bare for other in SEPARATORS):
        return usual
    return max(SEPARATORS, key=bare.count)


class _TooLong(Exception):
    """Raised for a row beyond the limit."""

    def __init__(self, size: int) -> None:
        self.size = size


class _Lines:
    """Feeds lines to the csv module, bounded in length and decoded strictly.

    `line` is the number of the last line read, `first` that on which the current row began.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        self.first = 1
        self.line = 0
        self._waiting: str | None = None
        self._size = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line, self._waiting = self._waiting, None
        if line is None:
            line = self.text.readline(MAX_LINE + 1)
            self.line += 1
            self._check(line)
        if not line:
            raise StopIteration
        return line

    def put_back(self, line: str) -> None:
        """Yield this line again: the header decided how to read the table."""
        self._waiting = line or None

    def next_row(self) -> int:
        """Return the line on which the row just read began; the next row begins after it."""
        began, self.first, self._size = self.first, self.line + 1, 0
        return began

    def _check(self, line: str) -> None:
        self._size += len(line)
        if self._size > MAX_LINE:
            raise _TooLong(self._size)
        if line.isascii() and "\0" not in line:
            return
        if self.line == 1 and "\0" in line:
            raise RowError("encoding", "looks like UTF-16", "save the file as UTF-8")
        if stray := _STRAY.search(line):
            raise not_utf8(ord(stray[0]) - 0xDC00, stray.start() + 1)


def not_utf8(byte: int, column: int) -> RowError:
    """Return the error of a byte that is not UTF-8."""
    return RowError(
        "encoding",
        f"byte 0x{byte:02x} at column {column} is not UTF-8",
        "save the file as UTF-8",
        column=column,
    )


def _ragged(name: str, line: int, cells: int, columns: int) -> Problem:
    message = f"{cells} cells but {columns} columns"
    return Problem(name, line, None, "table", message, "quote cells that hold the separator")


def cell_value(cell: str) -> Any:
    """Return a cell's value: JSON if it is an object or an array, otherwise its text."""
    if cell[:1] in ("{", "[") and cell[-1:] in ("}", "]"):
        try:
            return (decode_exactly if _HUGE.search(cell) else decode)(cell.encode())
        except (RowError, UnicodeEncodeError):
            return cell
    return cell


def cell_text(value: Any) -> str:
    """Return the cell that `cell_value` reads back, for texts, objects and arrays."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def read_txt(name: str, stream: BinaryIO, report: Report) -> Iterator[Row]:
    """Read lines of `text<TAB>label` without a header, the format of sentiment corpora."""
    number = 0
    for line, raw in enumerate(lines_of(name, stream, report), start=1):
        if line == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw.isspace() or not raw:
            continue
        try:
            text, tab, label = raw.removesuffix(b"\n").decode().rpartition("\t")
        except UnicodeDecodeError as error:
            report(placed(not_utf8(raw[error.start], error.start + 1), name, line))
        else:
            if tab:
                yield Row(line, number, {"text": text, "label": label})
            else:
                report(_unlabelled(name, line))
        number += 1
    if number == 0:
        report(nothing(name))


def _unlabelled(name: str, line: int) -> Problem:
    fix = "write text<TAB>label, or use .jsonl, .json, .csv, .tsv or .parquet"
    return Problem(name, line, None, "table", "no tab between a text and its label", fix)
