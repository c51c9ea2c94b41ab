"""Turn files of rankings, preferences or collected votes into weighted preferences."""

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
from alignkit.data.read import RANKED, graded_last, load_candidates, load_records
from alignkit.data.records import Event, Preference, Ranking
from alignkit.data.voting import aligned, last_votes, line_of, replaced_problem, voter
from alignkit.files.problems import Problem


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
    """Return (preferences, problems) of rankings, votes and preferences in several files."""
    problems: list[Problem] = []
    votes: list[tuple[str, Ranking]] = []
    preferences: list[Preference] = []
    for path in files:
        loaded = load_records(path, RANKED, **reading)
        problems += loaded.problems
        records = list(graded_last(path, loaded.records))
        votes += [(path, record) for record in records if isinstance(record, Ranking)]
        events = [record for record in records if isinstance(record, Event)]
        if events:
            votes += [(path, ranking) for ranking in _from_votes(events, candidates)]
        compared = [record for record in records if isinstance(record, Preference)]
        if aggregate_by is None:
            preferences += [record for record in compared if not record.tie]
        else:
            votes += [(path, ranking_of(record)) for record in compared]
    rankings, replaced = _without_replaced(votes)
    if aggregate_by is not None:
        replaced.append(_counts(", ".join(files), rankings))
        rankings = aggregate(rankings, aggregate_by, min_agreement=min_agreement)
    expanded = [pair for each in rankings for pair in expand(each, pairs=pairs, weight=weight)]
    return expanded + preferences, problems + replaced


def _without_replaced(
    votes: Sequence[tuple[str, Ranking]],
) -> tuple[list[Ranking], list[Problem]]:
    """Keep each annotator's last vote on an item; return the rankings, and the replaced votes."""
    together = aligned(ranking for _, ranking in votes)
    counted = last_votes(range(len(votes)), lambda i: voter(together[i]))
    replaced = [
        replaced_problem(
            str(together[later].annotator),
            (votes[earlier][0], line_of(votes[earlier][1]), together[earlier].ranks),
            (votes[later][0], line_of(votes[later][1]), together[later].ranks),
        )
        for earlier, later in counted.replaced
    ]
    return [votes[i][1] for i in sorted(counted.votes)], replaced


def _counts(files: str, rankings: Sequence[Ranking]) -> Problem:
    """Report how many votes of how many people meet on how many items."""
    together = aligned(rankings)
    people = len({ranking.annotator for ranking in together} - {None})
    by = _number(people, "annotator") if people else "anonymous people"
    items = len({ranking.item for ranking in together})
    message = f"{_number(len(together), 'vote')} by {by} on {_number(items, 'item')}"
    return Problem(files, None, None, "votes", message, "", "note")


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _from_votes(events: Sequence[Event], candidates: str | None) -> list[Ranking]:
    """Return the standing votes as rankings, with the texts of the file that was ranked."""
    if candidates is None:
        return rankings_from_votes(events)
    loaded = load_candidates(candidates)
    items = {record.id: (record.prompt, record.candidates) for record in loaded.records}
    return rankings_from_votes(events, items)
