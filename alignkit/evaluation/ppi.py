"""Prediction-powered inference: many cheap verdicts corrected by a few of people.

Angelopoulos et al., arXiv:2311.01453 (PPI++): mean of the people's scores plus lambda times the
judge's mean where nobody looked minus its mean where somebody did. Unbiased for any judge; narrower
than people alone when the judge agrees with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from alignkit.evaluation.distributions import t_quantile
from alignkit.evaluation.intervals import Floats, Interval


@dataclass(frozen=True)
class Corrected:
    """A mean of people's scores, sharpened by a judge; `weight` is lambda."""

    value: float
    se: float
    ci: Interval
    weight: float
    n_human: int
    n_judge: int


def corrected_mean(
    judge: Floats, human: Floats, *, weight: float | None = None, level: float = 0.95
) -> Corrected:
    """`judge` and `human` (n,) scores by prompt, nan where unknown.

    `weight` 1 is the plain estimate, judge mean plus mean(human - judge); None picks the weight
    with the smallest variance (eq. 9), clipped to [0, 1].
    """
    labelled = ~np.isnan(human) & ~np.isnan(judge)
    alone = np.isnan(human) & ~np.isnan(judge)
    h, f, g = human[labelled], judge[labelled], judge[alone]
    n, m = len(h), len(g)
    if n < 2:
        raise ValueError("needs two or more prompts that both people and the judge scored")
    if weight is None:
        spread = float(np.concatenate([f, g]).var(ddof=1))
        covariance = float(np.cov(h, f)[0, 1])
        weight = 0.0 if not spread or not m else covariance / ((1 + n / m) * spread)
        weight = min(max(weight, 0.0), 1.0)
    if not m:
        weight = 0.0
    gap = float(g.mean()) - float(f.mean()) if m else 0.0
    value = float(h.mean()) + weight * gap
    variance = float((h - weight * f).var(ddof=1)) / n
    if m > 1:
        variance += weight**2 * float(g.var(ddof=1)) / m
    se = math.sqrt(variance)
    half = t_quantile(0.5 + level / 2, n - 1) * se
    ci = Interval(level, "prediction-powered", max(0.0, value - half), min(1.0, value + half))
    return Corrected(value, se, ci, weight, n, m)
