"""How well scores agree with rankings: pair accuracy with an interval, by margin, calibration.

numpy only; a ranking is `ranks` (1 is best) beside `scores`, both of length k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkit.statistics.intervals import interval

Floats = NDArray[np.float64]
Ranked = tuple[Sequence[float], Sequence[float]]
BUCKETS = 4


@dataclass(frozen=True)
class PairDifferences:
    """score(better) - score(worse) of every strict pair, (pairs,), and the ranking it is from."""

    difference: Floats
    ranking: NDArray[np.int64]

    @property
    def correct(self) -> Floats:
        """1 where the better one scored higher, 1/2 where both score alike, (pairs,)."""
        return (self.difference > 0) + 0.5 * (self.difference == 0)


def pair_differences(ranked: Sequence[Ranked]) -> PairDifferences:
    """All strict pairs of all rankings."""
    differences: list[float] = []
    origin: list[int] = []
    for index, (ranks, scores) in enumerate(ranked):
        for i, rank in enumerate(ranks):
            for j, other in enumerate(ranks):
                if rank < other:
                    differences.append(scores[i] - scores[j])
                    origin.append(index)
    return PairDifferences(np.array(differences, dtype=float), np.array(origin, dtype=np.int64))


def reward_accuracy(ranked: Sequence[Ranked]) -> dict[str, Any]:
    """Accuracy with a 95 % interval that treats the pairs of a ranking as one cluster, mean
    log-loss, accuracy by size of the score difference, and expected calibration error."""
    pairs = pair_differences(ranked)
    if not len(pairs.difference):
        return {"accuracy": None, "pairs": 0}
    found = interval("t", pairs.correct, pairs.ranking)
    return {
        "accuracy": float(pairs.correct.mean()),
        "accuracy_ci": found.as_dict() if found else None,
        "pairs": len(pairs.difference),
        "loss": float(np.logaddexp(0.0, -pairs.difference).mean()),
        "by_margin": by_margin(pairs),
        "calibration_error": calibration_error(pairs.difference),
    }


def by_margin(pairs: PairDifferences) -> list[dict[str, float]]:
    """Accuracy in equally filled buckets of |score difference|, small ones first."""
    order = np.argsort(np.abs(pairs.difference), kind="stable")
    return [
        {
            "from": float(np.abs(pairs.difference[part]).min()),
            "to": float(np.abs(pairs.difference[part]).max()),
            "accuracy": float(pairs.correct[part].mean()),
            "pairs": len(part),
        }
        for part in np.array_split(order, BUCKETS)
        if len(part)
    ]


def calibration_error(difference: Floats, bins: int = 10) -> float:
    """Expected calibration error of P(better wins) = sigmoid(difference), arXiv:1706.04599.

    Confidence is that of the side the model prefers, so it lies in [1/2, 1].
    """
    confidence = 1 / (1 + np.exp(-np.abs(difference)))
    correct = (difference > 0) + 0.5 * (difference == 0)
    index = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    gaps = [
        abs(float(correct[index == b].mean() - confidence[index == b].mean()))
        * float((index == b).mean())
        for b in np.unique(index)
    ]
    return float(sum(gaps))
