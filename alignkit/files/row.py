"""Define one row of a file with its place, and what the readers of all containers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO

from alignkit.errors import DataError
from alignkit.files.problems import Problem, RowError

MAX_LINE = 16 << 20
MAX_RATIO = 200  # text compresses to no less than a hundredth; more is a bomb
RATIO_COUNTS_FROM = 64 << 20

Report = Callable[[Problem], None]


@dataclass(slots=True)
class Row:
    """One row: its 1-based line, its 0-based number, its object and, if read from JSON, its bytes.

    `file` is the file of a folder that the row comes from, None in a file read by its own name.
    """

    line: int
    number: int
    value: dict[str, Any]
    raw: bytes | None = None
    file: str | None = None


def nothing(name: str, blank: int = 0, fix: str = "one JSON object per line") -> Problem:
    """Return the problem of a file without rows."""
    message = "no records" + (f", only {blank} blank lines" if blank else "")
    return Problem(name, None, None, "empty", message, fix)


def placed(error: RowError, name: str, line: int | None) -> Problem:
    """Add the place to a row's error; to an encoding error also the command that converts it."""
    if error.kind == "encoding":
        error.fix = recode(name, "UTF-16" if "UTF-16" in error.message else "WINDOWS-1252")
    return Problem.from_error(error, name, line)


def recode(name: str, encoding: str) -> str:
    """Return the command that converts a file to UTF-8."""
    path = Path(name)
    return f"iconv -f {encoding} -t UTF-8 {quote(name)} > {quote(f'{path.stem}.utf8{path.suffix}')}"


def lines_of(name: str, stream: BinaryIO, report: Report) -> Iterator[bytes]:
    """Yield lines split at "\\n" only, since U+2028 and U+0085 are text; report overlong ones."""
    line = 0
    while raw := stream.readline(MAX_LINE + 1):
        line += 1
        if len(raw) > MAX_LINE and not raw.endswith(b"\n"):
            size = len(raw)
            while (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                size += len(rest)
            report(too_long(name, line, size + len(rest)))
            raw = b""
        yield raw


def too_long(name: str, line: int, size: float, what: str = "line") -> Problem:
    """Return the problem of a row beyond the limit."""
    message = f"{what} is {size / 2**20:.1f} MiB, the limit is 16 MiB"
    return Problem(name, line, None, "too-long", message, "split or remove the row")


def bomb(name: str) -> DataError:
    """Return the error of a file that unpacks to far more than its size."""
    return DataError(
        f"decompresses to more than {MAX_RATIO} times its size",
        where=name,
        hint="Fix: decompress it yourself if you trust it",
    )


def most_bytes(size: int) -> int:
    """Return how many bytes a compressed file of this size may unpack to."""
    return max(RATIO_COUNTS_FROM, size * MAX_RATIO)
