"""Judge by the scores of any scorer: no order, so each pair is judged once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from alignkit.judges import Comparison, Verdict
from alignkit.scorers import Completed, Scorer, ScoringFailed, WrittenCompletion, finite_scores


class Score(NamedTuple):
    """A completion's score, or None with what went wrong."""

    value: float | None
    error: str | None = None


@dataclass(frozen=True)
class ScoreJudge:
    """The higher score wins, equal scores tie.

    `temperature`: that of a calibrated scorer, whose judge also says how sure it is.
    """

    name: str
    scorer: Scorer
    has_order: bool = False
    temperature: float | None = None

    @classmethod
    def of(cls, scorer: Scorer, temperature: float | None = None) -> ScoreJudge:
        """The judge of a scorer, under its name."""
        return cls(scorer.name, scorer, temperature=temperature)

    def scored(self, items: Sequence[Completed]) -> list[Score]:
        """Score each completion; one that the scorer fails on costs none of the others."""
        try:
            return [Score(s) for s in finite_scores(self.scorer, items, what="judge")]
        except ScoringFailed as failure:
            if len(items) == 1:
                return [Score(None, failure.message)]
        half = len(items) // 2
        return self.scored(items[:half]) + self.scored(items[half:])

    def compare_many(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        scores = self.scored(
            [
                WrittenCompletion(c.prompt, text, c.context, where=c.where, columns=c.columns)
                for c in comparisons
                for text in (c.left, c.right)
            ]
        )
        return [self.verdict(*pair) for pair in zip(scores[::2], scores[1::2], strict=True)]

    def verdict(self, left: Score, right: Score) -> Verdict:
        """Compare two scores."""
        notes = {"score_left": left.value, "score_right": right.value}
        if left.value is None or right.value is None:
            return Verdict(None, left.error or right.error, notes)
        gap = left.value - right.value
        if self.temperature is not None:
            sure = 0.5 * (1.0 + math.tanh(gap / (2 * self.temperature)))
            notes |= {"probability_left": sure, "probability_right": 1.0 - sure}
        return Verdict(0.5 if gap == 0 else float(gap > 0), notes=notes)
