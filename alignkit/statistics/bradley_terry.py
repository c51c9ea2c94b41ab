"""Rate many models from pairwise judgements: Bradley–Terry, with ties and covariates.

A rating is 1000 + 400 log10(odds); ratings average 1000 within a connected component. Intervals
cluster by prompt, because judgements of the same prompt agree more than those of different prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import numpy as np

from alignkit.errors import TrainingFailed, pick
from alignkit.statistics.distributions import holm, logistic, t_quantile, t_two_sided
from alignkit.statistics.intervals import Floats, Interval, Ints, as_dict, percentile_limits

POINTS = 400 / math.log(10)
# Keeps the rating of a model that won everything finite; moves other ratings by well under a point.
PRIOR = 1e-4


@dataclass(frozen=True)
class Outcomes:
    """Pairwise judgements: `score` (n,) is P(left wins), `group` (n,) numbers the clusters.

    `covariates` (n, k) are differences, left minus right, to be held equal between models.
    """

    models: Sequence[str]
    left: Ints
    right: Ints
    score: Floats
    group: Ints
    covariates: Floats | None = None


@dataclass(frozen=True)
class Ratings:
    """Fitted ratings in the order of `models`; `covariates` are log odds per unit.

    `pairs` holds the difference of every two models that can be compared, with Holm-corrected
    p-values.
    """

    models: list[str]
    rating: list[float]
    ci: list[Interval | None]
    components: list[list[str]]
    pairs: list[dict[str, Any]]
    covariates: list[float]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the `matrix` of a report."""
        return {
            "models": self.models,
            "rating": self.rating,
            "ci": [as_dict(ci) for ci in self.ci],
            "components": self.components,
            "pairs": self.pairs,
        }


def ratings(
    outcomes: Outcomes,
    *,
    ties: str = "half",
    level: float = 0.95,
    draws: int = 0,
    seed: int = 0,
) -> Ratings:
    """Fit the ratings, with sandwich intervals or, given `draws`, a bootstrap of the groups."""
    label = components_of(len(outcomes.models), outcomes.left, outcomes.right)
    cells = _Cells.of(outcomes, ties)
    theta, hessian = _fit(cells, cells.counts, ties)
    centre = _centring(label)
    strength = centre @ theta[: len(label)]
    if draws:
        spread: _Spread = _Resampled.of(cells, theta, ties, centre, draws, seed)
    else:
        spread = _Sandwich.of(cells, theta, hessian, ties, centre)
    n_covariates = 0 if outcomes.covariates is None else outcomes.covariates.shape[1]
    return Ratings(
        models=list(outcomes.models),
        rating=[float(1000 + POINTS * s) for s in strength],
        ci=_intervals(spread, strength, label, cells.n_groups, level),
        components=_named_components(outcomes.models, label),
        pairs=_all_pairs(outcomes.models, spread, strength, label, (cells.n_groups, level)),
        covariates=[float(c) for c in theta[len(label) : len(label) + n_covariates]],
        warnings=_warnings(outcomes, label),
    )


def _intervals(
    spread: _Spread, strength: Floats, label: Ints, groups: int, level: float
) -> list[Interval | None]:
    """Return one interval per model; None without an opponent or with a single group."""
    intervals: list[Interval | None] = []
    for model, own in enumerate(label):
        if groups < 2 or np.sum(label == own) < 2:
            intervals.append(None)
            continue
        low, high = spread.limits(np.eye(len(label))[model], strength, level)
        intervals.append(Interval(level, spread.method, 1000 + POINTS * low, 1000 + POINTS * high))
    return intervals


def _all_pairs(
    models: Sequence[str],
    spread: _Spread,
    strength: Floats,
    label: Ints,
    plan: tuple[int, float],
) -> list[dict[str, Any]]:
    """Return the rating difference, in points, of every two models of one component."""
    groups, level = plan
    rows: list[dict[str, Any]] = []
    for i, j in combinations(range(len(models)), 2):
        if label[i] != label[j] or groups < 2:
            continue
        contrast = np.zeros(len(models))
        contrast[[i, j]] = 1.0, -1.0
        gap, se = float(contrast @ strength), spread.error(contrast)
        low, high = spread.limits(contrast, strength, level)
        rows.append({
            "models": [models[i], models[j]],
            "difference": POINTS * gap,
            "ci": Interval(level, spread.method, POINTS * low, POINTS * high).as_dict(),
            "p_value": t_two_sided(gap / se, groups - 1) if se else float(gap == 0.0),
        })  # fmt: skip
    adjusted = holm([row["p_value"] for row in rows])
    return [row | {"p_holm": p} for row, p in zip(rows, adjusted, strict=True)]


# --- connectivity --------------------------------------------------------------------------------


def components_of(n_models: int, left: Ints, right: Ints) -> Ints:
    """Label the connected component of each model by the smallest model number in it."""
    label = np.arange(n_models)
    edges = np.unique(np.stack([left, right], axis=1), axis=0)
    while True:
        before = label.copy()
        for i, j in edges:
            label[i] = label[j] = min(label[i], label[j])
        if np.array_equal(before, label):
            return label


def unbounded(outcomes: Outcomes, label: Ints) -> list[str]:
    """Return the models that part of their component never beat, or never lost to, even indirectly.

    Their likelihood has no maximum (Ford, Amer. Math. Monthly 64, 1957): only the prior keeps
    their ratings finite.
    """
    left, right, score = outcomes.left, outcomes.right, outcomes.score
    reaches = np.eye(len(label), dtype=np.int64)
    reaches[left[score > 0], right[score > 0]] = 1
    reaches[right[score < 1], left[score < 1]] = 1
    for _ in range(max(1, math.ceil(math.log2(max(len(label), 2))))):
        reaches = np.minimum(reaches @ reaches, 1)
    different = label[:, None] != label[None, :]
    bound = np.all(((reaches * reaches.T) > 0) | different, axis=1)
    return [outcomes.models[model] for model in np.flatnonzero(~bound).tolist()]


def _named_components(models: Sequence[str], label: Ints) -> list[list[str]]:
    return [
        [model for model, own in zip(models, label, strict=True) if own == root]
        for root in sorted(set(label.tolist()))
    ]


def _warnings(outcomes: Outcomes, label: Ints) -> list[str]:
    warnings = []
    parts = len(set(label.tolist()))
    if parts > 1:
        warnings.append(
            f"the models fall into {parts} groups that never met: ratings of different groups "
            "cannot be compared"
        )
    loose = unbounded(outcomes, label)
    if loose:
        warnings.append(
            "won or lost every comparison with some others, so only a weak prior keeps the rating "
            f"finite: {', '.join(loose)}"
        )
    return warnings


def _centring(label: Ints) -> Floats:
    """Return the matrix that subtracts each component's mean from its members."""
    same = (label[:, None] == label[None, :]).astype(float)
    return np.asarray(np.eye(len(label)) - same / same.sum(axis=1, keepdims=True))


# --- tie models ----------------------------------------------------------------------------------
# Each returns the gradient of -log L per row, (n, k), and its Hessian weighted by `weight`, (k, k).
# A model's tie parameter, if it has one, comes last.


def _half(theta: Floats, design: Floats, score: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Count a tie as half a win (Bradley & Terry, Biometrika 39, 1952)."""
    p = logistic(design @ theta)
    return (p - score)[:, None] * design, (design * (weight * p * (1 - p))[:, None]).T @ design


def _davidson(
    theta: Floats, design: Floats, score: Floats, weight: Floats
) -> tuple[Floats, Floats]:
    """Give a tie odds of nu sqrt(pi_i pi_j) (Davidson, JASA 65, 1970).

    The last parameter is log nu.
    """
    d, log_nu = design[:, :-1] @ theta[:-1], theta[-1]
    logits = np.stack([d / 2, np.full_like(d, log_nu), -d / 2], axis=1)
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    seen = _verdicts(score)
    slope = (share - seen) @ np.array([0.5, 0.0, -0.5])
    edge, tie = share[:, 0] - share[:, 2], share[:, 1]
    gradient = np.column_stack([slope[:, None] * design[:, :-1], tie - seen[:, 1]])
    bends = (1 - tie - edge**2) / 4, -tie * edge / 2, tie * (1 - tie)
    return gradient, _bordered(design[:, :-1], weight, *bends)


def _rao_kupper(
    theta: Floats, design: Floats, score: Floats, weight: Floats
) -> tuple[Floats, Floats]:
    """Require a lead of c for a win (Rao & Kupper, JASA 62, 1967); the last parameter is log c.

    log L = (win + tie) log s(d - c) + (loss + tie) log s(-d - c) + tie log(e^2c - 1), with s the
    logistic function.
    """
    d, c = design[:, :-1] @ theta[:-1], math.exp(theta[-1])
    win, tie, loss = _verdicts(score).T
    ahead, behind = win + tie, loss + tie
    p, q = logistic(d - c), logistic(-d - c)
    by_d = behind * (1 - q) - ahead * (1 - p)
    by_c = behind * (1 - q) + ahead * (1 - p) + 2 * tie / math.expm1(-2 * c)
    gradient = np.column_stack([by_d[:, None] * design[:, :-1], by_c * c])
    bend_p, bend_q = ahead * p * (1 - p), behind * q * (1 - q)
    bend_tie = 4 * tie * math.exp(-2 * c) / math.expm1(-2 * c) ** 2
    # The chain rule to log c: c^2 times the curvature in c, and c times the slope.
    bends = bend_p + bend_q, c * (bend_q - bend_p), c * c * (bend_p + bend_q + bend_tie) + c * by_c
    return gradient, _bordered(design[:, :-1], weight, *bends)


def _verdicts(score: Floats) -> Floats:
    """Return the columns win, tie, loss; a soft score counts as the verdict it leans to."""
    return np.stack([score > 0.5, score == 0.5, score < 0.5], axis=1).astype(float)


def _bordered(design: Floats, weight: Floats, own: Floats, cross: Floats, corner: Floats) -> Floats:
    """Return the weighted Hessian of one linear predictor, bordered by one more parameter."""
    top = (design * (weight * own)[:, None]).T @ design
    side = (design.T @ (weight * cross))[:, None]
    return np.block([[top, side], [side.T, np.array([[weight @ corner]])]])


TieModel = Callable[[Floats, Floats, Floats, Floats], tuple[Floats, Floats]]
TIE_MODELS: dict[str, TieModel] = {
    "half": _half,
    "davidson": _davidson,
    "rao-kupper": _rao_kupper,
}


# --- fitting -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cells:
    """Distinct judgements: design (cells, k), score (cells,), counts and groups."""

    design: Floats
    score: Floats
    counts: Floats
    cell: Ints  # (n,) the cell of each judgement
    group: Ints  # (n,) 0..n_groups-1
    n_groups: int

    @classmethod
    def of(cls, outcomes: Outcomes, ties: str) -> _Cells:
        pick(TIE_MODELS, ties, what="tie model")
        models, n = len(outcomes.models), len(outcomes.score)
        columns = [outcomes.left * models + outcomes.right, outcomes.score]
        if outcomes.covariates is not None:
            columns.extend(outcomes.covariates.T)
        key = np.zeros(n, dtype=np.int64)
        for column in columns:
            values, code = np.unique(column, return_inverse=True)
            key = np.unique(key * len(values) + code, return_inverse=True)[1]
        _, where, cell, counts = np.unique(
            key, return_index=True, return_inverse=True, return_counts=True
        )
        design = np.zeros((len(where), models))
        rows = np.arange(len(where))
        design[rows, outcomes.left[where]] = 1.0
        design[rows, outcomes.right[where]] = -1.0
        parts = [design]
        if outcomes.covariates is not None:
            parts.append(outcomes.covariates[where])
        if ties != "half":
            parts.append(np.ones((len(where), 1)))
        names, group = np.unique(outcomes.group, return_inverse=True)
        return cls(
            np.column_stack(parts),
            outcomes.score[where],
            counts.astype(float),
            cell,
            group,
            len(names),
        )


def _fit(
    cells: _Cells, counts: Floats, ties: str, start: Floats | None = None
) -> tuple[Floats, Floats]:
    """Return the maximum a posteriori parameters and the Hessian there, by bounded Newton steps."""
    model = TIE_MODELS[ties]
    theta = np.zeros(cells.design.shape[1]) if start is None else start
    prior = PRIOR * np.eye(len(theta))
    before = math.inf
    for _ in range(500):
        gradient, hessian = model(theta, cells.design, cells.score, counts)
        step = np.linalg.solve(hessian + prior, counts @ gradient + PRIOR * theta)
        longest = float(np.abs(step).max(initial=0.0))
        theta = theta - step * min(1.0, 1.0 / max(longest, 1e-300))
        # Rounding of the gradient shakes parameters that only the prior holds, more so in longer
        # files: a tiny step that no longer shrinks has converged too.
        if longest < 1e-9 or (longest < 1e-6 and longest >= before):
            return theta, hessian + prior
        before = longest
    raise TrainingFailed("the ratings did not converge in 500 Newton steps")


class _Spread(Protocol):
    """Sampling spread of a fit: how far other prompts could have moved it."""

    @property
    def method(self) -> str: ...

    def error(self, contrast: Floats) -> float:
        """Return the standard error of contrast @ strength."""
        ...

    def limits(self, contrast: Floats, strength: Floats, level: float) -> tuple[float, float]:
        """Return the confidence limits of contrast @ strength."""
        ...


@dataclass(frozen=True)
class _Sandwich:
    """H^-1 (sum of outer products of group gradients) H^-1, with t quantiles (White 1982)."""

    pulls: Floats  # (models, groups): contribution of each group to each strength
    method: str = "sandwich"

    @classmethod
    def of(
        cls, cells: _Cells, theta: Floats, hessian: Floats, ties: str, centre: Floats
    ) -> _Sandwich:
        gradient, _ = TIE_MODELS[ties](theta, cells.design, cells.score, cells.counts)
        sums = np.stack(
            [
                np.bincount(cells.group, weights=gradient[cells.cell, column])
                for column in range(gradient.shape[1])
            ],
            axis=1,
        )
        return cls(centre @ np.linalg.solve(hessian, sums.T)[: len(centre)])

    def error(self, contrast: Floats) -> float:
        groups = self.pulls.shape[1]
        return math.sqrt(float(((contrast @ self.pulls) ** 2).sum()) * groups / max(groups - 1, 1))

    def limits(self, contrast: Floats, strength: Floats, level: float) -> tuple[float, float]:
        reach = t_quantile(0.5 + level / 2, max(self.pulls.shape[1] - 1, 1))
        middle, half = float(contrast @ strength), reach * self.error(contrast)
        return middle - half, middle + half


@dataclass(frozen=True)
class _Resampled:
    """Spread of refits on resampled groups."""

    strengths: Floats  # (draws, models)
    groups: int
    method: str = "bootstrap"

    @classmethod
    def of(
        cls, cells: _Cells, theta: Floats, ties: str, centre: Floats, draws: int, seed: int
    ) -> _Resampled:
        generator = np.random.default_rng(seed)
        strengths = np.empty((draws, len(centre)))
        for draw in range(draws):
            drawn = generator.integers(0, cells.n_groups, cells.n_groups)
            times = np.bincount(drawn, minlength=cells.n_groups).astype(np.float64)
            drawn_cells = np.bincount(
                cells.cell, weights=times[cells.group], minlength=len(cells.counts)
            )
            refit, _ = _fit(cells, drawn_cells.astype(np.float64), ties, theta)
            strengths[draw] = centre @ refit[: len(centre)]
        return cls(strengths, cells.n_groups)

    def error(self, contrast: Floats) -> float:
        return float((self.strengths @ contrast).std(ddof=1))

    def limits(self, contrast: Floats, _strength: Floats, level: float) -> tuple[float, float]:
        low, high = percentile_limits(self.strengths @ contrast, max(self.groups, 2), level)
        return float(low), float(high)


# The bootstrap refits the model on every resample, so it takes longer.
INTERVAL_METHODS = ("sandwich", "bootstrap")
