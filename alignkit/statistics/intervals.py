"""Estimate a mean score with an interval of honest coverage, clustered or not.

There is one score in [0, 1] per prompt. A cluster is a set of prompts whose scores vary together
(the turns of one conversation, the prompts of one person).
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

# Cells of one chunk of resamples: about 64 MB.
CHUNK = 8_000_000
# Up to this many distinct clusters, drawing multiplicities is cheaper than drawing indices.
FEW_CELLS = 500


@dataclass(frozen=True)
class Interval:
    """A confidence interval and the method that made it."""

    level: float
    method: str
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class MeanEstimate:
    """A mean with its standard error and degrees of freedom; se is None for a single cluster."""

    value: float
    se: float | None
    n: int
    df: int

    @property
    def p_half(self) -> float:
        """Return the two-sided t-test p-value against a mean of 1/2."""
        if not self.se:
            return 1.0 if self.value == 0.5 or self.se is None else 0.0
        return t_two_sided((self.value - 0.5) / self.se, self.df)


def mean_estimate(scores: Floats, clusters: Ints | None = None) -> MeanEstimate:
    """Estimate the mean; se is sd/sqrt(n), or from cluster sums (CR1, Cameron & Miller 2015).

    `scores` (n,), `clusters` (n,) integers from 0. The standard error of constant scores, and of a
    single score, is 0; that of a single cluster is None.
    """
    n = len(scores)
    value = float(scores.mean())
    deviations = scores - value
    constant = bool(np.all(scores == scores[0]))
    if clusters is None:
        se = 0.0 if constant else float(math.sqrt(deviations @ deviations / (n - 1) / n))
        return MeanEstimate(value, se, n, max(n - 1, 1))
    sums = np.bincount(clusters, weights=deviations)
    groups = len(np.unique(clusters))
    if constant:
        return MeanEstimate(value, 0.0, n, max(groups - 1, 1))
    if groups == 1:
        return MeanEstimate(value, None, n, 1)
    se = math.sqrt(groups / (groups - 1) * float(sums @ sums)) / n
    return MeanEstimate(value, se, n, groups - 1)


def mean_interval(estimate: MeanEstimate, level: float = 0.95) -> Interval | None:
    """Return Student's interval of a mean on any scale; None when the error is zero or unknown."""
    if not estimate.se:
        return None
    half = t_quantile(0.5 + level / 2, estimate.df) * estimate.se
    return Interval(level, "t", estimate.value - half, estimate.value + half)


def as_dict(ci: Interval | None) -> dict[str, Any] | None:
    """Return the interval as a report holds it; None stays None."""
    return None if ci is None else ci.as_dict()


def wilson(mean: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for a share of `n` (JASA 22, 1927)."""
    z = normal_quantile(0.5 + level / 2)
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    low = 0.0 if mean <= 0.0 else centre - half
    high = 1.0 if mean >= 1.0 else centre + half
    return max(0.0, low), min(1.0, high)


def wilson_interval(mean: float, n: float, level: float = 0.95) -> Interval:
    """Return `wilson` as an Interval."""
    return Interval(level, "wilson", *wilson(mean, n, level))


def share_of(values: Any) -> dict[str, Any] | None:
    """Return the share of true values with Wilson's interval, as a report holds it."""
    if not len(values):
        return None
    share = float(values.mean())
    return {"value": share, "ci": wilson_interval(share, len(values)).as_dict()}


def clopper_pearson(mean: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Return the exact binomial interval (Biometrika 26, 1934); a fractional count interpolates."""
    tail, count = (1 - level) / 2, mean * n
    low = 0.0 if count <= 0 else beta_quantile(tail, count, n - count + 1)
    high = 1.0 if count >= n else beta_quantile(1 - tail, count + 1, n - count)
    return low, high


def effective_n(scores: Floats, clusters: Ints | None) -> float:
    """Return the number of independent scores with the same information: n / design effect."""
    n = float(len(scores))
    if clusters is None:
        return n
    alone, together = mean_estimate(scores), mean_estimate(scores, clusters)
    if not alone.se or together.se is None:
        return n
    if together.se == 0.0:
        return float(len(np.unique(clusters)))
    # Never more than n: a design effect below 1 is luck, not information.
    return min(n, n * (alone.se / together.se) ** 2)


def resampled_counts(
    multiplicity: Ints, draws: int, seed: int, *, chunk: int = CHUNK
) -> Iterator[NDArray[np.int64]]:
    """Yield multinomial resamples in chunks (b, cells): the number of times each cell is drawn.

    `multiplicity` (cells,) is the number of clusters per cell. Each resample draws as many clusters
    as there are, so equal clusters may share a cell without changing the distribution.
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
    """Return the means of `draws` resamples of clusters with these sums and counts; (draws,)."""
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
    """Draw cluster indices instead: cheaper when nearly all clusters are distinct."""
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
    """Return bias-corrected and accelerated percentile limits (Efron, JASA 82, 1987).

    `resampled` (draws,) are estimates of resamples, `jackknife` (clusters,) the estimate without
    each cluster, `z` the half-width, in standard errors, of the interval of a normal estimate.
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
    """Return percentile limits over the first axis of `resampled`, widened for few units.

    Plain percentiles are too narrow: the bootstrap's variance divides by n and its tails are
    normal. Percentiles at z' = t_(n-1) sqrt(n / (n - 1)) reach as far as Student's interval
    (Hesterberg, The American Statistician 69, 2015, section 5.1).
    """
    reach = t_quantile(0.5 + level / 2, units - 1) * math.sqrt(units / (units - 1))
    tail = NORMAL.cdf(-reach)
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return low, high


def _cluster_totals(scores: Floats, clusters: Ints | None) -> tuple[Floats, Floats]:
    """Return the sum and count of scores per cluster; without clusters, per score."""
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
    # A t quantile, not a normal one: the spread is estimated from these clusters, and with thirty
    # of them normal tails would cover the truth only 93 to 94 % of the time.
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
    """Return the interval of the mean score; None without scores or with a single cluster.

    Constant scores get Wilson's interval, whatever the method: an interval of zero width would
    claim more than the data show.
    """
    make = pick(INTERVALS, method, what="interval")
    if not len(scores):
        return None
    estimate = mean_estimate(scores, clusters)
    if estimate.se == 0.0 and method in ("t", "bootstrap"):
        constant = bool(np.all(scores == scores[0]))
        n = len(scores) if constant or clusters is None else effective_n(scores, clusters)
        return wilson_interval(estimate.value, n, level)
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
