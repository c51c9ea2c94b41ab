"""Compare models on the same prompts by their difference on each prompt.

Do not compare two separate intervals: both contain the difficulty of the prompts, which pairing
cancels. That is worth two to three times as many prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from alignkit.statistics.distributions import holm, sign_test, t_quantile, t_two_sided
from alignkit.statistics.intervals import Floats, Ints, mean_estimate


@dataclass(frozen=True)
class ScoredPrompts:
    """A model's score on each prompt it was judged on; `clusters` is indexed by prompt number."""

    prompts: Ints
    scores: Floats
    clusters: Ints | None = None


def paired_differences(models: Mapping[str, ScoredPrompts], level: float) -> list[dict[str, Any]]:
    """Compare every two models: mean difference, interval, paired t, exact McNemar, Holm."""
    rows = []
    for x, y in combinations(models, 2):
        row = _difference(models[x], models[y], level)
        if row is not None:
            rows.append({"models": [x, y], **row})
    adjusted = holm([row["p_value"] for row in rows])
    return [row | {"p_holm": p} for row, p in zip(rows, adjusted, strict=True)]


def _difference(x: ScoredPrompts, y: ScoredPrompts, level: float) -> dict[str, Any] | None:
    prompts, i, j = np.intersect1d(x.prompts, y.prompts, return_indices=True)
    if len(prompts) < 2:
        return None
    one, other = x.scores[i], y.scores[j]
    clusters = None if x.clusters is None else x.clusters[prompts]
    estimate = mean_estimate(one - other, clusters)
    gained = int(np.sum((one > 0.5) & (other <= 0.5)))
    lost = int(np.sum((one <= 0.5) & (other > 0.5)))
    se = estimate.se
    ci, p = None, 1.0
    if se:
        half = t_quantile(0.5 + level / 2, estimate.df) * se
        low, high = estimate.value - half, estimate.value + half
        ci = {"level": level, "method": "paired t", "low": low, "high": high}
        p = t_two_sided(estimate.value / se, estimate.df)
    return {
        "n": len(prompts),
        "difference": estimate.value,
        "se": se,
        "ci": ci,
        "p_value": p,
        "mcnemar": {"gained": gained, "lost": lost, "p": sign_test(gained, lost)},
    }
