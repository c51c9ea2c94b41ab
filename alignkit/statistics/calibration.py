"""Measure the calibration of a reward model: whether P(chosen is better) = sigmoid(margin / T)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from alignkit.statistics.distributions import logistic
from alignkit.statistics.intervals import Floats, wilson_interval


def probability(margins: Floats, temperature: float = 1.0) -> Floats:
    """Return Bradley–Terry's probability that the first of two is better, from score margins."""
    return logistic(margins / temperature)


def calibration_curve(probabilities: Floats, outcomes: Floats, bins: int = 10) -> list[Any]:
    """Return mean probability and observed share, with Wilson's interval, in bins of equal width.

    `outcomes` (n,) are 0, 1/2 or 1; empty bins are left out.
    """
    bin_of = np.minimum((probabilities * bins).astype(int), bins - 1)
    rows = []
    for number in np.unique(bin_of):
        mask = bin_of == number
        n, share = int(mask.sum()), float(outcomes[mask].mean())
        mean = float(probabilities[mask].mean())
        ci = wilson_interval(share, n).as_dict()
        rows.append({"n": n, "probability": mean, "observed": share, "ci": ci})
    return rows


def expected_calibration_error(probabilities: Floats, outcomes: Floats, bins: int = 10) -> float:
    """Return the mean gap of probability and share over the bins (Naeini et al., AAAI 2015)."""
    rows = calibration_curve(probabilities, outcomes, bins)
    total = sum(row["n"] for row in rows)
    return float(sum(row["n"] * abs(row["probability"] - row["observed"]) for row in rows) / total)


def brier_score(probabilities: Floats, outcomes: Floats) -> float:
    """Return the mean squared difference of probability and outcome."""
    return float(((probabilities - outcomes) ** 2).mean())


def log_loss(margins: Floats, outcomes: Floats, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood of outcomes in [0, 1]."""
    z = margins / temperature
    return float((np.logaddexp(0.0, z) - outcomes * z).mean())


def fit_temperature(margins: Floats, outcomes: Floats) -> float | None:
    """Fit the temperature with the smallest log loss (Guo et al., arXiv:1706.04599).

    The loss is convex in 1/T, so bisection finds the zero of its slope. None when no temperature
    is best: every margin is right, or the margins are no better than chance.
    """

    def slope(inverse: float) -> float:
        p = 0.5 * (1.0 + np.tanh(margins * inverse / 2.0))
        return float(((p - outcomes) * margins).mean())

    low, high = 1e-6, 1e6
    if slope(low) >= 0.0 or slope(high) <= 0.0:
        return None
    for _ in range(200):
        middle = math.sqrt(low * high)
        if slope(middle) < 0.0:
            low = middle
        else:
            high = middle
    return 1.0 / math.sqrt(low * high)
