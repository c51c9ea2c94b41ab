"""Measure how far judges agree with each other and with people."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from alignkit.evaluation.judgements import Judgements
from alignkit.statistics.agreement_statistics import (
    cohen_kappa,
    item_bootstrap,
    krippendorff_alpha,
)
from alignkit.statistics.intervals import Floats, Ints, as_dict, interval
from alignkit.statistics.ppi import corrected_mean

# Agreement is a by-product of a report: its bootstrap must not take longer than the report.
MOST_DRAWS = 500
ROUNDING = 1e-12


def _verdicts(scores: Floats) -> Ints:
    """Return 0 for a win of the left side, 1 for a tie, 2 for a loss."""
    return np.where(np.abs(scores - 0.5) <= ROUNDING, 1, np.where(scores > 0.5, 0, 2))


def _by_judge(judgements: Judgements) -> tuple[Ints, Floats, Ints]:
    """Return judges, mean scores (judges, comparisons), and the cluster of each comparison.

    A comparison is a prompt and two models, in either order. A missing score is nan. Without
    clusters every prompt is its own.
    """
    usable = ~np.isnan(judgements.score)
    low = np.minimum(judgements.left, judgements.right)[usable]
    high = np.maximum(judgements.left, judgements.right)[usable]
    score = np.where(
        judgements.left[usable] == low, judgements.score[usable], 1 - judgements.score[usable]
    )
    models = len(judgements.models)
    key = (judgements.prompt[usable] * models + low) * models + high
    keys, comparison = np.unique(key, return_inverse=True)
    prompt = keys // models**2
    group = prompt if judgements.clusters is None else judgements.clusters[prompt]
    judges, judge = np.unique(judgements.judge[usable], return_inverse=True)
    n = int(comparison.max(initial=-1)) + 1
    cell = judge * n + comparison
    counts = np.bincount(cell, minlength=len(judges) * n)
    sums = np.bincount(cell, weights=score, minlength=len(judges) * n)
    with np.errstate(invalid="ignore"):
        return judges, (sums / counts).reshape(len(judges), n), group


def judge_agreement(judgements: Judgements, draws: int, seed: int) -> dict[str, Any] | None:
    """Compare pairs of judges on shared comparisons, with alpha over all; None for one judge."""
    judges, scores, group = _by_judge(judgements)
    if len(judges) < 2:
        return None
    draws = min(draws, MOST_DRAWS)
    names = [judgements.judges[number] for number in judges]
    pairs = [
        {"judges": [names[x], names[y]], **_pair(scores[x], scores[y], draws, seed, group)}
        for x, y in combinations(range(len(judges)), 2)
    ]
    counts = np.stack([(_verdicts(scores) == c) & ~np.isnan(scores) for c in range(3)], axis=2)
    votes = counts.sum(axis=0).astype(float)
    several = votes.sum(axis=1) > 1
    votes, owner = votes[several], group[several]
    value, ci = item_bootstrap(
        lambda w: krippendorff_alpha(votes, w), len(votes), draws, seed, groups=owner
    )
    alpha = {"value": value, "ci": as_dict(ci), "n": len(votes)}
    return {"pairs": pairs, "alpha": alpha | {"metric": "nominal"}}


def _pair(x: Floats, y: Floats, draws: int, seed: int, group: Ints) -> dict[str, Any]:
    both = ~np.isnan(x) & ~np.isnan(y)
    n = int(both.sum())
    if not n:
        return {"n": 0, "agreement": None, "kappa": None, "ci": None}
    one, other = _verdicts(x[both]), _verdicts(y[both])
    tables = np.zeros((n, 3, 3))
    tables[np.arange(n), one, other] = 1
    kappa, ci = item_bootstrap(lambda w: cohen_kappa(tables, w), n, draws, seed, groups=group[both])
    return {
        "n": n,
        "agreement": float(np.mean(one == other)),
        "kappa": kappa,
        "ci": as_dict(ci),
    }


def compare_with_people(
    judge: Floats, human: Floats, clusters: Ints | None = None
) -> dict[str, Any]:
    """Compare a judge's scores with people's per prompt, nan where unknown; needs two in common.

    `accuracy` covers prompts where neither called a tie. `win_rate` is that of people, sharpened by
    the judge's verdicts on prompts without a human vote.
    """
    both = ~np.isnan(human) & ~np.isnan(judge)
    one, other = _verdicts(judge[both]), _verdicts(human[both])
    decided = (one != 1) & (other != 1)
    right = (one == other)[decided].astype(float)
    groups = None if clusters is None else clusters[both]
    accuracy_ci = interval("wilson", right, None if groups is None else groups[decided])
    tables = np.zeros((len(one), 3, 3))
    tables[np.arange(len(one)), one, other] = 1
    kappa, ci = item_bootstrap(
        lambda w: cohen_kappa(tables, w), len(one), MOST_DRAWS, 0, groups=groups
    )
    corrected = corrected_mean(judge, human, clusters)
    return {
        "n": int(both.sum()),
        "accuracy": float(right.mean()) if len(right) else None,
        "accuracy_ci": as_dict(accuracy_ci),
        "kappa": kappa,
        "kappa_ci": as_dict(ci),
        "win_rate": corrected.value,
        "se": corrected.se,
        "ci": corrected.ci.as_dict(),
        "weight": corrected.weight,
    }
