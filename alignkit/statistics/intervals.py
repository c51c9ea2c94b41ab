"""Estimates of a mean score with intervals that cover, clustered or not.

A score is a number in [0, 1] for each prompt; a cluster is a set of prompts that belong together
(the turns of one conversation, the prompts of one person) and vary together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkit.errors import pick
from alignkit.statistics.distributions import (
    NORMAL,
    beta_quantile,
    normal_quantile,
    t_quantile,
    t_two_sided,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# One chunk of resampled indices is held at a time: about 64 MB.
CHUNK = 8_000_000
# Up to this many distinct clusters, resampling their multiplicities is cheaper than indices.
FEW_CELLS = 500


@dataclass(frozen=True)
class Interval:
    """A confidence interval and how it was made."""

    level: float
    method: str
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and degrees of freedom; se is None when unknowable."""

    value: float
    se: float | None
    n: int
    df: int

    @property
    def p_half(self) -> float:
        """Two-sided t-test p-value against a mean of 1/2."""
        if not self.se:
            return 1.0 if self.value == 0.5 or self.se is None else 0.0
        return t_two_sided((self.value - 0.5) / self.se, self.df)


def mean_estimate(scores: Floats, clusters: Ints | None = None) -> Estimate:
    """Mean and standard error: sd/sqrt(n), or from cluster sums (CR1, Cameron & Miller 2015).

    `scores` (n,), `clusters` (n,) integers from 0. One score has a standard error of 0, like any
    constant; one cluster has none that could be known.
    """
    n = len(scores)
    value = float(scores.mean())
    deviations = scores - value
    constant = bool(np.all(scores == scores[0]))
    if clusters is None:
        se = 0.0 if constant else float(math.sqrt(deviations @ deviations / (n - 1) / n))
        return Estimate(value, se, n, max(n - 1, 1))
    sums = np.bincount(clusters, weights=deviations)
    groups = len(np.unique(clusters))
    if constant:
        return Estimate(value, 0.0, n, max(groups - 1, 1))
    if groups == 1:
        return Estimate(value, None, n, 1)
    se = math.sqrt(groups / (groups - 1) * float(sums @ sums)) / n
    return Estimate(value, se, n, groups - 1)


def mean_interval(estimate: Estimate, level: float = 0.95) -> Interval | None:
    """Student's interval of a mean on any scale; None when its spread is unknown or nothing."""
    if not estimate.se:
        return None
    half = t_quantile(0.5 + level / 2, estimate.df) * estimate.se
    return Interval(level, "t", estimate.value - half, estimate.value + half)


def as_dict(found: Interval | None) -> dict[str, Any] | None:
    """The interval as a report has it; None stays None."""
    return None if found is None else found.as_dict()


def wilson(mean: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share of `n` (JASA 22, 1927)."""
    z = normal_quantile(0.5 + level / 2)
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    low = 0.0 if mean <= 0.0 else centre - half
    high = 1.0 if mean >= 1.0 else centre + half
    return max(0.0, low), min(1.0, high)


def clopper_pearson(mean: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval (Biometrika 26, 1934); a fractional count interpolates."""
    tail, count = (1 - level) / 2, mean * n
    low = 0.0 if count <= 0 else beta_quantile(tail, count, n - count + 1)
    high = 1.0 if count >= n else beta_quantile(1 - tail, count + 1, n - count)
    return low, high


def effective_n(scores: Floats, clusters: Ints | None) -> float:
    """How many independent scores carry the same information: n over the design effect."""
    n = float(len(scores))
    if clusters is None:
        return n
    alone, together = mean_estimate(scores), mean_estimate(scores, clusters)
    if not alone.se or together.se is None:
        return n
    if together.se == 0.0:
        return float(len(np.unique(clusters)))
    # Never more than n: a negative design effect is luck, not information.
    return min(n, n * (alone.se / together.se) ** 2)


def resampled_counts(
    multiplicity: Ints, draws: int, seed: int, *, chunk: int = CHUNK
) -> Iterator[NDArray[np.int64]]:
    """Multinomial resamples, chunk by chunk (b, cells): how often each cell is drawn.

    `multiplicity` (cells,) says how many clusters each cell stands for; the total drawn is the
    number of clusters, so equal clusters may share a cell without changing the distribution.
    """
    generator = np.random.default_rng(seed)
    total, cells = int(multiplicity.sum()), len(multiplicity)
    size = max(1, chunk // cells)
    for start in range(0, draws, size):
        count = min(size, draws - start)
        if total > 4 * cells:
            yield generator.multinomial(total, multiplicity / total, size=count)
            continue
        owner = np.repeat(np.arange(cells), multiplicity)
        yield np.stack(
            [
                np.bincount(owner[generator.integers(0, total, total)], minlength=cells)
                for _ in range(count)
            ]
        )


def bootstrap_means(sums: Floats, counts: Floats, draws: int, seed: int) -> Floats:
    """Means of `draws` resamples of clusters with these sums and counts; (draws,)."""
    cells, multiplicity = np.unique(np.stack([sums, counts]), axis=1, return_counts=True)
    if len(multiplicity) <= FEW_CELLS:
        totals = [
            drawn @ cells.T
            for drawn in resampled_counts(multiplicity.astype(np.int64), draws, seed)
        ]
        both = np.concatenate(totals)
        return np.asarray(both[:, 0] / both[:, 1])
    return _bootstrap_by_index(sums, counts, draws, seed)


def _bootstrap_by_index(sums: Floats, counts: Floats, draws: int, seed: int) -> Floats:
    """The same by drawing cluster indices: for scores that are nearly all distinct."""
    generator = np.random.default_rng(seed)
    clusters = len(sums)
    equal = bool(np.all(counts == counts[0]))
    size = max(1, CHUNK // clusters)
    means = np.empty(draws)
    for start in range(0, draws, size):
        stop = min(start + size, draws)
        index = generator.integers(0, clusters, (stop - start, clusters), dtype=np.int32)
        size_of = counts[0] * clusters if equal else counts[index].sum(axis=1)
        means[start:stop] = sums[index].sum(axis=1) / size_of
    return means


def bca_limits(value: float, resampled: Floats, jackknife: Floats, z: float) -> tuple[float, float]:
    """Bias-corrected and accelerated percentile limits (Efron, JASA 82, 1987).

    `resampled` (draws,), `jackknife` (clusters,) the estimate without each cluster, `z` how many
    standard errors an interval of a normal estimate would reach to either side.
    """
    below = np.mean(resampled < value) + 0.5 * np.mean(resampled == value)
    share = min(max(float(below), 1 / (2 * len(resampled))), 1 - 1 / (2 * len(resampled)))
    bias = NORMAL.inv_cdf(share)
    pull = jackknife.mean() - jackknife
    spread = float((pull**2).sum()) ** 1.5
    acceleration = float((pull**3).sum()) / (6 * spread) if spread > 0 else 0.0
    limits = [
        NORMAL.cdf(bias + (bias + side) / (1 - acceleration * (bias + side))) for side in (-z, z)
    ]
    low, high = np.quantile(resampled, limits)
    return float(low), float(high)


def percentile_limits(resampled: Floats, units: int, level: float = 0.95) -> tuple[Floats, Floats]:
    """Percentile limits over the first axis of `resampled`, widened for few resampled units.

    Plain percentiles reach z standard errors of a spread that is divided by n; those of
    z' = t_(n-1) sqrt(n / (n - 1)) reach as far as Student's interval (Hesterberg, The American
    Statistician 69, 2015, section 5.1).
    """
    reach = t_quantile(0.5 + level / 2, units - 1) * math.sqrt(units / (units - 1))
    tail = NORMAL.cdf(-reach)
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return low, high


def _cluster_totals(scores: Floats, clusters: Ints | None) -> tuple[Floats, Floats]:
    """Sum and count of scores of each cluster; every score is its own without clusters."""
    if clusters is None:
        return scores, np.ones(len(scores))
    _, index = np.unique(clusters, return_inverse=True)
    sums = np.bincount(index, weights=scores).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)


def _t(scores: Floats, clusters: Ints | None, level: float, _draws: int, _seed: int) -> Limits:
    estimate = mean_estimate(scores, clusters)
    if estimate.se is None:
        return None
    half = t_quantile(0.5 + level / 2, estimate.df) * estimate.se
    return max(0.0, estimate.value - half), min(1.0, estimate.value + half)


def _wilson(scores: Floats, clusters: Ints | None, level: float, _draws: int, _seed: int) -> Limits:
    return wilson(float(scores.mean()), effective_n(scores, clusters), level)


def _clopper(
    scores: Floats, clusters: Ints | None, level: float, _draws: int, _seed: int
) -> Limits:
    return clopper_pearson(float(scores.mean()), effective_n(scores, clusters), level)


def _bootstrap(
    scores: Floats, clusters: Ints | None, level: float, draws: int, seed: int
) -> Limits:
    sums, counts = _cluster_totals(scores, clusters)
    if len(sums) < 2 or draws < 1:
        return None
    resampled = bootstrap_means(sums, counts, draws, seed)
    jackknife = (sums.sum() - sums) / (counts.sum() - counts)
    # Student's reach rather than the normal one: the spread is estimated from these clusters, and
    # normal tails would hold the truth in 93 to 94 % for thirty of them.
    reach = t_quantile(0.5 + level / 2, len(sums) - 1)
    return bca_limits(float(scores.mean()), resampled, jackknife, reach)


def interval(
    method: str,
    scores: Floats,
    clusters: Ints | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """The interval of the mean score; None when nothing can be known (no score, one cluster).

    Scores without any variance get Wilson's interval, whatever the method: an interval of no
    width would claim what the data cannot show.
    """
    make = pick(INTERVALS, method, what="interval")
    if not len(scores):
        return None
    estimate = mean_estimate(scores, clusters)
    if estimate.se == 0.0 and method in ("t", "bootstrap"):
        constant = bool(np.all(scores == scores[0]))
        n = len(scores) if constant or clusters is None else effective_n(scores, clusters)
        return Interval(level, "wilson", *wilson(estimate.value, n, level))
    limits = make(scores, clusters, level, draws, seed)
    return None if limits is None else Interval(level, method, *limits)


Limits = tuple[float, float] | None
IntervalMethod = Callable[[Floats, Ints | None, float, int, int], Limits]

INTERVALS: dict[str, IntervalMethod] = {
    "t": _t,
    "wilson": _wilson,
    "clopper": _clopper,
    "bootstrap": _bootstrap,
}
