"""Expand rankings to weighted preferences, and combine the votes of several annotators.

Invariant: with `weight="group"` the weights sum to the number of groups with a strict pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, groupby
from typing import Any, Literal

from pydantic import BaseModel

from alignkit.data.records import Candidate, Event, Message, Preference, Ranking, template_keys
from alignkit.data.voting import (
    ANNOTATOR_KEYS,
    aligned,
    annotator_in,
    last_votes,
    standing,
    voter,
)
from alignkit.errors import DataError
from alignkit.files.problems import RowError
from alignkit.files.validated import validated

Pairs = Literal["all", "adjacent", "best-worst", "best-vs-rest"]
Weight = Literal["group", "pair"]
Aggregate = Literal["mean-rank", "borda", "majority"]
Levels = list[list[Candidate]]


def expand(ranking: Ranking, *, pairs: Pairs = "all", weight: Weight = "group") -> list[Preference]:
    """Return the strict preferences of a ranking; ties and unranked completions give none.

    With `weight="group"` each has weight 1/n, so that a prompt counts once however many pairs it
    gives (InstructGPT, arXiv:2203.02155, eq. 1); with `"pair"` each has weight 1.
    """
    strict = list(SELECTIONS[pairs](_levels(ranking)))
    share = 1.0 / len(strict) if weight == "group" and strict else 1.0
    group = _group(ranking)
    return [
        Preference(
            id=f"{ranking.id}/{better.cid}>{worse.cid}",
            prompt=ranking.prompt,
            chosen=better.completion,
            rejected=worse.completion,
            margin=_margin(better, worse),
            weight=share,
            group=group,
            source=ranking.source,
            **template_keys(ranking),
        )
        for better, worse in strict
    ]


def _group(ranking: Ranking) -> str:
    """Name one group per item and annotator."""
    item = ranking.item or ranking.id
    return item if ranking.annotator is None else f"{item}@{ranking.annotator}"


def _margin(better: Candidate, worse: Candidate) -> float | None:
    if better.score is None or worse.score is None or better.score <= worse.score:
        return None
    return better.score - worse.score


def _levels(ranking: Ranking) -> Levels:
    """Group the ranked candidates by rank, best first; equal ranks share a level."""
    ranked = [candidate for candidate in ranking.candidates if candidate.cid in ranking.ranks]
    ranked.sort(key=lambda candidate: ranking.ranks[candidate.cid])
    return [list(level) for _, level in groupby(ranked, key=lambda c: ranking.ranks[c.cid])]


def _all(levels: Levels) -> Iterator[tuple[Candidate, Candidate]]:
    for upper, lower in combinations(levels, 2):
        yield from ((better, worse) for better in upper for worse in lower)


def _adjacent(levels: Levels) -> Iterator[tuple[Candidate, Candidate]]:
    for upper, lower in zip(levels, levels[1:], strict=False):
        yield from ((better, worse) for better in upper for worse in lower)


def _best_worst(levels: Levels) -> Iterator[tuple[Candidate, Candidate]]:
    if len(levels) > 1:
        yield from ((better, worse) for better in levels[0] for worse in levels[-1])


def _best_vs_rest(levels: Levels) -> Iterator[tuple[Candidate, Candidate]]:
    for lower in levels[1:]:
        yield from ((better, worse) for better in levels[0] for worse in lower)


SELECTIONS: dict[str, Callable[[Levels], Iterator[tuple[Candidate, Candidate]]]] = {
    "all": _all,
    "adjacent": _adjacent,
    "best-worst": _best_worst,
    "best-vs-rest": _best_vs_rest,
}


def ranking_of(preference: Preference) -> Ranking:
    """Return a preference as a ranking of two: chosen first, or both first if it is a tie.

    Its margin and weight, if set, move to `extra`: a ranking has no field for them. A column of
    the row that names the annotator sets the ranking's.
    """
    values = {"margin": preference.margin, "weight": preference.weight}
    usual = {"margin": None, "weight": 1.0}
    return Ranking(
        id=preference.id,
        item=preference.group or preference.id,
        prompt=preference.prompt,
        candidates=[
            Candidate(cid="chosen", messages=preference.chosen),
            Candidate(cid="rejected", messages=preference.rejected),
        ],
        ranks={"chosen": 1, "rejected": 1 if preference.tie else 2},
        annotator=annotator_in(preference.extra),
        source=preference.source,
        extra=preference.extra | {k: v for k, v in values.items() if v != usual[k]},
        **template_keys(preference),
    )


# --- several annotators -------------------------------------------------------------------------


def aggregate(
    rankings: Iterable[Ranking], method: Aggregate, *, min_agreement: float = 0.0
) -> list[Ranking]:
    """Combine the rankings of several annotators into one per item, in order of appearance.

    `voting` defines what an item is and which votes count. `mean-rank` orders by mean rank,
    `borda` by the share of rivals beaten (a tie counts half), `majority` by the number of rivals
    that most annotators place lower. Items whose annotators agree on less than `min_agreement` of
    their pairs are left out.
    """
    items: dict[str, list[Ranking]] = {}
    together = aligned(rankings)
    for ranking in together:
        items.setdefault(ranking.item, [])
    for ranking in last_votes(together, voter).votes:
        items[ranking.item].append(ranking)
    result = []
    for item, votes in items.items():
        if _agreement(votes) < min_agreement:
            continue
        points = POINTS[method](votes)
        order = sorted(set(points.values()), reverse=True)
        ranks = {cid: order.index(point) + 1 for cid, point in points.items()}
        candidates = _union(votes)
        result.append(
            votes[0].model_copy(
                update={
                    "id": item,
                    "item": item,
                    "candidates": candidates,
                    "ranks": ranks,
                    "annotator": None,
                    "extra": _shared_extra(votes[0].extra),
                }
            )
        )
    return result


def _shared_extra(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Drop from `extra` what belongs to one annotator."""
    own = (*ANNOTATOR_KEYS, "margin", "weight", "as_read")
    return {key: value for key, value in extra.items() if key not in own}


def _union(votes: Sequence[Ranking]) -> list[Candidate]:
    candidates = {c.cid: c for vote in reversed(votes) for c in vote.candidates}
    return [candidates[cid] for cid in dict.fromkeys(c.cid for v in votes for c in v.candidates)]


def _cids(votes: Sequence[Ranking]) -> list[str]:
    return list(dict.fromkeys(cid for vote in votes for cid in vote.ranks))


def _preferred(votes: Sequence[Ranking], left: str, right: str) -> list[float]:
    """Return one value per annotator who ranked both: 1 left is better, 0 right, 0.5 a tie."""
    return [
        0.5
        + 0.5 * ((vote.ranks[left] < vote.ranks[right]) - (vote.ranks[left] > vote.ranks[right]))
        for vote in votes
        if left in vote.ranks and right in vote.ranks
    ]


def _agreement(votes: Sequence[Ranking]) -> float:
    """Return the mean share, over pairs of completions, of the most frequent verdict."""
    shares = []
    for left, right in combinations(_cids(votes), 2):
        verdicts = _preferred(votes, left, right)
        if len(verdicts) > 1:
            shares.append(max(verdicts.count(value) for value in (0.0, 0.5, 1.0)) / len(verdicts))
    return sum(shares) / len(shares) if shares else 1.0


def _mean_rank(votes: Sequence[Ranking]) -> dict[str, float]:
    points = {}
    for cid in _cids(votes):
        ranks = [vote.ranks[cid] for vote in votes if cid in vote.ranks]
        points[cid] = -sum(ranks) / len(ranks)
    return points


def _borda(votes: Sequence[Ranking]) -> dict[str, float]:
    cids = _cids(votes)
    points = {}
    for cid in cids:
        shares = [v for other in cids if other != cid for v in _preferred(votes, cid, other)]
        points[cid] = sum(shares) / len(shares) if shares else 0.5
    return points


def _majority(votes: Sequence[Ranking]) -> dict[str, float]:
    cids = _cids(votes)
    points = dict.fromkeys(cids, 0.0)
    for left, right in combinations(cids, 2):
        balance = sum(value - 0.5 for value in _preferred(votes, left, right))
        points[left] += (balance > 0) - (balance < 0)
        points[right] -= (balance > 0) - (balance < 0)
    return points


POINTS: dict[str, Callable[[Sequence[Ranking]], dict[str, float]]] = {
    "mean-rank": _mean_rank,
    "borda": _borda,
    "majority": _majority,
}


# --- votes of the collector ---------------------------------------------------------------------


def standing_votes(events: Iterable[Event]) -> list[Event]:
    """Keep the last standing vote of each annotator on each item.

    Superseded votes, repeats, undos, skips and flags do not count.
    """
    votes = (
        event
        for event in standing((event.id, event.supersedes, event) for event in events)
        if event.action in ("rank", "pair") and not event.repeat_of
    )
    return last_votes(votes, lambda event: (event.annotator, event.item)).votes


Texts = tuple[Sequence[Message], Sequence[Candidate]]


def rankings_from_votes(
    events: Iterable[Event], items: Mapping[str, Texts] | None = None
) -> list[Ranking]:
    """Return the standing votes as rankings with their texts.

    Texts come from `items` (id -> prompt, candidates), else from the event's `extra`. A verdict on
    a single candidate compares nothing and gives no ranking.
    """
    return [
        _ranking_from_vote(event, items or {})
        for event in standing_votes(events)
        if len(event.ranks or {}) > 1
    ]


def _ranking_from_vote(event: Event, items: Mapping[str, Texts]) -> Ranking:
    prompt, candidates = items.get(event.item) or (
        event.extra.get("prompt"),
        event.extra.get("candidates"),
    )
    if prompt is None or candidates is None:
        raise DataError(
            f"item {event.item!r} is not in any candidates file",
            hint="Fix: give the file that was ranked: --candidates FILE",
        )
    notes = {name: getattr(event, name) for name in ("all_bad", "strength", "comment")}
    try:
        return validated(
            Ranking,
            {
                "id": event.id,
                "item": event.item,
                "prompt": _plain(prompt),
                "candidates": _plain(candidates),
                "ranks": event.ranks or {},
                "annotator": event.annotator,
                "source": event.source and event.source.model_dump(),
                "extra": {name: value for name, value in notes.items() if value},
            },
        )
    except RowError as error:
        raise DataError(
            f"vote {event.id!r} on item {event.item!r}: {error.message}", hint=f"Fix: {error.fix}"
        ) from None


def _plain(values: object) -> object:
    """Convert records among the values to plain objects; the model checks everything else."""
    if not isinstance(values, list | tuple):
        return values
    return [each.model_dump() if isinstance(each, BaseModel) else each for each in values]
