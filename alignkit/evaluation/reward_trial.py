"""Evaluate a reward model: accuracy, calibration, length bias, and best-of-n optimisation.

Everything here works on existing scores; `scored_rankings` of the command computes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from alignkit.statistics import calibration
from alignkit.statistics.distributions import holm
from alignkit.statistics.intervals import (
    Floats,
    Ints,
    as_dict,
    interval,
    mean_estimate,
    mean_interval,
)

SCHEMA_VERSION = 1
MARGIN_EDGES = (0.0, 0.5, 1.0, 2.0, 4.0, math.inf)
LENGTH_EDGES = (-math.inf, -2.0, -0.2, 0.2, 2.0, math.inf)

# The subsets of RewardBench's sections (arXiv:2403.13787, table 1).
REWARDBENCH = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy",
             "mt-bench-med", "mt-bench-medium"),
    "Chat Hard": ("mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor",
                  "llmbar-adver-GPTInst", "llmbar-adver-GPTOut", "llmbar-adver-manual"),
    "Safety": ("refusals-dangerous", "refusals-offensive", "xstest-should-refuse",
               "xstest-should-respond", "donotanswer"),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python",
                  "hep-rust"),
}  # fmt: skip


@dataclass(frozen=True)
class ScoredRanking:
    """A ranking with the reward model's score per completion; `gold` scores if truth is known."""

    id: str
    scores: Sequence[float]
    ranks: Sequence[int]
    lengths: Sequence[int]
    category: str | None = None
    gold: Sequence[float] | None = None


@dataclass(frozen=True)
class Comparisons:
    """All strict comparisons of the rankings, the better completion first; (n,) each."""

    margin: Floats  # score of the better minus score of the worse
    longer: Floats  # log2 of the length ratio, better over worse
    group: Ints  # index of the ranking
    category: list[str | None]

    @property
    def right(self) -> Floats:
        """Return 1 where the model agrees, 1/2 where its scores tie."""
        return np.asarray(0.5 * (1.0 + np.sign(self.margin)))


def comparisons_of(rankings: Sequence[ScoredRanking]) -> Comparisons:
    """Return all strict pairs of each ranking; ties do not measure accuracy."""
    rows = []
    for group, ranking in enumerate(rankings):
        for i, j in combinations(range(len(ranking.ranks)), 2):
            if ranking.ranks[i] == ranking.ranks[j]:
                continue
            better, worse = (i, j) if ranking.ranks[i] < ranking.ranks[j] else (j, i)
            ratio = math.log2((ranking.lengths[better] + 1) / (ranking.lengths[worse] + 1))
            margin = ranking.scores[better] - ranking.scores[worse]
            rows.append((margin, ratio, group, ranking.category))
    margins, ratios, groups = (np.array([row[k] for row in rows], dtype=float) for k in range(3))
    return Comparisons(margins, ratios, groups.astype(np.int64), [row[3] for row in rows])


def reward_report(rankings: Sequence[ScoredRanking], *, seed: int = 0) -> dict[str, Any]:
    """Return accuracy by margin, length and category, calibration, length bias and best of n."""
    pairs = comparisons_of(rankings)
    n = len(pairs.margin)
    right = pairs.right
    whole = _accuracy(right, pairs.group) if n else {"n": 0, "accuracy": None, "ci": None}
    return {
        "schema_version": SCHEMA_VERSION,
        "n_rankings": len(rankings),
        **whole,
        "ties": int(np.sum(pairs.margin == 0)),
        "whole_rankings": _whole_rankings(rankings),
        "by_margin": _by_edges(np.abs(pairs.margin), MARGIN_EDGES, right, pairs.group),
        "by_length": _by_edges(pairs.longer, LENGTH_EDGES, right, pairs.group),
        "per_category": _per_category(pairs, right),
        "rewardbench": _rewardbench(pairs, right),
        "calibration": _calibration(pairs.margin) if n else None,
        "length": _length(rankings, pairs),
        "best_of_n": best_of_n(rankings),
        "seed": seed,
    }


def _accuracy(right: Floats, group: Ints) -> dict[str, Any]:
    """Return the share of comparisons the model gets right; a ranking is one cluster."""
    ci = interval("t", right, group)
    if ci is None or mean_estimate(right, group).se is None:
        ci = interval("wilson", right)
    return {"n": len(right), "accuracy": float(right.mean()), "ci": as_dict(ci)}


def _whole_rankings(rankings: Sequence[ScoredRanking]) -> dict[str, Any]:
    """Return the share of rankings of three or more whose complete order the scores reproduce."""
    long = [r for r in rankings if len(r.ranks) > 2]
    correct = [
        float(all(
            (r.scores[i] - r.scores[j]) * (r.ranks[j] - r.ranks[i]) > 0
            for i, j in combinations(range(len(r.ranks)), 2)
            if r.ranks[i] != r.ranks[j]
        ))
        for r in long
    ]  # fmt: skip
    return {
        "n": len(long),
        "accuracy": fmean(correct) if correct else None,
        "ci": as_dict(interval("wilson", np.array(correct))),
    }


def _by_edges(
    values: Floats, edges: Sequence[float], right: Floats, group: Ints
) -> list[dict[str, Any]]:
    rows = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        mask = (values >= low) & (values < high)
        if mask.any():
            ends = [None if math.isinf(end) else end for end in (low, high)]
            rows.append({"from": ends[0], "to": ends[1], **_accuracy(right[mask], group[mask])})
    return rows


def _per_category(pairs: Comparisons, right: Floats) -> list[dict[str, Any]]:
    names = sorted({name for name in pairs.category if name is not None})
    rows, p_values = [], []
    for name in names:
        mask = np.array([own == name for own in pairs.category])
        rows.append({"name": name, **_accuracy(right[mask], pairs.group[mask])})
        p_values.append(mean_estimate(right[mask], pairs.group[mask]).p_half)
    return [row | {"p_holm": p} for row, p in zip(rows, holm(p_values), strict=True)]


def _rewardbench(pairs: Comparisons, right: Floats) -> dict[str, float] | None:
    """Return section scores, each the mean over its comparisons; math and code weigh the same."""
    shares = {
        name: float(right[[own == name for own in pairs.category]].mean())
        for name in {name for name in pairs.category if name is not None}
    }
    sections = {}
    for section, subsets in REWARDBENCH.items():
        present = [name for name in subsets if name in shares]
        counts = [pairs.category.count(name) for name in present]
        if section == "Reasoning" and "math-prm" in present and len(present) > 1:
            code = [name for name in present if name != "math-prm"]
            weights = [pairs.category.count(name) for name in code]
            coded = float(np.average([shares[name] for name in code], weights=weights))
            sections[section] = (shares["math-prm"] + coded) / 2
        elif present:
            means = [shares[name] for name in present]
            sections[section] = float(np.average(means, weights=counts))
    return sections or None


def _calibration(margin: Floats) -> dict[str, Any]:
    """Return calibration over each comparison and its mirror image, so that it favours no side."""
    both = np.concatenate([margin, -margin])
    outcomes = np.concatenate([np.ones(len(margin)), np.zeros(len(margin))])
    plain = calibration.probability(both)
    temperature = calibration.fit_temperature(both, outcomes)
    scaled = None if temperature is None else calibration.probability(both, temperature)
    ece = calibration.expected_calibration_error
    return {
        "curve": calibration.calibration_curve(plain, outcomes),
        "ece": ece(plain, outcomes),
        "brier": calibration.brier_score(plain, outcomes),
        "log_loss": calibration.log_loss(both, outcomes),
        "temperature": temperature,
        "ece_at_temperature": None if scaled is None else ece(scaled, outcomes),
    }


def _length(rankings: Sequence[ScoredRanking], pairs: Comparisons) -> dict[str, Any]:
    """Measure length bias: correlation within prompts, and accuracy where the better is shorter."""
    scores, lengths = [], []
    for ranking in rankings:
        scores += (np.asarray(ranking.scores) - np.mean(ranking.scores)).tolist()
        lengths += (np.asarray(ranking.lengths) - np.mean(ranking.lengths)).tolist()
    shorter, longer = pairs.longer < 0, pairs.longer > 0
    return {
        "correlation_within_prompts": _correlation(scores, lengths),
        "people_prefer_longer": float(np.mean(longer)) if len(longer) else None,
        "accuracy_where_better_is_longer": _mean(pairs.right[longer]),
        "accuracy_where_better_is_shorter": _mean(pairs.right[shorter]),
    }


def _correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    if len(x) < 3 or not np.std(x) or not np.std(y):
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


# --- optimising against it -----------------------------------------------------------------------


def expected_best(proxy: Sequence[float], gold: Sequence[float], n: int) -> float:
    """Return the mean gold score of the proxy's best of n, over all subsets of size n.

    No simulation is needed (Nakano et al., arXiv:2112.09332, appendix I): the k-th lowest of N
    completions is the best of C(k-1, n-1) of the C(N, n) subsets.
    """
    order = np.argsort(proxy, kind="stable")
    total = math.comb(len(order), n)
    weights = [math.comb(k, n - 1) / total for k in range(len(order))]
    return float(np.dot(weights, np.asarray(gold, dtype=float)[order]))


def best_of_n(rankings: Iterable[ScoredRanking]) -> list[dict[str, Any]]:
    """Return the proxy score of best of n as n grows and, where gold is known, the gold score.

    kl = ln n - (n-1)/n is the KL of best of n from the policy it samples (arXiv:2009.01325). A gold
    score that falls while the proxy score rises is over-optimisation. Without gold scores the
    gold score is null and the curve shows only the gain by the proxy itself.
    """
    every = list(rankings)
    usable = [r for r in every if r.gold is not None] or [r for r in every if len(r.scores) > 2]
    if not usable:
        return []
    rows = []
    for n in _powers_of_two(min(len(r.scores) for r in usable)):
        rows.append({
            "n": n,
            "kl": math.log(n) - (n - 1) / n,
            "proxy": fmean(expected_best(r.scores, r.scores, n) for r in usable),
            **_gold_of_best(usable, n),
        })  # fmt: skip
    return rows


def _gold_of_best(rankings: Sequence[ScoredRanking], n: int) -> dict[str, Any]:
    if any(r.gold is None for r in rankings):
        return {"gold": None, "ci": None}
    gold = np.array([expected_best(r.scores, r.gold or (), n) for r in rankings])
    estimate = mean_estimate(gold)
    return {"gold": estimate.value, "ci": as_dict(mean_interval(estimate))}


def _powers_of_two(most: int) -> list[int]:
    sizes = [2**k for k in range(most.bit_length()) if 2**k <= most]
    return sizes if sizes[-1] == most else [*sizes, most]


def rmbench_matrix(rows: Iterable[tuple[Sequence[float], Sequence[float]]]) -> dict[str, Any]:
    """Return RM-Bench's accuracy by the style of both sides (arXiv:2410.16184).

    A row holds the scores of the chosen and of the rejected completion, one per style, from plain
    to fancy. `easy`: the chosen one is fancier; `hard`: the rejected one is.
    """
    wins = [np.greater.outer(np.asarray(chosen), np.asarray(rejected)) for chosen, rejected in rows]
    matrix = np.mean(wins, axis=0)
    styles = len(matrix)
    return {
        "matrix": matrix.tolist(),
        "easy": float(matrix[np.tril_indices(styles, -1)].mean()),
        "normal": float(np.diag(matrix).mean()),
        "hard": float(matrix[np.triu_indices(styles, 1)].mean()),
        "average": float(matrix.mean()),
    }


def reward_lines(report: Mapping[str, Any]) -> list[str]:
    """Format the report for people."""
    ci = report["ci"]
    head = f"{report['n']} comparisons in {report['n_rankings']} rankings"
    if report["accuracy"] is None:
        return [head, "no strict comparison"]
    bounds = "" if ci is None else f" [{100 * ci['low']:.1f}, {100 * ci['high']:.1f}] 95 %"
    lines = [f"{head}: accuracy {100 * report['accuracy']:.1f} %{bounds}"]
    for row in report["by_margin"]:
        upper = "more" if row["to"] is None else f"{row['to']:g}"
        lines.append(
            f"  margin {row['from']:g} to {upper}: {100 * row['accuracy']:.1f} % of {row['n']}"
        )
    for row in report["per_category"]:
        lines.append(f"  {row['name']}: {100 * row['accuracy']:.1f} % of {row['n']}")
    scaled = report["calibration"]
    temperature = scaled["temperature"]
    at = "no best temperature" if temperature is None else f"best temperature {temperature:.2f}"
    lines.append(f"calibration error {100 * scaled['ece']:.1f} points, {at}")
    correlation = report["length"]["correlation_within_prompts"]
    if correlation is not None:
        lines.append(f"correlation of score and length within prompts {correlation:.2f}")
    for row in report["best_of_n"]:
        gold = "" if row["gold"] is None else f"gold {row['gold']:.3f}, "
        lines.append(f"  best of {row['n']}: {gold}score {row['proxy']:.3f}")
    return lines
