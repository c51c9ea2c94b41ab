"""Stream rows from files: JSONL, JSON arrays, CSV/TSV, labeled text, Parquet, compressed or not.

A row is a JSON object with its place. Each problem goes to `report`; reading continues where that
makes sense. Nothing here knows what a row means.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from alignkit.errors import DataError, did_you_mean
from alignkit.files.containers import COMPRESSIONS, SUFFIXES, compression_of, container_of
from alignkit.files.json_array import ArrayReader, ObjectReader
from alignkit.files.json_text import decode, type_name
from alignkit.files.kinds import as_data, guessed
from alignkit.files.parquet import read_parquet
from alignkit.files.problems import Problem, RowError
from alignkit.files.row import (
    MAX_LINE,
    Report,
    Row,
    bomb,
    lines_of,
    most_bytes,
    nothing,
    placed,
    recode,
)
from alignkit.files.shards import parts_of
from alignkit.files.tables import read_table, read_txt

__all__ = [
    "COMPRESSIONS", "MAX_LINE", "SUFFIXES", "Report", "Row", "compression_of", "container_of",
    "read_rows",
]  # fmt: skip

# The callback that counts the bytes read, for a progress bar.
_WATCH: ContextVar[Callable[[int], None] | None] = ContextVar("watch", default=None)


@contextmanager
def watched(advance: Callable[[int], None]) -> Iterator[None]:
    """Call `advance` with the bytes of every row read within the block."""
    token = _WATCH.set(advance)
    try:
        yield
    finally:
        _WATCH.reset(token)


def read_rows(
    path: str | Path, report: Report, *, heard: Callable[[bytes], object] | None = None
) -> Iterator[Row]:
    """Yield the rows of a file in any known container, or of all files of a folder.

    `heard` receives the bytes as they are read, so that a pipe, which can be read only once, gets a
    fingerprint too. DataError when a file cannot be opened.
    """
    refuse_other_things(str(path))
    parts = parts_of(str(path))
    if parts is None:
        yield from _rows_of_file(str(path), report, heard)
        return
    number = 0
    for part in parts:
        for row in _rows_of_file(part, report, heard):
            yield Row(row.line, number, row.value, row.raw, part)
            number += 1


def _rows_of_file(
    name: str, report: Report, heard: Callable[[bytes], object] | None
) -> Iterator[Row]:
    container = container_of(name)
    try:
        watch = _WATCH.get()
        with opened(name, heard) as stream:
            if (foreign := _foreign(name, container, stream)) is not None:
                report(foreign)
                return
            for row in CONTAINERS[container](name, stream, report):
                if watch is not None and row.raw is not None:
                    watch(len(row.raw))
                yield row
    except FileNotFoundError:
        raise DataError("no such file" + _nearest_file(name), where=name) from None
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        message = f"broken {compression_of(name) or 'compressed'} data: {error}"
        report(Problem(name, None, None, "compression", message, "copy it again"))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=name) from None


def refuse_other_things(name: str) -> None:
    """Refuse a name that stands for something else: a hub id, a model, a recipe, a run."""
    mistaken = as_data(name)
    if mistaken and not (guessed(name) and _nearest_file(name)):
        raise DataError(mistaken[0], where=name, hint=mistaken[1])


def _nearest_file(name: str) -> str:
    folder = Path(name).parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return did_you_mean(Path(name).name, names)


def _foreign(name: str, container: str, stream: Any) -> Problem | None:
    """Report a file whose first bytes contradict its name."""
    head = bytes(stream.peek(64)[:64])
    for magic, (message, fix) in MAGIC.items():
        if head.startswith(magic) and (magic, container) != (b"PAR1", "parquet"):
            stem = name.removesuffix(".jsonl").removesuffix(".json")
            codes = {"utf16": "UTF-16", "utf16le": "UTF-16LE", "utf16be": "UTF-16BE",
                     "utf32": "UTF-32"}  # fmt: skip
            commands = {key: recode(name, code) for key, code in codes.items()}
            fix = fix.format(name=name, stem=stem, **commands)
            return Problem(name, 1, None, "not-jsonl", message, fix)
    return None


@contextmanager
def opened(name: str, heard: Callable[[bytes], object] | None = None) -> Iterator[BinaryIO]:
    """Open a file's bytes, decompressed; DataError on a compression bomb."""
    with open(name, "rb") as file:
        plain = file if heard is None else _heard(file, name, heard)
        compression = compression_of(name)
        if compression is None:
            yield plain
        else:
            stream = _decompressed(plain, compression)
            yield _buffered(_bounded(stream, name, Path(name).stat().st_size))


class _Source(io.RawIOBase):
    """A stream of what `read` returns; it is called with the most bytes that it may return."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        data = self._read(len(target))
        target[: len(data)] = data
        return len(data)


def _buffered(read: Callable[[int], bytes]) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Source(read), 1 << 20))


def _heard(file: BinaryIO, name: str, heard: Callable[[bytes], object]) -> BinaryIO:
    """Pass the bytes to `heard` as they are read; for Parquet, which is read by seeks, at once."""

    def read(size: int) -> bytes:
        data = file.read(size)
        heard(data)
        return data

    if container_of(name) != "parquet":
        return _buffered(read)
    while read(1 << 20):
        pass
    file.seek(0)
    return file


def _decompressed(plain: BinaryIO, compression: str) -> Any:
    if compression == "gzip":
        return gzip.GzipFile(fileobj=plain)
    if compression == "bz2":
        return bz2.BZ2File(plain)
    if compression == "xz":
        return _Xz(plain)
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(plain, mode="r"), compression)


class _Xz:
    """An xz stream that may use no more memory than the usual levels of `xz` need."""

    def __init__(self, plain: BinaryIO) -> None:
        self.plain = plain
        self.decoder = self._new()

    def _new(self) -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=XZ_MEMORY)

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; EOFError when the stream is cut short."""
        while True:
            if self.decoder.eof:
                more = self.decoder.unused_data.lstrip(b"\0") or self.plain.read(1 << 16)
                if not more:
                    return b""
                self.decoder = self._new()
            else:
                more = self.plain.read(1 << 16) if self.decoder.needs_input else b""
                if self.decoder.needs_input and not more:
                    raise EOFError("the file ends before the data does")
            if data := self.decoder.decompress(more, size):
                return data


def _bounded(stream: Any, name: str, size: int) -> Callable[[int], bytes]:
    """Read a decompressed stream, but refuse it when it grows past `MAX_RATIO` times its file."""
    left = most_bytes(size)

    def read(most: int) -> bytes:
        nonlocal left
        data: bytes = stream.read(most)
        left -= len(data)
        if left < 0:
            raise bomb(name)
        return data

    return read


# --- JSON lines ---------------------------------------------------------------------------------


def read_jsonl(name: str, stream: BinaryIO, report: Report) -> Iterator[Row]:
    """Read one object per line; a torn last line, as after a power cut, is only a warning."""
    number = blank = line = 0
    for line, raw in enumerate(lines_of(name, stream, report), start=1):
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
            if _cut_short(raw, error):
                report(_torn(name, line))
            else:
                if error.kind == "incomplete" and number == 0 and raw.lstrip()[:1] == b"{":
                    last = _spans(raw, stream)
                    if last:
                        report(_pretty(name, line, line + last))
                        return
                report(placed(error, name, line))
        number += 1
    if number == 0:
        report(nothing(name, blank))


def _first_line(name: str, raw: bytes, report: Report) -> bytes | None:
    """Return the first line without its byte order mark, or None when it begins an array."""
    if raw.startswith(b"\xef\xbb\xbf"):
        report(Problem(name, 1, None, "bom", "UTF-8 byte order mark, ignored", "", level="note"))
        raw = raw[3:]
    if raw.lstrip()[:1] == b"[":
        fix = f"jq -c '.[]' {name}, or rename it to .json"
        report(Problem(name, 1, None, "not-jsonl", "a JSON array, not JSONL", fix))
        return None
    return raw


def _spans(raw: bytes, stream: BinaryIO) -> int:
    """Count the further lines that complete the object `raw` begins; 0 if none within 10,000."""
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


def _cut_short(raw: bytes, error: RowError) -> bool:
    """Return whether a power cut explains the line.

    It must be the last one and end inside a value, inside a character, or in the NUL bytes of a
    block that never reached the disk.
    """
    if raw.endswith(b"\n"):
        return False
    if error.kind != "encoding":
        return error.kind == "incomplete" or raw.endswith(b"\0")
    try:
        raw.rstrip(b"\0").decode()
    except UnicodeDecodeError as reason:
        return reason.reason == "unexpected end of data"
    return False


def _torn(name: str, line: int) -> Problem:
    message = "last line incomplete (power cut?), ignored"
    return Problem(name, line, None, "torn", message, "remove it, or write it again", "warning")


def _pretty(name: str, first: int, last: int) -> Problem:
    message = f"object spans lines {first}–{last}"
    return Problem(name, first, None, "not-jsonl", message, f"jq -c . {name}")


# --- JSON arrays and objects --------------------------------------------------------------------

# Names of the array of rows in files that are one object around it.
WRAPPERS = ("data", "rows", "records", "examples", "instances", "samples", "items", "dataset",
            "train", "validation", "test")  # fmt: skip


def read_json(name: str, stream: BinaryIO, report: Report) -> Iterator[Row]:
    """Read an array of objects, alone or in an object, or an object of columns, or JSON lines."""
    head = stream.read(4096)
    if head.startswith(b"\xef\xbb\xbf"):
        head = head[3:]
        report(Problem(name, 1, None, "bom", "UTF-8 byte order mark, ignored", "", level="note"))
    rest = _joined(head, stream)
    if head.lstrip()[:1] == b"{":
        yield from _read_object(name, rest, report)
    elif head.lstrip()[:1] == b"[":
        array = ArrayReader(rest, MAX_LINE)
        yield from _read_array(name, array, array.items(), report)
    else:
        yield from read_jsonl(name, rest, report)


def _read_array(
    name: str, array: ArrayReader, items: Iterable[tuple[int, bytes]], report: Report
) -> Iterator[Row]:
    number = 0
    try:
        for number, (line, raw) in enumerate(items, start=1):
            try:
                yield Row(line, number - 1, _object(decode(raw)), raw)
            except RowError as error:
                # Inside an array "the line" is the item, and its column means little.
                error.message = error.message.replace("the line", "the item")
                error.column = None
                report(placed(error, name, line))
    except RowError as error:
        report(placed(error, name, array.line))
        return
    if number == 0:
        report(nothing(name))


def _read_object(name: str, stream: BinaryIO, report: Report) -> Iterator[Row]:
    reader = ObjectReader(stream, MAX_LINE)
    try:
        key = reader.find(WRAPPERS)
        lines = key is None and not reader.is_at_end()
    except RowError as error:
        if error.kind == "too-long":
            report(_by_columns_too_long(name))
            return
        key, lines = None, True
    if key is not None:
        yield from _read_array(name, reader, _wrapped(name, reader, key), report)
    elif lines:
        yield from read_jsonl(name, _joined(reader.rest(), stream), report)
    else:
        yield from _read_one(name, bytes(reader.passed or b""), report)


def _wrapped(name: str, reader: ObjectReader, key: str) -> Iterator[tuple[int, bytes]]:
    """Yield the items of the array at the cursor; a second array of rows is an error."""
    yield from reader.array()
    if (other := reader.find(WRAPPERS)) is not None:
        raise RowError(
            "splits",
            f'rows under "{key}" and under "{other}"',
            f"choose one of them: jq -c '.{key}[]' {name} > {key}.jsonl",
        )
    if not reader.is_at_end():
        raise RowError("json", "text after the end of the object", "restore the file")


def _read_one(name: str, raw: bytes, report: Report) -> Iterator[Row]:
    """Yield the rows of an object of columns, or the object itself as one row."""
    first = 1 + raw[: len(raw) - len(raw.lstrip())].count(b"\n")
    try:
        value = _object(decode(raw))
        rows = rows_of_columns(value)
    except RowError as error:
        error.message = error.message.replace("the line", "the object")
        report(placed(error, name, first))
        return
    if rows is None:
        yield Row(first, 0, value, raw)
        return
    for number, row in enumerate(rows):
        yield Row(number + first, number, row)
    if not rows:
        report(nothing(name))


def rows_of_columns(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the rows of an object that pandas wrote by columns, by index or split; else None.

    RowError when the columns have different lengths.
    """
    cells = list(value.values())
    if value.keys() >= {"columns", "data"} and _are(value["data"], list):
        return [_zipped(value["columns"], row) for row in value["data"]]
    if cells and _are(cells, dict) and all(map(str.isdigit, value)):
        return cells
    if (
        cells
        and _are(cells, dict)
        and all(inner and all(map(str.isdigit, inner)) for inner in cells)
    ):
        index = list(dict.fromkeys(key for inner in cells for key in inner))
        return [_zipped(list(value), [inner.get(key) for inner in cells]) for key in index]
    if cells and _are(cells, list) and not any(_are(inner, dict) for inner in cells if inner):
        rows = zip(*cells, strict=True) if len({len(c) for c in cells}) == 1 else None
        if rows is None:
            lengths = ", ".join(f'"{key}" {len(inner)}' for key, inner in value.items())
            message = f"columns of different lengths: {lengths}"
            raise RowError("shape", message, "give each column one value per row")
        return [dict(zip(value, row, strict=True)) for row in rows]
    return None


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(inner, kind) for inner in values)


def _zipped(names: Any, cells: list[Any]) -> dict[str, Any]:
    if not _are(names, str) or len(names) != len(cells):
        raise RowError("shape", "a row does not have one cell per column",
                       "restore the file")  # fmt: skip
    return dict(zip(names, cells, strict=True))


def _by_columns_too_long(name: str) -> Problem:
    message = "one object of more than 16 MiB: its rows cannot be separated"
    fix = "write one object per line: to_json(orient='records', lines=True) in pandas"
    return Problem(name, None, None, "too-long", message, fix)


def _joined(head: bytes, stream: BinaryIO) -> BinaryIO:
    """Read bytes already taken from a stream, then the rest of the stream."""
    taken = io.BytesIO(head)
    return _buffered(lambda size: taken.read(size) or stream.read(size))


# What `xz -9` needs is 65 MiB; a header may ask for 4 GiB.
XZ_MEMORY = 128 << 20

CONTAINERS: dict[str, Callable[[str, BinaryIO, Report], Iterator[Row]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": partial(read_table, usual=","),
    "tsv": partial(read_table, usual="\t"),
    "txt": read_txt,
    "parquet": read_parquet,
}

# What a file named JSON or JSONL may be instead: its first bytes -> (message, fix).
MAGIC = {
    b"\x1f\x8b": ("gzip data", "rename to {stem}.jsonl.gz"),
    b"\x28\xb5\x2f\xfd": ("zstd data", "rename to {stem}.jsonl.zst"),
    b"BZh9": ("bzip2 data", "rename to {stem}.jsonl.bz2"),
    b"\xfd7zXZ\x00": ("xz data", "rename to {stem}.jsonl.xz"),
    b"PAR1": ("Parquet data", "rename to {stem}.parquet"),
    b"ARROW1": ("an Arrow file", "write it as Parquet: datasets, pandas and polars can"),
    b"\xff\xff\xff\xff": ("an Arrow stream", "write it as Parquet: datasets and pandas can"),
    b"PK\x03\x04": ("a zip archive or a workbook", "unzip it, or save the sheet as CSV in UTF-8"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "save the sheet as CSV in UTF-8"),
    b"SQLite format 3": (
        "a SQLite database",
        "sqlite3 -json {name} 'SELECT * FROM …' > {stem}.json",
    ),
    b"version https://git-lfs": ("a Git LFS pointer, not the data", "git lfs pull"),
    b"\xff\xfe\x00\x00": ("looks like UTF-32", "{utf32}"),
    b"\xff\xfe": ("looks like UTF-16", "{utf16}"),
    b"\xfe\xff": ("looks like UTF-16", "{utf16}"),
    b"\x00\x00\xfe\xff": ("looks like UTF-32", "{utf32}"),
    b"{\x00": ("looks like UTF-16", "{utf16le}"),
    b"[\x00": ("looks like UTF-16", "{utf16le}"),
    b"\x00{": ("looks like UTF-16", "{utf16be}"),
    b"\x00[": ("looks like UTF-16", "{utf16be}"),
}
