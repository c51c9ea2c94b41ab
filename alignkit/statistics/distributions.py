"""Return quantiles and tail probabilities of the few distributions that intervals and tests use.

scipy.special is imported at the first call: that takes 0.3 s, which `--help` must not pay.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

NORMAL = NormalDist()


@cache
def _special() -> Any:
    from scipy import special

    return special


def logistic(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-z)), elementwise and without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(z / 2.0)))


def normal_quantile(probability: float) -> float:
    """Return the value a standard normal stays below with this probability."""
    return NORMAL.inv_cdf(probability)


def normal_two_sided(z: float) -> float:
    """Return P(|Z| >= |z|) for a standard normal Z."""
    return math.erfc(abs(z) / math.sqrt(2.0))


def beta_quantile(probability: float, a: float, b: float) -> float:
    """Return the value a Beta(a, b) variable stays below with this probability."""
    return float(_special().betaincinv(a, b, probability))


def t_two_sided(t: float, df: float) -> float:
    """Return P(|T| >= |t|) for Student's t with `df` degrees of freedom."""
    return 2.0 * float(_special().stdtr(df, -abs(t)))


@lru_cache(maxsize=4096)
def t_quantile(probability: float, df: float) -> float:
    """Return the value Student's t stays below with this probability."""
    return float(_special().stdtrit(df, probability))


def sign_test(wins: int, losses: int) -> float:
    """Return the exact two-sided binomial p-value of `wins` against `losses` at even odds."""
    n, fewer = wins + losses, min(wins, losses)
    if 2 * fewer == n:
        return 1.0
    # P(X <= fewer) of a binomial is an incomplete beta (DLMF 8.17.5).
    return min(1.0, 2.0 * float(_special().betainc(n - fewer, fewer + 1, 0.5)))


def chi_squared_tail(x: float, df: int) -> float:
    """Return P(X >= x) for chi-squared with `df` degrees of freedom."""
    return float(_special().chdtrc(df, x))


def kolmogorov_tail(x: float) -> float:
    """Return P(K >= x) of Kolmogorov's limit distribution, for the two-sample test."""
    return float(_special().kolmogorov(x))


def holm(p_values: list[float]) -> list[float]:
    """Return Holm-adjusted p-values (step-down, for the whole family), in the same order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
