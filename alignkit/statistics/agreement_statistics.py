"""Compute chance-corrected agreement of categories, orders and ranks, for many resamples at once.

Every function takes counts per item and weights (b, items), the number of times each item was
drawn. It returns one value per row of weights: a row of ones gives the estimate, resampled rows its
bootstrap. A value that is undefined (all votes are the same) is nan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from alignkit.statistics.intervals import (
    Floats,
    Interval,
    Ints,
    percentile_limits,
    resampled_counts,
)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide elementwise; nan where the denominator is only rounding error."""
    safe = np.where(denominator > 1e-12, denominator, np.nan)
    return np.asarray(numerator / safe)


def cohen_kappa(tables: Floats, weights: Floats) -> Floats:
    """Return Cohen's kappa (1960), unweighted. `tables` (items, c, c): x's category by y's."""
    pooled = np.tensordot(weights, tables, axes=1)
    total = pooled.sum(axis=(1, 2))
    observed = np.trace(pooled, axis1=1, axis2=2)
    rows, columns = pooled.sum(axis=2), pooled.sum(axis=1)
    expected = _ratio((rows * columns).sum(axis=1), total)
    return _ratio(observed - expected, total - expected)


def fleiss_kappa(counts: Floats, weights: Floats) -> Floats:
    """Return Fleiss' kappa (1971). Counts (units, c), two or more votes per unit."""
    votes = counts.sum(axis=1)
    agreeing = ((counts**2).sum(axis=1) - votes) / (votes * (votes - 1))
    total = weights.sum(axis=1)
    observed = _ratio(weights @ agreeing, total)
    shares = weights @ counts
    shares = shares / shares.sum(axis=1, keepdims=True)
    expected = (shares**2).sum(axis=1)
    return _ratio(observed - expected, 1.0 - expected)


def krippendorff_alpha(counts: Floats, weights: Floats, *, ordinal: bool = False) -> Floats:
    """Return Krippendorff's alpha (Content Analysis, ch. 12).

    `counts` (units, c): votes per category, categories in order, at least two votes per unit. The
    c x c coincidence matrix weighs the pairs of a unit by 1/(votes - 1).
    """
    votes = counts.sum(axis=1)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(counts.shape[1])
    coincidences = np.tensordot(weights, pairs / (votes - 1)[:, None, None], axes=1)
    marginal = coincidences.sum(axis=2)
    n = marginal.sum(axis=1)
    distance = _ordinal_distance(marginal) if ordinal else _nominal_distance(marginal)
    observed = (coincidences * distance).sum(axis=(1, 2))
    chance = marginal[:, :, None] * marginal[:, None, :]
    expected = (chance * distance).sum(axis=(1, 2)) / np.maximum(n - 1, 1)
    return 1.0 - _ratio(observed, expected)


def _nominal_distance(marginal: Floats) -> Floats:
    return np.broadcast_to(1.0 - np.eye(marginal.shape[1]), (*marginal.shape, marginal.shape[1]))


def _ordinal_distance(marginal: Floats) -> Floats:
    """Return the squared number of votes between two ranks, counting half of each end's own."""
    before = np.cumsum(marginal, axis=1) - marginal / 2
    return np.asarray((before[:, :, None] - before[:, None, :]) ** 2)


def kendall_tau_b(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Kendall's tau-b (Biometrika 33, 1945) of two orders; nan if one is all ties."""
    a = np.sign(np.subtract.outer(x, x))
    b = np.sign(np.subtract.outer(y, y))
    spread = math.sqrt(float((a != 0).sum()) * float((b != 0).sum()))
    return float((a * b).sum()) / spread if spread else math.nan


def kendall_w(ranks: Floats) -> float:
    """Return Kendall's W (1939) with ties.

    `ranks` (raters, things) are mid-ranks; nan if every rater ties everything.
    """
    raters, things = ranks.shape
    sums = ranks.sum(axis=0)
    spread = 12 * float(((sums - sums.mean()) ** 2).sum())
    tied = 0.0
    for row in ranks:
        _, times = np.unique(row, return_counts=True)
        tied += float((times**3 - times).sum())
    ceiling = raters**2 * (things**3 - things) - raters * tied
    return spread / ceiling if ceiling > 0 else math.nan


def mid_ranks(ranks: Sequence[int]) -> Floats:
    """Return ranks 1..n in which ties share the mean of their places."""
    values = np.asarray(ranks, dtype=float)
    below = (values[:, None] > values[None, :]).sum(axis=1)
    equal = (values[:, None] == values[None, :]).sum(axis=1)
    return np.asarray(below + (equal + 1) / 2)


def item_bootstrap(
    statistic: Callable[[Floats], Floats],
    n_items: int,
    draws: int,
    seed: int,
    level: float = 0.95,
    groups: Ints | None = None,
) -> tuple[float | None, Interval | None]:
    """Return the statistic of all items and its percentile interval over resampled items or groups.

    The value is None when it is undefined; the interval is None when it is undefined in most
    resamples.
    """
    if not n_items:
        return None, None
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(np.ones((1, n_items)))[0])
        if not math.isfinite(value):
            return None, None
        if n_items < 2 or draws < 1:
            return value, None
        owner = np.arange(n_items) if groups is None else np.unique(groups, return_inverse=True)[1]
        units = int(owner.max()) + 1
        if units < 2:
            return value, None
        # Draw in chunks that keep the matrix of weights small.
        size = max(units, 400_000 * units // n_items)
        chunks = resampled_counts(np.ones(units, dtype=np.int64), draws, seed, chunk=size)
        drawn = np.concatenate([statistic(counts[:, owner].astype(float)) for counts in chunks])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < draws / 2:
        return value, None
    low, high = percentile_limits(drawn, units, level)
    return value, Interval(level, "bootstrap", float(low), float(high))
