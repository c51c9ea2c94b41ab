"""Write what a person asked for to the place they named: rows, reports, exports."""

from __future__ import annotations

import bz2
import csv
import errno
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson
from pydantic import BaseModel

from alignkit.errors import DataError, DiskFull
from alignkit.files.rows import COMPRESSIONS, SUFFIXES, compression_of, container_of
from alignkit.files.tables import cell_text
from alignkit.store.whole_files import replacing

RowWriter = Callable[[BinaryIO, Iterable[dict[str, Any]]], int]


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a stream that becomes `path` if the block succeeds, and nothing otherwise.

    Follows links. A pipe, or a descriptor that the shell opened (`/dev/stdout`, `>(command)`),
    receives everything at once at the end. Any other device, a socket, a directory and a
    write-protected file are refused. The stream's `name` is the path being written, for libraries
    that open files themselves.
    """
    refuse_foreign(path)
    target = _followed(Path(path))
    try:
        number = _descriptor(target)
        mode = None if number is not None else _mode_of(target)
        if number is not None or (mode is not None and stat.S_ISFIFO(mode)):
            with _spooled(target, number) as stream:
                yield stream
        else:
            with replacing(target) as stream:
                yield stream
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _explain(error, target) from error


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace `path` with `content`; on any failure the old file stays as it was."""
    with whole_file(path) as stream:
        stream.write(content)


@contextmanager
def _spooled(target: Path, number: int | None) -> Iterator[BinaryIO]:
    """Write to a temporary file and copy it into a pipe at the end: a failure sends nothing."""
    try:
        with tempfile.NamedTemporaryFile("wb") as stream:
            yield cast(BinaryIO, stream)
            stream.flush()
            with open(stream.name, "rb") as whole, _sink(target, number) as sink:
                shutil.copyfileobj(whole, sink, 1 << 20)
    except BaseException:
        if number is None:
            _release(target)
        raise


def _sink(target: Path, number: int | None) -> BinaryIO:
    if number is None:
        return open(target, "wb")
    if number == 1:
        sys.stdout.flush()
    return open(os.dup(number), "wb")


def _release(pipe: Path) -> None:
    """End the wait of a process that opened the other end of the pipe."""
    with suppress(OSError):  # nobody waits
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))


def _followed(path: Path) -> Path:
    """Follow links to their target; keep names of open descriptors as they are."""
    for _ in range(40):
        if _descriptor(path) is not None or not path.is_symlink():
            return path
        path = path.parent / os.readlink(path)
    raise DataError("too many links", where=str(path))


_STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}
_OPEN = re.compile(r"/dev/fd/(\d+)|/proc/self/fd/(\d+)")


def _descriptor(path: Path) -> int | None:
    """Return the open descriptor that a name stands for, None for any other name."""
    if str(path) == "-":
        return 1
    name = os.path.normpath(path.absolute())
    match = _OPEN.fullmatch(name)
    return int(match[1] or match[2]) if match else _STANDARD.get(name)


def _mode_of(target: Path) -> int | None:
    """Return the mode of a target that may be written, None if it does not exist yet."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        name = target / "NAME.jsonl"
        raise DataError("is a directory", where=str(target), hint=f"Fix: name a file: {name}")
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        kind = "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise DataError(
            f"is {kind}, not a file", where=str(target), hint="Fix: name a file, or /dev/stdout"
        )
    if not (mode & 0o222 and os.access(target, os.W_OK)):
        fix = f"Fix: chmod u+w {target}, or name a new file"
        raise DataError("is write-protected", where=str(target), hint=fix)
    return mode


def _explain(error: OSError, target: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("disk full; nothing was written", where=str(target))
    if error.errno == errno.EFBIG:
        return DiskFull(
            "larger than the limit on files; nothing was written",
            where=str(target),
            hint="Raise the limit (ulimit -f) and run the same command again",
        )
    if error.errno == errno.ENOENT:
        return DataError("the folder does not exist", where=str(target.parent))
    if error.errno == errno.ENOTDIR:
        return DataError("is a file, not a folder", where=str(target.parent))
    if error.errno == errno.EBADF:
        return DataError("is not open for writing", where=str(target))
    return DataError(f"cannot be written: {error.strerror or error}", where=str(target))


def refuse_foreign(path: str | Path, also: Container[str] = ()) -> None:
    """Refuse a file name whose ending promises a format that is never written."""
    ending = Path(path).suffix.lower()
    if ending in FOREIGN or ending in also:
        raise DataError(
            f"{ending} files cannot be written",
            where=str(path),
            hint=f"Fix: end the name in {', '.join([*SUFFIXES, *COMPRESSIONS])}",
        )


def refuse_in_place(inputs: Iterable[str | Path], output: str | Path) -> None:
    """Refuse to overwrite an input."""
    for path in inputs:
        source = str(path).partition("#")[0]
        target = Path(output)
        # os.path takes a name that is too long for any file for an absent one; Path raises.
        inside = os.path.isdir(source) and Path(source).resolve() in target.resolve().parents
        both = os.path.exists(source) and os.path.exists(output)
        if inside or (both and os.path.samefile(source, output)):
            what = "is inside the input folder" if inside else "is an input"
            raise DataError(
                f"the output {what}",
                where=str(output),
                hint="Fix: name a new file elsewhere" if inside else "Fix: name a new file",
            )


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows in the container that the file name implies; return how many."""
    refuse_foreign(path, NO_ROWS)
    with whole_file(path) as plain, _compressed(plain, compression_of(str(path))) as stream:
        return WRITERS[container_of(str(path))](stream, rows)


def write_records(path: str | Path, records: Iterable[BaseModel]) -> int:
    """Write records in the container that the file name implies; return how many."""
    return write_rows(path, (record.model_dump() for record in records))


@contextmanager
def _compressed(plain: BinaryIO, compression: str | None) -> Iterator[BinaryIO]:
    if compression is None:
        yield plain
    elif compression == "gzip":
        with gzip.GzipFile(fileobj=plain, mode="wb", filename="", mtime=0) as stream:
            yield cast(BinaryIO, stream)
    elif compression in ("bz2", "xz"):
        opener = bz2.BZ2File if compression == "bz2" else lzma.LZMAFile
        with opener(plain, "wb") as stream:
            yield cast(BinaryIO, stream)
    else:
        import pyarrow as pa

        sink = pa.PythonFile(_Unclosed(plain), mode="w")
        with pa.CompressedOutputStream(sink, compression) as stream:
            yield cast(BinaryIO, stream)


class _Unclosed(io.RawIOBase):
    """Forwards writes but not `close`: Arrow closes its target, which must still be synced."""

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
    """Serialize one row as a line of JSON; integers beyond 64 bits stay integers."""
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
    """Write a table with the first row's keys as header; refuse a later row with another key."""
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
                f"row {count} has {sorted(unknown)[0]!r}, which the first row lacks",
                hint="Fix: write .jsonl; a table needs the same columns in every row",
            )
        writer.writerow([cell_text(row.get(key)) for key in header])
    text.detach()
    return count


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
    """Write columns of texts, numbers and booleans as they are, anything else as JSON text.

    All rows are held in memory, since a column's type is known only after the last.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    held = list(rows)
    columns = {name: _column(held, name) for name in _names(held)}
    schema = pa.schema([field for field, _ in columns.values()])
    table = pa.Table.from_arrays([array for _, array in columns.values()], schema=schema)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    stream.write(buffer.getvalue().to_pybytes())
    return len(held)


def _names(rows: list[dict[str, Any]]) -> list[str]:
    """Return every key in order; a later row's new key goes after the one it follows there."""
    names: list[str] = []
    seen: set[str] = set()
    for row in rows:
        if row.keys() <= seen:
            continue
        place = 0
        for name in row:
            if name not in seen:
                names.insert(place, name)
                seen.add(name)
            place = names.index(name) + 1
    return names


def _column(rows: list[dict[str, Any]], name: str) -> tuple[Any, Any]:
    """Return (field, array) of one key; the field's metadata says what null stands for.

    If some rows have a null and others lack the key, only JSON text can tell the two apart.
    """
    import pyarrow as pa

    cells = [row.get(name) for row in rows]
    kinds = {type(cell) for cell in cells if cell is not None}
    absent = any(name not in row for row in rows)
    nulls = any(row.get(name, "") is None for row in rows)
    plain = len(kinds) == 1 and kinds <= {str, int, float, bool} and not any(map(_is_huge, cells))
    if plain and not (absent and nulls):
        array = pa.array(cells)
        return pa.field(name, array.type, metadata={"alignkit": "absent"} if absent else {}), array
    texts = [
        json_line({"": cell}).strip()[4:-1].decode() if name in row else None
        for cell, row in zip(cells, rows, strict=True)
    ]
    field = pa.field(name, pa.string(), metadata={"alignkit": "json"})
    return field, pa.array(texts, pa.string())


def _is_huge(cell: Any) -> bool:
    return isinstance(cell, int) and cell.bit_length() > 63


WRITERS: dict[str, RowWriter] = {
    "jsonl": _write_jsonl,
    "json": _write_json,
    "csv": partial(_write_table, delimiter=","),
    "tsv": partial(_write_table, delimiter="\t"),
    "txt": _write_txt,
    "parquet": _write_parquet,
}

# Endings of formats that are never written here: the content would contradict the name.
FOREIGN = frozenset(
    (
        *(".xlsx", ".xlsm", ".xls", ".ods", ".doc", ".docx", ".pdf", ".odt"),
        *(".arrow", ".feather", ".ipc", ".avro", ".orc", ".h5", ".hdf5", ".npy", ".npz"),
        *(".pkl", ".pickle", ".pt", ".pth", ".bin", ".safetensors", ".gguf"),
        *(".zip", ".tar", ".tgz", ".7z", ".rar", ".lz4", ".br", ".lzma", ".z", ".sz"),
    )
)
# Endings of what some command writes, but never for rows.
NO_ROWS = frozenset((".sqlite", ".sqlite3", ".db", ".html", ".htm", ".xml", ".yaml", ".yml", ".md"))
