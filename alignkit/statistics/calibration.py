"""Whether a reward model's margins mean what they say: P(chosen is better) = s(margin / T)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from alignkit.statistics.intervals import Floats, wilson


def probability(margins: Floats, temperature: float = 1.0) -> Floats:
    """Bradley–Terry's probability that the first of two is better, from the score difference."""
    return np.asarray(0.5 * (1.0 + np.tanh(margins / (2.0 * temperature))))


def calibration_curve(probabilities: Floats, outcomes: Floats, bins: int = 10) -> list[Any]:
    """Mean probability and observed share in bins of equal width, with Wilson's interval.

    `outcomes` (n,) are 0, 1/2 or 1; empty bins are left out.
    """
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    rows = []
    for number in np.unique(place):
        mask = place == number
        n, share = int(mask.sum()), float(outcomes[mask].mean())
        low, high = wilson(share, n)
        ci = {"level": 0.95, "method": "wilson", "low": low, "high": high}
        mean = float(probabilities[mask].mean())
        rows.append({"n": n, "probability": mean, "observed": share, "ci": ci})
    return rows


def expected_calibration_error(probabilities: Floats, outcomes: Floats, bins: int = 10) -> float:
    """Mean distance of probability and share over the curve's bins (Naeini et al., AAAI 2015)."""
    rows = calibration_curve(probabilities, outcomes, bins)
    total = sum(row["n"] for row in rows)
    return float(sum(row["n"] * abs(row["probability"] - row["observed"]) for row in rows) / total)


def brier_score(probabilities: Floats, outcomes: Floats) -> float:
    """Mean squared distance of probability and outcome."""
    return float(((probabilities - outcomes) ** 2).mean())


def log_loss(margins: Floats, outcomes: Floats, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of outcomes in [0, 1]."""
    z = margins / temperature
    return float((np.logaddexp(0.0, z) - outcomes * z).mean())


def fit_temperature(margins: Floats, outcomes: Floats) -> float | None:
    """The temperature with the smallest log loss (Guo et al., arXiv:1706.04599).

    The loss is convex in 1/T, so its slope there is brought to zero by bisection. None when no
    temperature is best: every margin right, or margins that say no more than chance.
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
