"""Keep the small logs that a run writes about itself: metrics.jsonl and samples.jsonl.

One JSON object a line, each with the `step` it is of. Files that people bring are another matter:
`files.rows` reads them, with limits, positions and repairs, none of which our own lines need.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jsonlines

from alignkit.store.whole_files import write_whole

# Not orjson, which jsonlines would take by itself: it writes other bytes for the same row.
_DUMPS = partial(json.dumps, ensure_ascii=False)


def append_rows(log: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows at the end of a log, which is made where there is none."""
    with jsonlines.open(log, "a", dumps=_DUMPS) as stream:
        stream.write_all(rows)


def read_log(log: Path) -> list[dict[str, Any]]:
    """All rows of a log; none where it was never begun."""
    if not log.is_file():
        return []
    with jsonlines.open(log, loads=json.loads) as rows:
        return list(rows.iter(type=dict))


def forget_after(log: Path, step: int) -> None:
    """Drop the rows of later steps, which are run again, and a line that a crash cut short."""
    if not log.exists():
        return
    kept = [line for line in log.read_bytes().splitlines(keepends=True) if _is_until(line, step)]
    write_whole(log, b"".join(kept))


def _is_until(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and bool(json.loads(line)["step"] <= step)
    except ValueError:
        return False
