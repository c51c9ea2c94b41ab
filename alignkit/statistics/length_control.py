"""Estimate the win rate at equal completion length.

P(a wins) = sigmoid(intercept + slope * tanh(delta)), where delta is len_b - len_a in standard
deviations; the length-controlled rate is sigmoid(intercept). One judge's verdicts on two policies
rarely identify the slope (one side is longer almost everywhere), so by default a prior holds it
near the value measured for judges. `alpacaeval` is the three-term model of AlpacaEval 2
(arXiv:2404.04475), with the difficulty of each prompt and its regulariser rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from alignkit.errors import DataError, RecipeError
from alignkit.statistics.distributions import logistic
from alignkit.statistics.intervals import (
    Floats,
    Interval,
    Ints,
    percentile_limits,
    resampled_counts,
    wilson_interval,
)

# The slope of judges where it can be measured, and its spread. Calibrated in sample, on the
# verdicts of a GPT-4-turbo judge over AlpacaEval's prompts: another judge may differ.
SLOPE, SLOPE_SD = -1.0, 0.1
# A ridge that only keeps separated data finite; it moves no rate by 1e-6.
LIGHT = 1e-6
# A precision that is as good as infinite: it fixes the slope.
FIXED = 1e12
# If either side is longer in fewer prompts than this, length and quality cannot be separated.
FEWEST_ON_A_SIDE = 0.25
LARGEST_DISAGREEMENT = 0.02
REGULARISER_WEIGHT = 0.2
_CELLS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class LengthControlled:
    """A length-controlled win rate. `coef` is the slope on tanh(delta)."""

    win_rate: float
    ci: Interval | None
    coef: float
    intercept: float
    identified: bool
    warning: str | None
    share_a_longer: float


@dataclass(frozen=True)
class Regulariser:
    """Rows of other models that regularise the slope and the difficulty term; (m,) each."""

    delta: Floats
    difficulty: Floats
    preference: Floats
    weight: Floats


@dataclass(frozen=True)
class Resampling:
    """Settings of the bootstrap: number of draws, seed, clusters and level."""

    draws: int
    seed: int
    clusters: Ints | None = None
    level: float = 0.95


def standardised_difference(len_a: Floats, len_b: Floats) -> Floats:
    """Return (len_b - len_a) / sd, not centred; zeros if no prompt differs.

    Raises DataError if the difference is the same in every prompt.
    """
    difference = len_b - len_a
    if not difference.any():
        return difference
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    if spread <= 1e-9 * float(np.abs(difference).max()):
        raise DataError(
            "the two sides' lengths differ by the same amount in every prompt",
            hint="Length cannot be separated from quality here: report the plain win rate",
        )
    return np.asarray(difference / spread)


def fit(
    design: Floats,
    target: Floats,
    weights: Floats,
    prior: tuple[Floats, Floats],
    start: Floats | None = None,
) -> Floats:
    """Fit soft-label logistic regressions, one per row of `weights`, by Newton's method.

    `design` (n, k), `target` (n,) in [0, 1], `weights` (b, n), `prior` a mean and a precision,
    (k,) each. Returns coefficients (b, k).
    """
    mean, precision = prior
    k = design.shape[1]
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), k * k)
    theta = np.tile(mean if start is None else start, (len(weights), 1))
    for _ in range(100):
        p = logistic(theta @ design.T)
        slope = (weights * (p - target)) @ design + precision * (theta - mean)
        curvature = ((weights * p * (1 - p)) @ products).reshape(-1, k, k) + np.diag(precision)
        step = np.linalg.solve(curvature, slope[:, :, None])[:, :, 0]
        longest = np.abs(step).max(axis=1, keepdims=True)
        theta = theta - step * np.minimum(1.0, 2.0 / np.maximum(longest, 1e-300))
        if float(longest.max()) < 1e-9:
            break
    return theta


def _slope_prior(slope: float | None, mode: str) -> tuple[Floats, Floats]:
    """Return the prior mean and precision of (intercept, slope)."""
    if slope is not None:
        return np.array([0.0, slope]), np.array([LIGHT, FIXED])
    if mode == "free":
        return np.zeros(2), np.array([LIGHT, LIGHT])
    return np.array([0.0, SLOPE]), np.array([LIGHT, SLOPE_SD**-2])


def control_length(
    scores: Floats,
    len_a: Floats,
    len_b: Floats,
    resampling: Resampling,
    *,
    mode: str = "prior",
    slope: float | None = None,
) -> LengthControlled:
    """Fit the two-parameter model; `mode` is prior or free, `slope` fixes it. All arrays (n,)."""
    delta = standardised_difference(len_a, len_b)
    design = np.column_stack([np.ones(len(delta)), np.tanh(delta)])
    prior = _slope_prior(slope, mode)
    intercept, coef = fit(design, scores, np.ones((1, len(scores))), prior)[0]
    rate = float(logistic(intercept))

    def rates(weights: Floats, rows: Floats, target: Floats) -> Floats:
        start = np.array([intercept, coef])
        return logistic(fit(rows, target, weights, prior, start)[:, 0])

    other = "prior" if mode == "free" else "free"
    compared = fit(design, scores, np.ones((1, len(scores))), _slope_prior(None, other))[0]
    gap = abs(float(logistic(compared[0])) - rate)
    resampled = [
        rates(*drawn) for drawn in _resamples(design, scores, resampling) if resampling.draws
    ]
    return _checked(
        rate, _limits(scores, resampled, resampling), float(coef), float(intercept), delta, gap
    )


def control_length_alpacaeval(
    scores: Floats,
    len_a: Floats,
    len_b: Floats,
    difficulty: Floats,
    regulariser: Regulariser,
    resampling: Resampling,
) -> LengthControlled:
    """Fit AlpacaEval 2's model: z = w1 tanh(delta) + w2 difficulty + w3. All arrays (n,)."""
    delta = standardised_difference(len_a, len_b)
    own = np.column_stack([np.tanh(delta), difficulty, np.ones(len(delta))])
    others = np.column_stack(
        [np.tanh(regulariser.delta), regulariser.difficulty, np.zeros(len(regulariser.delta))]
    )
    prior = np.zeros(3), np.full(3, LIGHT)

    def fitted(weights: Floats, rows: Floats, target: Floats, start: Floats | None) -> Floats:
        held = np.tile(regulariser.weight, (len(weights), 1))
        return fit(
            np.vstack([rows, others]),
            np.concatenate([target, regulariser.preference]),
            np.hstack([weights, held]),
            prior,
            start,
        )

    theta = fitted(np.ones((1, len(scores))), own, scores, None)
    rate = float(logistic(own[:, 1:] @ theta[0, 1:]).mean())
    resampled = []
    for weights, rows, target in _resamples(own, scores, resampling):
        drawn = fitted(weights, rows, target, theta[0])
        at_equal_length = logistic(drawn[:, 1:] @ rows[:, 1:].T)
        resampled.append((weights * at_equal_length).sum(axis=1) / weights.sum(axis=1))
    free = fit(
        np.column_stack([np.ones(len(delta)), np.tanh(delta)]),
        scores,
        np.ones((1, len(scores))),
        _slope_prior(None, "free"),
    )[0]
    gap = abs(float(logistic(free[0])) - rate)
    coef, intercept = float(theta[0, 0]), float(theta[0, 2])
    return _checked(rate, _limits(scores, resampled, resampling), coef, intercept, delta, gap)


def _resamples(
    design: Floats, scores: Floats, resampling: Resampling
) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Yield weights (b, rows), design (rows, k) and target (rows,) of resampled prompts, in chunks.

    Equal prompts share a row; with clusters every prompt keeps its own row and clusters are drawn.
    """
    if not resampling.draws:
        return
    clusters = resampling.clusters
    if clusters is None:
        both, times = np.unique(np.column_stack([design, scores]), axis=0, return_counts=True)
        rows, target = both[:, :-1], both[:, -1]
        owner = np.arange(len(both))
    else:
        rows, target = design, scores
        _, owner = np.unique(clusters, return_inverse=True)
        times = np.ones(int(owner.max()) + 1, dtype=np.int64)
    chunk = max(1, _CELLS_AT_ONCE // len(rows)) * len(times)
    for counts in resampled_counts(times, resampling.draws, resampling.seed, chunk=chunk):
        yield counts[:, owner].astype(float), rows, target


def _limits(scores: Floats, resampled: Sequence[Floats], resampling: Resampling) -> Interval | None:
    """Return the percentiles of the refits; Wilson's interval if all scores are the same."""
    clusters = resampling.clusters
    units = len(scores) if clusters is None else len(np.unique(clusters))
    if not resampled or units < 2:
        return None
    if np.all(scores == scores[0]):
        return wilson_interval(float(scores[0]), units, resampling.level)
    low, high = percentile_limits(np.concatenate(resampled), units, resampling.level)
    return Interval(resampling.level, "bootstrap", float(low), float(high))


def _checked(
    rate: float,
    ci: Interval | None,
    coef: float,
    intercept: float,
    delta: Floats,
    gap: float,
) -> LengthControlled:
    """Return the result, with a warning where the data do not identify it."""
    a_longer, b_longer = float(np.mean(delta < 0)), float(np.mean(delta > 0))
    doubts = []
    if min(a_longer, b_longer) < FEWEST_ON_A_SIDE:
        side, share = max((("a", a_longer), ("b", b_longer)), key=lambda pair: pair[1])
        doubts.append(f"{side} is longer in {100 * share:.0f} % of prompts")
    if not gap <= LARGEST_DISAGREEMENT:
        doubts.append(f"a freely fitted slope gives a rate {100 * gap:.1f} points away")
    warning = None
    if doubts:
        warning = (
            f"{' and '.join(doubts)}: these judgements cannot separate length from quality, so "
            f"the rate depends on the assumed slope {coef:.2f}"
        )
    return LengthControlled(rate, ci, coef, intercept, not doubts, warning, a_longer)


def check_options(
    mode: str | None, slope: float | None, difficulty: object, reg_rows: object
) -> None:
    """Refuse settings of length control that contradict each other."""
    if mode not in (None, *MODES):
        raise RecipeError(f"unknown length control {mode!r}", hint=f"Known: {', '.join(MODES)}")
    given = [
        name
        for name, value in (("--difficulty", difficulty), ("--reg-rows", reg_rows))
        if value is not None
    ]
    if mode == "alpacaeval" and len(given) < 2:
        raise RecipeError("--length-control alpacaeval needs --difficulty and --reg-rows")
    if mode != "alpacaeval" and given:
        raise RecipeError(f"{given[0]} is only used by --length-control alpacaeval")
    if slope is not None and mode in ("free", "alpacaeval"):
        raise RecipeError(f"--lc-slope fixes the slope, but --length-control {mode} fits it")
    if slope is not None and not math.isfinite(slope):
        raise RecipeError("--lc-slope must be a finite number")


MODES = ("prior", "free", "alpacaeval")
