"""Files of rankings, preferences or collected votes to weighted preferences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignkit.data.pairs import (
    Aggregate,
    Pairs,
    Weight,
    aggregate,
    expand,
    ranking_of,
    rankings_from_votes,
)
from alignkit.data.problems import Problem
from alignkit.data.read import RANKED, graded_last, load_candidates, load_records
from alignkit.data.records import Event, Preference, Ranking, Record
from alignkit.errors import RecipeError


def pairs_of_files(
    files: Sequence[str],
    *,
    pairs: Pairs = "all",
    weight: Weight = "group",
    aggregate_by: Aggregate | None = None,
    min_agreement: float = 0.0,
    candidates: str | None = None,
    **reading: Any,
) -> tuple[list[Preference], list[Problem]]:
    """(preferences, what was left out) of rankings, votes and preferences in several files."""
    problems: list[Problem] = []
    records: list[Record] = []
    for path in files:
        loaded = load_records(path, RANKED, **reading)
        problems += loaded.problems
        records += graded_last(path, loaded.records)
    rankings = [record for record in records if isinstance(record, Ranking)]
    events = [record for record in records if isinstance(record, Event)]
    preferences = [record for record in records if isinstance(record, Preference)]
    if events:
        rankings += _from_votes(events, candidates)
    if aggregate_by is not None:
        rankings += [ranking_of(record) for record in preferences]
        rankings = aggregate(rankings, aggregate_by, min_agreement=min_agreement)
        preferences = []
    cut = [pair for ranking in rankings for pair in expand(ranking, pairs=pairs, weight=weight)]
    return cut + [record for record in preferences if not record.tie], problems


def _from_votes(events: Sequence[Event], candidates: str | None) -> list[Ranking]:
    if candidates is None:
        raise RecipeError(
            "collected votes name their items but do not hold the texts",
            hint="Fix: --candidates FILE, the file that was ranked",
        )
    loaded = load_candidates(candidates)
    items = {record.id: (record.prompt, record.candidates) for record in loaded.records}
    return rankings_from_votes(events, items)
