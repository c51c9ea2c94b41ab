"""Any file of prompts with several answers as a pool of items, gold items spread among them."""

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
    """The items of the files, in order, with the gold items at even distances."""
    records = [record for path in paths for record in read_candidates(path, format)]
    known = list(_gold(gold)) if gold else []
    return pool_of(spread(records, known), file=str(paths[0]))


def spread(records: Sequence[Candidates], known: Sequence[Candidates]) -> list[Candidates]:
    """`records` with `known` in between, so that no stretch of work is without one."""
    mixed = list(records)
    step = (len(records) + 1) / (len(known) + 1)
    for position in reversed(range(len(known))):
        mixed.insert(round(step * (position + 1)), known[position])
    return mixed


def _gold(path: Path) -> Iterator[Candidates]:
    for record in read_candidates(path):
        if not record.gold:
            raise DataError(
                f"item {record.id!r} has no expected order",
                where=str(path),
                hint='Give it "gold": {"c0": 1, "c1": 2}',
            )
        yield record


def read_candidates(path: Path, format: str | None = None) -> Iterator[Candidates]:
    """What is ranked in a file, whatever kind it is of."""
    for record in read_records(path, format=format):
        if record.kind not in _AS_CANDIDATES:
            raise DataError(
                f"a {record.kind} is nothing to rank",
                where=str(path),
                hint="Candidates, rankings and preferences are; alignkit generate makes candidates",
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
