"""Score the candidates of records: of items that people rank, and of rankings."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.data.records import Candidate, Candidates, Ranking
from alignkit.data.template_input import TemplateContext
from alignkit.evaluation.reward_trial import ScoredRanking
from alignkit.scorers import Scorer, WrittenCompletion, finite_scores
from alignkit.training.rows import place


def candidate_scores(
    scorer: Scorer, records: Sequence[Candidates | Ranking], *, what: str = "judge"
) -> list[dict[str, float]]:
    """Score each candidate by its cid, record by record. Raises ScoringFailed for one without."""
    flat = [_written(record, candidate) for record in records for candidate in record.candidates]
    scores = iter(finite_scores(scorer, flat, what=what))
    return [{candidate.cid: next(scores) for candidate in r.candidates} for r in records]


def _written(record: Candidates | Ranking, candidate: Candidate) -> WrittenCompletion:
    return WrittenCompletion(
        record.prompt,
        candidate.messages[-1].content,
        TemplateContext.of(record),
        candidate.completion,
        where=place(record),
        columns=record.extra,
    )


def prompts_of(records: Sequence[Candidates | Ranking]) -> list[WrittenCompletion]:
    """The records' prompts without a completion, for checks before anything is scored."""
    return [WrittenCompletion(r.prompt, "", where=place(r), columns=r.extra) for r in records]


def scored_rankings(scorer: Scorer, rankings: Sequence[Ranking]) -> list[ScoredRanking]:
    """Rankings with the score of each ranked completion; a candidate's own score is gold."""
    ranked = [
        r.model_copy(update={"candidates": [c for c in r.candidates if c.cid in r.ranks]})
        for r in rankings
    ]
    found = []
    for ranking, scores in zip(ranked, candidate_scores(scorer, ranked), strict=True):
        gold = [c.score for c in ranking.candidates if c.score is not None]
        category = ranking.extra.get("category") or ranking.extra.get("subset")
        found.append(
            ScoredRanking(
                id=ranking.item or ranking.id,
                scores=[scores[c.cid] for c in ranking.candidates],
                ranks=[ranking.ranks[c.cid] for c in ranking.candidates],
                lengths=[len(c.messages[-1].content) for c in ranking.candidates],
                category=None if category is None else str(category),
                gold=gold if len(gold) == len(ranking.candidates) else None,
            )
        )
    return found
