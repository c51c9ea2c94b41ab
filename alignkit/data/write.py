"""Rows to files, whole or not at all: a temporary file beside the target, fsync, rename."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from alignkit.data.files import cell_text, compression_of, container_of
from alignkit.data.records import Record, to_json
from alignkit.errors import DataError, DiskFull

RowWriter = Callable[[BinaryIO, Iterable[dict[str, Any]]], int]

PARQUET_BATCH = 2000


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A stream that becomes `path` when the block ends well, and leaves nothing otherwise."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, target)
        _sync_directory(target.parent)
    except OSError as error:
        raise _explain(error, target) from error
    finally:
        partial.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explain(error: OSError, target: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("disk full; nothing was written", where=str(target))
    if error.errno == errno.ENOENT:
        return DataError("the folder does not exist", where=str(target.parent))
    return DataError(f"cannot be written: {error.strerror or error}", where=str(target))


def refuse_in_place(inputs: Iterable[str | Path], output: str | Path) -> None:
    """Never write over what is being read."""
    for path in inputs:
        source = str(path).partition("#")[0]
        # os.path takes a name that is too long for any file for an absent one; Path raises.
        both = os.path.exists(source) and os.path.exists(output)
        if both and os.path.samefile(source, output):
            raise DataError(
                "the output is an input", where=str(output), hint="Fix: name a new file"
            )


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows in the container that the file's name says; how many were written."""
    with whole_file(path) as plain, _compressed(plain, compression_of(str(path))) as stream:
        return WRITERS[container_of(str(path))](stream, rows)


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write our own records; JSON lines take the short way."""
    if container_of(str(path)) != "jsonl":
        return write_rows(path, (record.model_dump() for record in records))
    count = 0
    with whole_file(path) as plain, _compressed(plain, compression_of(str(path))) as stream:
        for record in records:
            stream.write(to_json(record))
            count += 1
    return count


@contextmanager
def _compressed(plain: BinaryIO, compression: str | None) -> Iterator[BinaryIO]:
    if compression is None:
        yield plain
    elif compression == "gzip":
        with gzip.GzipFile(fileobj=plain, mode="wb", filename="", mtime=0) as stream:
            yield cast(BinaryIO, stream)
    else:
        import pyarrow as pa

        sink = pa.PythonFile(_Unclosed(plain), mode="w")
        with pa.CompressedOutputStream(sink, compression) as stream:
            yield cast(BinaryIO, stream)


class _Unclosed(io.RawIOBase):
    """Passes writes on but not `close`: Arrow closes what it writes to, and we have to sync it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self.stream.write(data)


def _write_jsonl(stream: BinaryIO, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    for row in rows:
        stream.write(json_line(row))
        count += 1
    return count


def json_line(row: dict[str, Any]) -> bytes:
    """One line of JSON; integers beyond 64 bits are written as they are."""
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        import json

        return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _write_json(stream: BinaryIO, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    for count, row in enumerate(rows, start=1):
        stream.write((b"[\n" if count == 1 else b",\n") + json_line(row).rstrip(b"\n"))
    stream.write(b"\n]\n" if count else b"[]\n")
    return count


def _write_table(stream: BinaryIO, rows: Iterable[dict[str, Any]], delimiter: str) -> int:
    """A header from the first row; a later row with another key cannot be written."""
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    header: list[str] = []
    count = 0
    for count, row in enumerate(rows, start=1):
        if count == 1:
            header = list(row)
            writer.writerow(header)
        if unknown := row.keys() - set(header):
            raise DataError(
                f"row {count} has {sorted(unknown)[0]!r}, which the first row has not",
                hint="Fix: write .jsonl; a table needs the same columns in every row",
            )
        writer.writerow([cell_text(row.get(key)) for key in header])
    text.detach()
    return count


def _write_csv(stream: BinaryIO, rows: Iterable[dict[str, Any]]) -> int:
    return _write_table(stream, rows, ",")


def _write_tsv(stream: BinaryIO, rows: Iterable[dict[str, Any]]) -> int:
    return _write_table(stream, rows, "\t")


def _write_txt(stream: BinaryIO, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    for row in rows:
        if row.keys() != {"text", "label"} or "\n" in str(row["text"]):
            raise DataError("only text and label fit into a .txt file", hint="Fix: write .jsonl")
        label = row["label"]
        shown = str(int(label)) if isinstance(label, bool) else str(label)
        stream.write(f"{row['text']}\t{shown}\n".encode())
        count += 1
    return count


def _write_parquet(stream: BinaryIO, rows: Iterable[dict[str, Any]]) -> int:
    """Columns of texts, numbers and booleans as they are, anything else as JSON text.

    The rows are held in memory as Arrow tables, since a column's type is known only at the end.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    listed = list(rows)
    names = list(dict.fromkeys(name for row in listed for name in row))
    columns, fields = [], []
    for name in names:
        cells = [row.get(name) for row in listed]
        kinds = {type(cell) for cell in cells if cell is not None}
        if len(kinds) == 1 and kinds <= {str, int, float, bool} and not any(map(_is_huge, cells)):
            column = pa.array(cells)
            fields.append(pa.field(name, column.type))
        else:
            texts = [
                json_line({"": cell})[4:-2].decode() if name in row else None
                for cell, row in zip(cells, listed, strict=True)
            ]
            column = pa.array(texts, pa.string())
            fields.append(pa.field(name, pa.string(), metadata={"alignkit": "json"}))
        columns.append(column)
    table = pa.Table.from_arrays(columns, schema=pa.schema(fields))
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    stream.write(buffer.getvalue().to_pybytes())
    return len(listed)


def _is_huge(cell: Any) -> bool:
    return isinstance(cell, int) and cell.bit_length() > 63


WRITERS: dict[str, RowWriter] = {
    "jsonl": _write_jsonl,
    "json": _write_json,
    "csv": _write_csv,
    "tsv": _write_tsv,
    "txt": _write_txt,
    "parquet": _write_parquet,
}
