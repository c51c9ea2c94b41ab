"""Files to rows, streaming: JSONL, JSON arrays, CSV/TSV, labelled text, Parquet; gzip and zstd.

A row is a JSON object with its place. What is wrong with a line goes to `report`, one Problem each;
reading goes on where that makes sense. Nothing here knows what a row means.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from alignkit.data.json_array import ArrayReader
from alignkit.data.json_text import decode, type_name
from alignkit.data.problems import Problem, RowError
from alignkit.errors import DataError, did_you_mean
from alignkit.what_is import as_data, guessed

MAX_LINE = 16 << 20
MAX_RATIO = 200  # text compresses to no less than a hundredth; more is a bomb
RATIO_COUNTS_FROM = 64 << 20

Report = Callable[[Problem], None]


@dataclass(slots=True)
class Row:
    """One row: its 1-based line, its 0-based number, its object and, from JSON, its bytes."""

    line: int
    number: int
    value: dict[str, Any]
    raw: bytes | None = None


# Who wants to know how many bytes were read, for a progress bar.
_WATCH: ContextVar[Callable[[int], None] | None] = ContextVar("watch", default=None)


@contextmanager
def watched(advance: Callable[[int], None]) -> Iterator[None]:
    """Calls `advance` with the bytes of every row read within the block."""
    token = _WATCH.set(advance)
    try:
        yield
    finally:
        _WATCH.reset(token)


def read_rows(path: str | Path, report: Report) -> Iterator[Row]:
    """The rows of a file in any container we know; DataError when it cannot be opened."""
    name = str(path)
    refuse_other_things(name)
    container = container_of(name)
    try:
        watch = _WATCH.get()
        with opened(name) as stream:
            for row in CONTAINERS[container](name, stream, report):
                if watch is not None and row.raw is not None:
                    watch(len(row.raw))
                yield row
    except FileNotFoundError:
        raise DataError("no such file" + _nearest_file(name), where=name) from None
    except IsADirectoryError:
        raise DataError("is a directory, not a file", where=name) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        report(
            Problem(name, None, None, "compression", f"broken gzip data: {error}", "copy it again")
        )
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=name) from None


def refuse_other_things(name: str) -> None:
    """Say what a name stands for that is no file of rows: a hub id, a model, a recipe, a run."""
    mistaken = as_data(name)
    if mistaken and not (guessed(name) and _nearest_file(name)):
        raise DataError(mistaken[0], where=name, hint=mistaken[1])


def container_of(name: str) -> str:
    """The container a file name announces: jsonl, json, csv, tsv, txt or parquet."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1] if suffixes else "", "jsonl")


def compression_of(name: str) -> str | None:
    """`gzip`, `zstd` or null, by the last suffix."""
    return COMPRESSIONS.get(Path(name).suffix.lower())


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed; a compression bomb stops with a DataError."""
    with open(name, "rb") as plain:
        compression = compression_of(name)
        if compression is None:
            yield plain
        else:
            size = Path(name).stat().st_size
            bounded = _Bounded(_decompressed(plain, compression), name, size)
            yield cast(BinaryIO, io.BufferedReader(bounded, 1 << 20))


def _decompressed(plain: BinaryIO, compression: str) -> Any:
    if compression == "gzip":
        return gzip.GzipFile(fileobj=plain)
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(plain, mode="r"), compression)


class _Bounded(io.RawIOBase):
    """A decompressed stream that refuses to grow past `MAX_RATIO` times the file."""

    def __init__(self, stream: Any, name: str, size: int) -> None:
        self.stream, self.name = stream, name
        self.limit = max(RATIO_COUNTS_FROM, size * MAX_RATIO)
        self.total = 0

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        data = self.stream.read(len(target))
        self.total += len(data)
        if self.total > self.limit:
            raise DataError(
                f"decompresses to more than {MAX_RATIO} times its size",
                where=self.name,
                hint="Fix: decompress it yourself if you trust it",
            )
        target[: len(data)] = data
        return len(data)


def _nearest_file(name: str) -> str:
    folder = Path(name).parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return did_you_mean(Path(name).name, names)


# --- JSON lines ---------------------------------------------------------------------------------


def read_jsonl(name: str, stream: BinaryIO, report: Report) -> Iterator[Row]:
    """One object a line. A torn last line is a warning, as after a power cut; others are errors."""
    number = blank = line = 0
    for line, raw in enumerate(_lines(name, stream, report), start=1):
        if line == 1:
            first = _first_line(name, raw, report)
            if first is None:
                return
            raw = first
        if not raw or raw.isspace():
            blank += 1
            continue
        try:
            yield Row(line, number, _object(decode(raw)), raw)
        except RowError as error:
            if error.kind == "incomplete" and not raw.endswith(b"\n"):
                report(_torn(name, line))
            else:
                if error.kind == "incomplete" and number == 0 and raw.lstrip()[:1] == b"{":
                    last = _spans(raw, stream)
                    if last:
                        report(_pretty(name, line, line + last))
                        return
                report(Problem.of(error, name, line))
        number += 1
    if number == 0:
        report(_nothing(name, blank))


def _lines(name: str, stream: BinaryIO, report: Report) -> Iterator[bytes]:
    """Lines split at "\\n" only, since U+2028 and U+0085 are text; overlong ones are reported."""
    line = 0
    while raw := stream.readline(MAX_LINE + 1):
        line += 1
        if len(raw) > MAX_LINE and not raw.endswith(b"\n"):
            size = len(raw)
            while (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                size += len(rest)
            message = f"line is {(size + len(rest)) / 2**20:.1f} MiB, the limit is 16 MiB"
            report(Problem(name, line, None, "too-long", message, "split or remove the row"))
            raw = b""
        yield raw


def _first_line(name: str, raw: bytes, report: Report) -> bytes | None:
    """The first line without its byte order mark, or null when the file is no JSONL at all."""
    for magic, (message, fix) in MAGIC.items():
        if raw.startswith(magic):
            stem = name.removesuffix(".jsonl")
            report(Problem(name, 1, None, "not-jsonl", message, fix.format(name=name, stem=stem)))
            return None
    if raw.startswith(b"\xef\xbb\xbf"):
        report(Problem(name, 1, None, "bom", "UTF-8 byte order mark, ignored", "", level="note"))
        raw = raw[3:]
    if raw.lstrip()[:1] == b"[":
        fix = f"jq -c '.[]' {name}, or rename it to .json"
        report(Problem(name, 1, None, "not-jsonl", "a JSON array, not JSONL", fix))
        return None
    return raw


def _spans(raw: bytes, stream: BinaryIO) -> int:
    """How many further lines complete the object that `raw` begins, 0 if none within 10,000."""
    text = raw
    for count in range(1, 10_001):
        more = stream.readline(MAX_LINE)
        if not more or len(text) > MAX_LINE:
            return 0
        text += more
        if b"}" in more:
            try:
                json.loads(text)
            except (ValueError, RecursionError):
                continue
            return count
    return 0


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise RowError(
        "not-object", f"expected object, got {type_name(value)}", "one JSON object per line"
    )


def _torn(name: str, line: int) -> Problem:
    message = "last line incomplete (power cut?), ignored"
    return Problem(name, line, None, "torn", message, "remove it, or write it anew", "warning")


def _pretty(name: str, first: int, last: int) -> Problem:
    message = f"object spans lines {first}–{last}"
    return Problem(name, first, None, "not-jsonl", message, f"jq -c . {name}")


def _nothing(name: str, blank: int) -> Problem:
    message = "no records" + (f", only {blank} blank lines" if blank else "")
    return Problem(name, None, None, "empty", message, "one JSON object per line")


# --- JSON arrays --------------------------------------------------------------------------------


def read_json(name: str, stream: BinaryIO, report: Report) -> Iterator[Row]:
    """One JSON array of objects; a `.json` file that holds JSON lines is read as these."""
    head = stream.read(4096)
    rest = cast(BinaryIO, io.BufferedReader(_Joined(head, stream), 1 << 20))
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"[":
        yield from read_jsonl(name, rest, report)
        return
    if head.startswith(b"\xef\xbb\xbf"):
        rest.read(3)
        report(Problem(name, 1, None, "bom", "UTF-8 byte order mark, ignored", "", level="note"))
    array, number = ArrayReader(rest, MAX_LINE), 0
    try:
        for number, (line, raw) in enumerate(array.items(), start=1):
            try:
                yield Row(line, number - 1, _object(decode(raw)), raw)
            except RowError as error:
                # Inside an item "the line" is the item, and its column means little.
                error.message = error.message.replace("the line", "the item")
                error.column = None
                report(Problem.of(error, name, line))
    except RowError as error:
        report(Problem.of(error, name, array.line))
        return
    if number == 0:
        report(_nothing(name, 0))


class _Joined(io.RawIOBase):
    """Bytes already read, then the rest of their stream."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self.head, self.stream = head, stream

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        data = self.head[: len(target)] or self.stream.read(len(target))
        self.head = self.head[len(target) :]
        target[: len(data)] = data
        return len(data)


# --- tables -------------------------------------------------------------------------------------


def _read_table(name: str, stream: BinaryIO, report: Report, *, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    table = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number, line = 0, 1
    try:
        for cells in table:
            start, line = line, table.line_num + 1
            if header is None:
                header = cells
            elif not cells:
                continue
            else:
                if len(cells) == len(header):
                    value = {key: cell_value(cell) for key, cell in zip(header, cells, strict=True)}
                    yield Row(start, number, value)
                else:
                    report(_ragged(name, start, len(cells), len(header)))
                number += 1
    except (csv.Error, UnicodeDecodeError) as error:
        report(Problem(name, line, None, "table", f"not a table: {error}", "quote the cell, UTF-8"))
        return
    finally:
        text.detach()
    if number == 0:
        report(_nothing(name, 0))


def _ragged(name: str, line: int, cells: int, columns: int) -> Problem:
    message = f"{cells} cells but {columns} columns"
    return Problem(name, line, None, "table", message, "quote cells that hold the separator")


def cell_value(cell: str) -> Any:
    """A cell's value: JSON where it is an object or an array, otherwise its text."""
    if cell[:1] in ("{", "[") and cell[-1:] in ("}", "]"):
        try:
            return decode(cell.encode())
        except (RowError, UnicodeEncodeError):
            return cell
    return cell


def cell_text(value: Any) -> str:
    """The cell that `cell_value` reads back, for texts, objects and arrays."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def read_csv(name: str, stream: BinaryIO, report: Report) -> Iterator[Row]:
    """Comma separated, with a header."""
    return _read_table(name, stream, report, delimiter=",")


def read_tsv(name: str, stream: BinaryIO, report: Report) -> Iterator[Row]:
    """Tab separated, with a header."""
    return _read_table(name, stream, report, delimiter="\t")


def read_txt(name: str, stream: BinaryIO, report: Report) -> Iterator[Row]:
    """Lines of `text<TAB>label` without a header, as sentiment corpora come."""
    number = 0
    for line, raw in enumerate(_lines(name, stream, report), start=1):
        if raw.isspace() or not raw:
            continue
        try:
            text, tab, label = raw.removesuffix(b"\n").decode().rpartition("\t")
        except UnicodeDecodeError as error:
            message = f"byte 0x{raw[error.start]:02x} at column {error.start + 1} is not UTF-8"
            report(Problem(name, line, None, "encoding", message, "save the file as UTF-8"))
        else:
            if tab:
                yield Row(line, number, {"text": text, "label": label})
            else:
                report(_unlabelled(name, line))
        number += 1
    if number == 0:
        report(_nothing(name, 0))


def _unlabelled(name: str, line: int) -> Problem:
    fix = "write text<TAB>label, or use .jsonl, .json, .csv, .tsv or .parquet"
    return Problem(name, line, None, "table", "no tab between a text and its label", fix)


def read_parquet(name: str, stream: BinaryIO, report: Report) -> Iterator[Row]:
    """A Parquet file in batches; the line of a row is its number counted from one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(stream)
        as_json = {field.name for field in table.schema_arrow if _is_json(field)}
        number = 0
        for batch in table.iter_batches(batch_size=256):
            for value in batch.to_pylist():
                yield Row(number + 1, number, _from_arrow(value, as_json))
                number += 1
    except pa.ArrowException as error:
        report(Problem(name, None, None, "parquet", f"not Parquet: {error}", "copy it again"))
        return
    if number == 0:
        report(_nothing(name, 0))


def _is_json(field: Any) -> bool:
    return (field.metadata or {}).get(b"alignkit") == b"json"


def _from_arrow(value: dict[str, Any], as_json: set[str]) -> dict[str, Any]:
    """Arrow gives every struct all keys: inside a row, null means that the key was not there."""
    return {
        key: json.loads(cell) if key in as_json and cell is not None else _without_null_keys(cell)
        for key, cell in value.items()
    }


def _without_null_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null_keys(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_null_keys(inner) for inner in value]
    return value


COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
    ".parquet": "parquet",
}

CONTAINERS: dict[str, Callable[[str, BinaryIO, Report], Iterator[Row]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "txt": read_txt,
    "parquet": read_parquet,
}

# What a file that calls itself JSONL may be instead: its first bytes -> (message, fix).
MAGIC = {
    b"\x1f\x8b": ("gzip data", "rename to {stem}.jsonl.gz"),
    b"\x28\xb5\x2f\xfd": ("zstd data", "rename to {stem}.jsonl.zst"),
    b"PAR1": ("Parquet data", "rename to {stem}.parquet"),
    b"\xff\xfe": ("looks like UTF-16", "iconv -f UTF-16 -t UTF-8 {name}"),
    b"\xfe\xff": ("looks like UTF-16", "iconv -f UTF-16 -t UTF-8 {name}"),
    b"{\x00": ("looks like UTF-16", "iconv -f UTF-16LE -t UTF-8 {name}"),
    b"\x00{": ("looks like UTF-16", "iconv -f UTF-16BE -t UTF-8 {name}"),
}
