"""Load any file of prompts with several completions as a pool of items, mixed with gold items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alignkit.collect.items import Pool, pool_of
from alignkit.data.read import read_records
from alignkit.data.records import (
    Candidate,
    Candidates,
    Preference,
    Ranking,
    Record,
    template_keys,
)
from alignkit.errors import DataError


def load_pool(
    paths: Sequence[Path], *, format: str | None = None, gold: Path | None = None
) -> Pool:
    """Load the items of the files, in order, with the gold items at even distances."""
    records = [record for path in paths for record in read_candidates(path, format)]
    gold_items = list(_read_gold(gold)) if gold else []
    return pool_of(spread(records, gold_items), file=str(paths[0]))


def spread(records: Sequence[Candidates], gold: Sequence[Candidates]) -> list[Candidates]:
    """Insert the gold items at even distances, so that every stretch of work is tested."""
    mixed = list(records)
    step = (len(records) + 1) / (len(gold) + 1)
    for position in reversed(range(len(gold))):
        mixed.insert(round(step * (position + 1)), gold[position])
    return mixed


def _read_gold(path: Path) -> Iterator[Candidates]:
    for record in read_candidates(path):
        if not record.gold:
            raise DataError(
                f"item {record.id!r} has no expected order",
                where=str(path),
                hint='Give it "gold": {"c0": 1, "c1": 2}',
            )
        yield record


def read_candidates(path: Path, format: str | None = None) -> Iterator[Candidates]:
    """Read candidates, rankings or preferences as candidates to rank.

    Raises DataError for records of any other kind.
    """
    for record in read_records(path, format=format):
        if record.kind not in _AS_CANDIDATES:
            raise DataError(
                f"a {record.kind} cannot be ranked",
                where=str(path),
                hint="Give candidates, rankings or preferences; alignkit generate makes candidates",
            )
        yield _AS_CANDIDATES[record.kind](record)


def _from_ranking(record: Any) -> Candidates:
    ranking: Ranking = record
    return Candidates(
        id=ranking.item or ranking.id,
        prompt=ranking.prompt,
        candidates=ranking.candidates,
        source=ranking.source,
        **template_keys(ranking),
    )


def _from_preference(record: Any) -> Candidates:
    preference: Preference = record
    sides = {"c0": preference.chosen, "c1": preference.rejected}
    return Candidates(
        id=preference.id,
        prompt=preference.prompt,
        candidates=[Candidate(cid=cid, messages=messages) for cid, messages in sides.items()],
        source=preference.source,
        **template_keys(preference),
    )


_AS_CANDIDATES: dict[str, Callable[[Record], Candidates]] = {
    "candidates": lambda record: record,  # type: ignore[dict-item,return-value]
    "ranking": _from_ranking,
    "preference": _from_preference,
}
