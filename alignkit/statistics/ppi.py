"""Correct many cheap verdicts with a few human ones: prediction-powered inference.

PPI++ (Angelopoulos et al., arXiv:2311.01453): human mean + lambda * (judge mean on unlabelled
prompts - judge mean on labelled prompts). It is unbiased for any judge, and narrower than the
human mean alone when the judge agrees with people.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignkit.statistics.distributions import t_quantile
from alignkit.statistics.intervals import Floats, Interval, Ints


@dataclass(frozen=True)
class Corrected:
    """A mean of human scores, sharpened by a judge; `weight` is lambda."""

    value: float
    se: float
    ci: Interval
    weight: float
    n_human: int
    n_judge: int


def corrected_mean(
    judge: Floats,
    human: Floats,
    clusters: Ints | None = None,
    *,
    weight: float | None = None,
    level: float = 0.95,
) -> Corrected:
    """Estimate the human mean from `judge` and `human` scores (n,), nan where unknown.

    `clusters` (n,). `weight` 1 is the plain estimate, judge mean plus mean(human - judge); None
    picks the weight with the smallest variance (eq. 9), clipped to [0, 1].
    """
    labelled = ~np.isnan(human) & ~np.isnan(judge)
    alone = np.isnan(human) & ~np.isnan(judge)
    h, f, g = human[labelled], judge[labelled], judge[alone]
    n, m = len(h), len(g)
    if n < 2:
        raise ValueError("needs at least two prompts scored by both people and the judge")
    weight = _best_weight(h, f, g) if weight is None else weight
    if not m:
        weight = 0.0
    gap = float(g.mean()) - float(f.mean()) if m else 0.0
    value = float(h.mean()) + weight * gap
    parts = [h - weight * f, weight * g] if m else [h - weight * f]
    if clusters is None:
        groups = n
        variance = sum(float(part.var(ddof=1)) / len(part) for part in parts if len(part) > 1)
    else:
        groups = len(np.unique(clusters[labelled]))
        places = [clusters[labelled], clusters[alone]][: len(parts)]
        variance = _clustered_variance(parts, places)
    se = math.sqrt(variance)
    half = t_quantile(0.5 + level / 2, max(groups - 1, 1)) * se
    ci = Interval(level, "prediction-powered", max(0.0, value - half), min(1.0, value + half))
    return Corrected(value, se, ci, weight, n, m)


def _best_weight(h: Floats, f: Floats, g: Floats) -> float:
    spread = float(np.concatenate([f, g]).var(ddof=1))
    if not spread or not len(g):
        return 0.0
    covariance = float(np.cov(h, f)[0, 1])
    return min(max(covariance / ((1 + len(h) / len(g)) * spread), 0.0), 1.0)


def _clustered_variance(parts: Sequence[Floats], clusters: Sequence[Ints]) -> float:
    """Return the CR1 variance of a sum of means whose prompts share clusters, also across means."""
    pulls = np.concatenate([(part - part.mean()) / len(part) for part in parts])
    _, index = np.unique(np.concatenate(clusters), return_inverse=True)
    sums = np.bincount(index, weights=pulls)
    return float(sums @ sums) * len(sums) / max(len(sums) - 1, 1)
