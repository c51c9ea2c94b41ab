"""Intervals that stay valid however often one looks: confidence sequences for a mean in [0, 1].

The hedged betting process of Waudby-Smith & Ramdas (JRSS-B 86, 2024, section 4.4): for each
candidate mean a gambler bets that the scores lie above it and another that they lie below; a mean
whose gamblers got 1/alpha times richer is out, for good.
"""

from __future__ import annotations

import math

import numpy as np

from alignkit.statistics.intervals import Floats, Ints

GRID = 1001


def confidence_sequence(
    scores: Floats, clusters: Ints | None = None, *, level: float = 0.95, grid: int = GRID
) -> tuple[Floats, Floats]:
    """Lower and upper limits after each score, (n,) each; valid at all of them together.

    `scores` (n,) in [0, 1] in the order they came. A candidate that is out stays out, so limits
    only ever close in. With `clusters` (n,) what is bet on is a whole cluster, in the order of its
    first score, and there are limits after each: its summed distance from a candidate, as a share
    of the largest cluster's size, is a fair game under the true mean however its scores hang
    together.
    """
    alpha = 1 - level
    means = np.linspace(0, 1, grid)
    sums, sizes = _units(scores, clusters)
    bets = _bets(sums, sizes, alpha)
    up, down = np.zeros(grid), np.zeros(grid)
    inside = np.ones(grid, dtype=bool)
    # Half the money on each side: a candidate is out when either half is 1/alpha of the whole.
    limit = math.log(2 / alpha)
    # A gambler never risks more than half of what a single score can take.
    cap_up, cap_down = 0.5 / np.maximum(means, 1e-12), 0.5 / np.maximum(1 - means, 1e-12)
    lows, highs = np.empty(len(sums)), np.empty(len(sums))
    for t, (total, size, bet) in enumerate(zip(sums, sizes, bets, strict=True)):
        gain = total - size * means
        up += np.log1p(np.minimum(bet, cap_up) * gain)
        down += np.log1p(-np.minimum(bet, cap_down) * gain)
        inside &= np.maximum(up, down) < limit
        kept = np.flatnonzero(inside)
        if len(kept):
            # The neighbours that are out bound the interval: the grid must not make it shorter.
            lows[t] = means[max(kept[0] - 1, 0)]
            highs[t] = means[min(kept[-1] + 1, grid - 1)]
        else:
            lows[t:], highs[t:] = lows[t - 1], highs[t - 1]
            break
    return lows, highs


def _units(scores: Floats, clusters: Ints | None) -> tuple[Floats, Floats]:
    """Sum of scores and size of what is bet on, both in units of the largest cluster's size."""
    if clusters is None:
        return scores, np.ones(len(scores))
    _, first, index = np.unique(clusters, return_index=True, return_inverse=True)
    order = np.argsort(first)
    sums = np.bincount(index, weights=scores)[order]
    sizes = np.bincount(index)[order].astype(np.float64)
    return sums / sizes.max(), sizes / sizes.max()


def _bets(sums: Floats, sizes: Floats, alpha: float) -> Floats:
    """Predictable plug-in bets (eq. 26): each uses the scores before it only."""
    t = np.arange(1, len(sums) + 1)
    mean = (0.5 + np.cumsum(sums)) / (1 + np.cumsum(sizes))
    variance = (0.25 + np.cumsum((sums - sizes * mean) ** 2)) / (t + 1)
    before = np.concatenate([[0.25], variance[:-1]])
    return np.asarray(np.sqrt(2 * math.log(2 / alpha) / (before * t * np.log(t + 1))))
