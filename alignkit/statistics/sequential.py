"""Compute anytime-valid intervals: confidence sequences for a mean in [0, 1].

The hedged betting process of Waudby-Smith & Ramdas (JRSS-B 86, 2024, section 4.4): for each
candidate mean, one gambler bets that the scores lie above it and another that they lie below. A
candidate is ruled out for good once its gamblers multiply their money by 1/alpha.
"""

from __future__ import annotations

import math

import numpy as np

from alignkit.statistics.intervals import Floats, Ints

GRID = 1001


def confidence_sequence(
    scores: Floats, clusters: Ints | None = None, *, level: float = 0.95, grid: int = GRID
) -> tuple[Floats, Floats]:
    """Return lower and upper limits after each score, (n,) each, jointly valid over time.

    `scores` (n,) in [0, 1], in order of arrival. A candidate that is ruled out stays out, so the
    limits only tighten. With `clusters` (n,) each bet is on a whole cluster, ordered by its first
    score, and there is one pair of limits per cluster. A cluster's summed distance from the
    candidate, relative to the size of the largest cluster, is a fair game under the true mean
    whatever the correlation within the cluster.
    """
    alpha = 1 - level
    means = np.linspace(0, 1, grid)
    sums, sizes = _units(scores, clusters)
    bets = _bets(sums, sizes, alpha)
    up, down = np.zeros(grid), np.zeros(grid)
    inside = np.ones(grid, dtype=bool)
    # Half the money is on each side: a candidate is out once either half is 1/alpha of the whole.
    limit = math.log(2 / alpha)
    # A gambler never risks more than half of the money on a single score.
    cap_up, cap_down = 0.5 / np.maximum(means, 1e-12), 0.5 / np.maximum(1 - means, 1e-12)
    lows, highs = np.empty(len(sums)), np.empty(len(sums))
    for t, (total, size, bet) in enumerate(zip(sums, sizes, bets, strict=True)):
        gain = total - size * means
        up += np.log1p(np.minimum(bet, cap_up) * gain)
        down += np.log1p(-np.minimum(bet, cap_down) * gain)
        inside &= np.maximum(up, down) < limit
        remaining = np.flatnonzero(inside)
        if len(remaining):
            # Report the excluded neighbours: the grid must not make the interval shorter.
            lows[t] = means[max(remaining[0] - 1, 0)]
            highs[t] = means[min(remaining[-1] + 1, grid - 1)]
        else:
            lows[t:], highs[t:] = lows[t - 1], highs[t - 1]
            break
    return lows, highs


def _units(scores: Floats, clusters: Ints | None) -> tuple[Floats, Floats]:
    """Return the score sum and size of each bet, both in units of the largest cluster's size."""
    if clusters is None:
        return scores, np.ones(len(scores))
    _, first, index = np.unique(clusters, return_index=True, return_inverse=True)
    order = np.argsort(first)
    sums = np.bincount(index, weights=scores)[order]
    sizes = np.bincount(index)[order].astype(np.float64)
    return sums / sizes.max(), sizes / sizes.max()


def _bets(sums: Floats, sizes: Floats, alpha: float) -> Floats:
    """Return the predictable plug-in bets (eq. 26): each uses only the scores before it."""
    t = np.arange(1, len(sums) + 1)
    mean = (0.5 + np.cumsum(sums)) / (1 + np.cumsum(sizes))
    variance = (0.25 + np.cumsum((sums - sizes * mean) ** 2)) / (t + 1)
    before = np.concatenate([[0.25], variance[:-1]])
    return np.asarray(np.sqrt(2 * math.log(2 / alpha) / (before * t * np.log(t + 1))))
