"""Convert the event file to rankings, tables and other tools' formats, and back.

The event file stays the source of truth; everything written here can be regenerated.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from alignkit.collect.items import item_sha256, pool_of, present
from alignkit.collect.log import EventLog, live, now, rankings_from_events
from alignkit.collect.secret import Marks, digest
from alignkit.data.formats import format_named
from alignkit.data.records import Candidates, Event, Ranking
from alignkit.errors import DataError, RecipeError, pick
from alignkit.files.problems import RowError
from alignkit.files.write import whole_file, write_records, write_rows

TOOLS = ("argilla", "label-studio", "prodigy")
# The keys that turn a task of each tool into a vote; a task is the row without them.
_VOTE_KEYS = {
    "argilla": ("responses",),
    "label-studio": ("annotations",),
    "prodigy": ("accept", "answer", "mapping"),
}
_COLUMNS: dict[str, str] = {
    "id": "TEXT PRIMARY KEY",
    "ts": "TEXT",
    "session": "TEXT",
    "annotator": "TEXT",
    "item": "TEXT",
    "item_sha256": "TEXT",
    "action": "TEXT",
    "stands": "INTEGER",
    "ranks": "TEXT",
    "shown": "TEXT",
    "all_bad": "INTEGER",
    "strength": "INTEGER",
    "comment": "TEXT",
    "reason": "TEXT",
    "active_ms": "INTEGER",
    "wall_ms": "INTEGER",
    "ui": "TEXT",
    "repeat_of": "TEXT",
    "gold": "INTEGER",
    "supersedes": "TEXT",
}


def export_events(
    events: Sequence[Event], to: str, output: Path, candidates: Iterable[Candidates] | None = None
) -> int:
    """Write the events in the format `to`, completely or not at all; return the number of rows."""
    write = pick(WRITERS, to, what="export")
    _make_folder(output)
    return write(events, output, candidates)


def export_tasks(candidates: Iterable[Candidates], to: str, output: Path, *, seed: int) -> int:
    """Write items as tasks for another tool, with completions shuffled and models left out."""
    if to not in TOOLS:
        raise RecipeError(f"candidates can be exported to {', '.join(TOOLS)}, not to {to!r}")
    return write_rows(output, (_task(record, to, seed) for record in candidates))


def events_from_rankings(
    rankings: Iterable[Ranking], *, ui: str, annotator: str | None = None
) -> Iterator[Event]:
    """Convert rankings made elsewhere to events; the same ranking always gives the same event."""
    for ranking in rankings:
        if not ranking.ranks:
            continue
        name = ranking.annotator or annotator
        if name is None:
            raise DataError(f"ranking {ranking.id!r} has no annotator", hint="Add --annotator NAME")
        yield _event(ranking, name, ui)


def merge_events(events: Iterable[Event], log: EventLog) -> tuple[int, int]:
    """Append the events missing in the log; return how many were saved and how many duplicates.

    Raises Conflict, before anything is appended, if the log holds another event with the same id.
    """
    events = list(events)
    for event in events:
        log.check(event)
    saved = duplicates = 0
    for event in events:
        stored = log.append(event)
        saved += stored == "saved"
        duplicates += stored == "duplicate"
    return saved, duplicates


def _event(ranking: Ranking, annotator: str, ui: str) -> Event:
    prompt = [message.model_dump() for message in ranking.prompt]
    candidates = [candidate.model_dump() for candidate in ranking.candidates]
    record = Candidates(prompt=ranking.prompt, candidates=ranking.candidates)
    sha256 = item_sha256(record)
    item = ranking.item or sha256[:16]
    return Event(
        id=_uuid(annotator, item, sha256, sorted(ranking.ranks.items())),
        ts=now(),
        annotator=annotator,
        item=item,
        item_sha256=sha256,
        shown=[candidate.cid for candidate in ranking.candidates],
        action="pair" if len(ranking.candidates) == 2 else "rank",
        ranks=ranking.ranks,
        ui=ui,
        extra={"prompt": prompt, "candidates": candidates},
    )


def _uuid(*parts: object) -> str:
    # Version 8 (RFC 9562): a hash of the content.
    return str(UUID(int=int(digest(*parts)[:32], 16) & ~(0xF << 76) | 0x8 << 76))


def _row(event: Event, stands: bool) -> dict[str, Any]:
    row = {name: getattr(event, name, None) for name in _COLUMNS}
    row["stands"] = stands
    for name in ("ranks", "shown"):
        row[name] = None if row[name] is None else orjson.dumps(row[name]).decode()
    return row


def _rows(events: Sequence[Event]) -> Iterator[dict[str, Any]]:
    standing = {event.id for event in live(events)}
    return (_row(event, event.id in standing) for event in events)


def _to_sqlite(events: Sequence[Event], path: Path, _candidates: object) -> int:
    with whole_file(path) as stream, closing(sqlite3.connect(stream.name)) as database:
        columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
        database.execute(f"CREATE TABLE events ({columns}) STRICT")
        database.execute(
            "CREATE TABLE ranks (event TEXT REFERENCES events, cid TEXT, rank INTEGER) STRICT"
        )
        places = ", ".join(f":{name}" for name in _COLUMNS)
        database.executemany(f"INSERT INTO events VALUES ({places})", _rows(events))
        ranks = (
            (event.id, cid, rank) for event in events for cid, rank in (event.ranks or {}).items()
        )
        database.executemany("INSERT INTO ranks VALUES (?, ?, ?)", ranks)
        database.commit()
    return len(events)


def _to_parquet(events: Sequence[Event], path: Path, _candidates: object) -> int:
    import pyarrow
    import pyarrow.parquet

    kinds = {"TEXT": pyarrow.string(), "INTEGER": pyarrow.int64()}
    flags = ("stands", "all_bad", "gold")
    schema = pyarrow.schema(
        [
            (name, pyarrow.bool_() if name in flags else kinds[kind.split()[0]])
            for name, kind in _COLUMNS.items()
        ]
    )
    table = pyarrow.Table.from_pylist(list(_rows(events)), schema=schema)
    with whole_file(path) as stream:
        pyarrow.parquet.write_table(table, stream.name)
    return len(events)


def _to_rankings(
    events: Sequence[Event], path: Path, candidates: Iterable[Candidates] | None
) -> int:
    rankings = rankings_from_events(events, candidates)
    return write_records(path, rankings)


def _to_tool(name: str) -> Callable[[Sequence[Event], Path, Iterable[Candidates] | None], int]:
    def write(events: Sequence[Event], path: Path, candidates: Iterable[Candidates] | None) -> int:
        by_item: dict[str, list[Ranking]] = {}
        for ranking in rankings_from_events(events, candidates):
            by_item.setdefault(ranking.item, []).append(ranking)
        rows = (row for rankings in by_item.values() for row in _tool_rows(name, rankings))
        return write_rows(path, rows)

    return write


def _tool_rows(name: str, rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Return the rows of one item: one for all annotators, or one per annotator."""
    format = format_named(name)
    try:
        rows = [format.write(ranking) for ranking in rankings]
    except RowError as error:
        raise DataError(
            f"item {rankings[0].item!r}: {error.message}", hint=error.fix.capitalize()
        ) from None
    return [format.merge(rows)] if format.merge and len(rows) > 1 else rows


def _task(record: Candidates, name: str, seed: int) -> dict[str, Any]:
    item = next(iter(pool_of([record]).items.values()), None)
    if item is None:
        raise DataError(f"item {record.id!r} has only one distinct completion")
    shown = present(item, Marks(seed), annotator=name).shown
    blind = [item.by_cid[cid].model_copy(update={"model": None}) for cid in shown]
    ranks = (
        dict.fromkeys(shown, 1) if name == "prodigy" else {c: i + 1 for i, c in enumerate(shown)}
    )
    ranking = Ranking(item=item.id, prompt=record.prompt, candidates=blind, ranks=ranks)
    [row] = _tool_rows(name, [ranking])
    return {key: value for key, value in row.items() if key not in _VOTE_KEYS[name]}


def _make_folder(output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write: {error.strerror}", where=str(output)) from None


Writer = Callable[[Sequence[Event], Path, "Iterable[Candidates] | None"], int]
WRITERS: dict[str, Writer] = {
    "rankings": _to_rankings,
    "sqlite": _to_sqlite,
    "parquet": _to_parquet,
    **{name: _to_tool(name) for name in TOOLS},
}
