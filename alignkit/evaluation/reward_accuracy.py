"""Measure how well scores agree with rankings: pair accuracy, by margin, and calibration.

A ranking is a pair of `ranks` (1 is best) and `scores`, both of length k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignkit.statistics.intervals import Floats, Ints, as_dict, interval

Ranked = tuple[Sequence[float], Sequence[float]]
BUCKETS = 4


@dataclass(frozen=True)
class PairDifferences:
    """score(better) - score(worse) of every strict pair, (pairs,), and the index of its ranking."""

    difference: Floats
    ranking: Ints

    @property
    def correct(self) -> Floats:
        """Return 1 where the better one scored higher, 1/2 where scores tie, (pairs,)."""
        return (self.difference > 0) + 0.5 * (self.difference == 0)


def pair_differences(ranked: Sequence[Ranked]) -> PairDifferences:
    """Return all strict pairs of all rankings."""
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
    """Return pair accuracy, log loss, accuracy by margin and expected calibration error.

    The 95 % interval treats the pairs of a ranking as one cluster.
    """
    pairs = pair_differences(ranked)
    if not len(pairs.difference):
        return {"accuracy": None, "pairs": 0}
    return {
        "accuracy": float(pairs.correct.mean()),
        "accuracy_ci": as_dict(interval("t", pairs.correct, pairs.ranking)),
        "pairs": len(pairs.difference),
        "loss": float(np.logaddexp(0.0, -pairs.difference).mean()),
        "by_margin": by_margin(pairs),
        "calibration_error": calibration_error(pairs.difference),
    }


def by_margin(pairs: PairDifferences) -> list[dict[str, float]]:
    """Return the accuracy in equally filled buckets of |score difference|, smallest first."""
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
    """Return the expected calibration error of P(better wins) = sigmoid(difference).

    arXiv:1706.04599. Confidence is in the side the model prefers, so it lies in [1/2, 1].
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
