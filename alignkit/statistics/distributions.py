"""Quantiles and tail probabilities of the few distributions that intervals and tests need.

Written on `math` alone, so that a win rate needs no scientific library; the tests hold every
function against an independent one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

NORMAL = NormalDist()


def normal_quantile(probability: float) -> float:
    """The value a standard normal stays below with this probability."""
    return NORMAL.inv_cdf(probability)


def normal_two_sided(z: float) -> float:
    """P(|Z| >= |z|) for a standard normal Z."""
    return math.erfc(abs(z) / math.sqrt(2.0))


def beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    # The fraction converges fast only left of the mean; right of it take the mirrored one.
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - beta_cdf(1.0 - x, b, a)
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    return math.exp(log_front) * _beta_fraction(x, a, b) / a


def _beta_fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of `beta_cdf`, by Lentz's method as Thompson and Barnett gave it."""
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 200 + int(10 * math.sqrt(a + b))):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + numerator * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + numerator / c
            c = c if abs(c) > tiny else tiny
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def _invert(cdf: Callable[[float], float], target: float, low: float, high: float) -> float:
    """The point of [low, high] where an increasing `cdf` reaches `target`, by bisection."""
    for _ in range(200):
        middle = (low + high) / 2.0
        if middle in (low, high):
            break
        if cdf(middle) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def beta_quantile(probability: float, a: float, b: float) -> float:
    """The value a Beta(a, b) variable stays below with this probability."""
    return _invert(lambda x: beta_cdf(x, a, b), probability, 0.0, 1.0)


def t_two_sided(t: float, df: float) -> float:
    """P(|T| >= |t|) for Student's t with `df` degrees of freedom."""
    return beta_cdf(df / (df + t * t), df / 2.0, 0.5)


@lru_cache(maxsize=4096)
def t_quantile(probability: float, df: float) -> float:
    """The value Student's t with `df` degrees of freedom stays below with this probability."""
    if probability < 0.5:
        return -t_quantile(1.0 - probability, df)
    tail = 2.0 * (1.0 - probability)
    if tail >= 1.0:
        return 0.0
    high = 2.0
    while t_two_sided(high, df) > tail:
        high *= 2.0
    return _invert(lambda t: -t_two_sided(t, df), -tail, 0.0, high)


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided binomial p-value of `wins` against `losses` when both are as likely."""
    n, fewer = wins + losses, min(wins, losses)
    if 2 * fewer == n:
        return 1.0
    return min(1.0, 2.0 * beta_cdf(0.5, n - fewer, fewer + 1))


def chi_squared_tail(x: float, df: int) -> float:
    """P(X >= x) for chi-squared with `df` degrees of freedom (regularised upper gamma)."""
    a, half = df / 2.0, x / 2.0
    if half <= 0.0:
        return 1.0
    front = math.exp(a * math.log(half) - half - math.lgamma(a))
    return 1.0 - front * _gamma_series(a, half) if half < a + 1.0 else front * _gamma_tail(a, half)


def _gamma_series(a: float, x: float) -> float:
    """Series of the lower incomplete gamma without its front factor (DLMF 8.7.1)."""
    term = total = 1.0 / a
    k = a
    while term > total * 1e-16:
        k += 1.0
        term *= x / k
        total += term
    return total


def _gamma_tail(a: float, x: float) -> float:
    """Continued fraction of the upper incomplete gamma without its front (DLMF 8.9.2)."""
    b = x + 1.0 - a
    c, d = 1e300, 1.0 / b
    value = d
    for i in range(1, 10_000):
        numerator = -i * (i - a)
        b += 2.0
        d = 1.0 / (numerator * d + b)
        c = b + numerator / c
        value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def kolmogorov_tail(x: float) -> float:
    """P(K >= x) of Kolmogorov's limit distribution, for the two-sample test."""
    if x < 0.2:
        return 1.0
    terms = ((-1) ** (k - 1) * math.exp(-2.0 * (k * x) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, 2.0 * sum(terms)))


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjustment: each p-value corrected for the whole family, same order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
