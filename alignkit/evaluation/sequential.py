"""Intervals that stay valid however often one looks: confidence sequences for a mean in [0, 1].

The hedged betting process of Waudby-Smith & Ramdas (JRSS-B 86, 2024, section 4.4): for each
candidate mean a gambler bets that the scores lie above it and another that they lie below; a mean
whose gamblers got 1/alpha times richer is out, for good.
"""

from __future__ import annotations

import math

import numpy as np

from alignkit.evaluation.intervals import Floats

GRID = 1001


def confidence_sequence(
    scores: Floats, *, level: float = 0.95, grid: int = GRID
) -> tuple[Floats, Floats]:
    """Lower and upper limits after each score, (n,) each; valid at all of them together.

    `scores` (n,) in [0, 1] in the order they came. A candidate that is out stays out, so limits
    only ever close in.
    """
    alpha = 1 - level
    means = np.linspace(0, 1, grid)
    bets = _bets(scores, alpha)
    up, down = np.zeros(grid), np.zeros(grid)
    inside = np.ones(grid, dtype=bool)
    # Half the money on each side: a candidate is out when either half is 1/alpha of the whole.
    limit = math.log(2 / alpha)
    # A gambler never risks more than half of what a single score can take.
    cap_up, cap_down = 0.5 / np.maximum(means, 1e-12), 0.5 / np.maximum(1 - means, 1e-12)
    lows, highs = np.empty(len(scores)), np.empty(len(scores))
    for t, (score, bet) in enumerate(zip(scores, bets, strict=True)):
        gain = score - means
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


def _bets(scores: Floats, alpha: float) -> Floats:
    """Predictable plug-in bets (eq. 26): each uses the scores before it only."""
    n = len(scores)
    t = np.arange(1, n + 1)
    mean = (0.5 + np.cumsum(scores)) / (t + 1)
    variance = (0.25 + np.cumsum((scores - mean) ** 2)) / (t + 1)
    before = np.concatenate([[0.25], variance[:-1]])
    return np.asarray(np.sqrt(2 * math.log(2 / alpha) / (before * t * np.log(t + 1))))
