"""A reward model on trial: accuracy, calibration against scikit-learn, best of n, RM-Bench."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from sklearn.calibration import calibration_curve as sklearn_curve
from sklearn.metrics import brier_score_loss, log_loss

from alignkit.evaluation.reward_trial import (
    ScoredRanking,
    best_of_n,
    expected_best,
    reward_lines,
    reward_report,
    rmbench_matrix,
)
from alignkit.statistics import calibration as c


def drawn(seed: int, n: int = 3000, temperature: float = 1.0) -> Any:
    """Margins with outcomes that follow them at a temperature."""
    generator = np.random.default_rng(seed)
    margins = generator.normal(size=n) * 2
    outcomes = (generator.uniform(size=n) < 1 / (1 + np.exp(-margins / temperature))).astype(float)
    return margins, outcomes


def test_calibration_against_sklearn() -> None:
    margins, outcomes = drawn(1)
    p = c.probability(margins)
    rows = c.calibration_curve(p, outcomes)
    observed, predicted = sklearn_curve(outcomes, p, n_bins=10)
    assert [row["observed"] for row in rows] == pytest.approx(observed.tolist())
    assert [row["probability"] for row in rows] == pytest.approx(predicted.tolist())
    assert c.brier_score(p, outcomes) == pytest.approx(brier_score_loss(outcomes, p))
    assert c.log_loss(margins, outcomes) == pytest.approx(log_loss(outcomes, p))
    assert c.expected_calibration_error(p, outcomes) < 0.03


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_is_found(temperature: float) -> None:
    margins, outcomes = drawn(2, 20_000, temperature)
    found = c.fit_temperature(margins, outcomes)
    best = scipy.optimize.minimize_scalar(
        lambda log_t: c.log_loss(margins, outcomes, math.exp(log_t)), bounds=(-3, 3)
    )
    assert found == pytest.approx(math.exp(best.x), rel=1e-3)
    assert found == pytest.approx(temperature, rel=0.1)
    p = c.probability(margins, found)
    assert c.expected_calibration_error(p, outcomes) < 0.02


def test_calibration_error_weighs_bins_by_their_size() -> None:
    """Nine at 0.95 that all came true, and one at 0.05 that did too: 0.9 * 0.05 + 0.1 * 0.95."""
    probabilities = np.array([0.95] * 9 + [0.05])
    assert c.expected_calibration_error(probabilities, np.ones(10)) == pytest.approx(0.14)


def test_no_best_temperature() -> None:
    margins = np.array([1.0, 2.0, 0.5])
    assert c.fit_temperature(margins, np.ones(3)) is None
    assert c.fit_temperature(margins, np.zeros(3)) is None


def test_report_on_numbers_worked_by_hand() -> None:
    rankings = [
        # Right, margin 1; the better one is longer.
        ScoredRanking("p1", [2.0, 1.0], [1, 2], [10, 5], "math-prm"),
        # Wrong, margin 3.
        ScoredRanking("p2", [0.0, 3.0], [1, 2], [5, 10], "hep-go"),
        # Three completions with a tie: two strict comparisons, one right, one even.
        ScoredRanking("p3", [1.0, 0.5, 1.0], [1, 2, 2], [7, 7, 7], "hep-go"),
        # The whole order right.
        ScoredRanking("p4", [3.0, 2.0, 1.0], [1, 2, 3], [9, 8, 7], None),
    ]
    report = reward_report(rankings)
    right = [1.0, 0.0, 1.0, 0.5, 1.0, 1.0, 1.0]
    groups = [0, 1, 2, 2, 3, 3, 3]
    assert (report["n"], report["n_rankings"], report["ties"]) == (7, 4, 1)
    assert report["accuracy"] == pytest.approx(np.mean(right))
    gap = np.array(right) - np.mean(right)
    se = math.sqrt(4 / 3 * sum(gap[np.equal(groups, g)].sum() ** 2 for g in range(4))) / 7
    from scipy.stats import t

    assert report["ci"]["low"] == pytest.approx(max(0.0, np.mean(right) - t.ppf(0.975, 3) * se))
    assert report["whole_rankings"]["accuracy"] == 0.5
    assert [(r["from"], r["to"], r["n"]) for r in report["by_margin"]] == [
        (0.0, 0.5, 1),
        (0.5, 1.0, 1),
        (1.0, 2.0, 3),
        (2.0, 4.0, 2),
    ]
    # Math and code weigh the same: (1 + (0 + 1 + 0.5) / 3) / 2.
    assert report["rewardbench"] == {"Reasoning": pytest.approx((1 + 0.5) / 2)}
    assert report["length"]["people_prefer_longer"] == pytest.approx(4 / 7)
    assert report["length"]["accuracy_where_better_is_shorter"] == 0.0
    assert reward_lines(report)[0].startswith("7 comparisons in 4 rankings: accuracy 78.6 %")


def test_calibration_of_a_report_is_symmetric() -> None:
    margins, outcomes = drawn(3, 2000)
    rankings = [
        ScoredRanking(str(i), [m, 0.0], [1, 2] if o else [2, 1], [1, 1])
        for i, (m, o) in enumerate(zip(margins, outcomes, strict=True))
    ]
    found = reward_report(rankings)["calibration"]
    assert found["temperature"] == pytest.approx(1.0, abs=0.1)
    curve = found["curve"]
    for low, high in zip(curve, reversed(curve), strict=True):
        assert low["probability"] + high["probability"] == pytest.approx(1.0)
        assert low["observed"] + high["observed"] == pytest.approx(1.0)


def test_expected_best_is_the_mean_over_all_subsets() -> None:
    generator = np.random.default_rng(4)
    proxy, gold = generator.normal(size=(2, 7))
    for n in range(1, 8):
        every = [gold[max(subset, key=lambda i: proxy[i])] for subset in combinations(range(7), n)]
        assert expected_best(proxy, gold, n) == pytest.approx(np.mean(every))


def test_over_optimisation_shows() -> None:
    """A proxy that likes what gold dislikes at its extremes: gold rises, then falls."""
    generator = np.random.default_rng(5)
    rankings = []
    for i in range(300):
        x = generator.normal(size=64)
        gold = np.clip(0.5 + 0.2 * x - 0.15 * np.maximum(x - 1, 0) ** 2 * 3, 0, 1)
        rankings.append(ScoredRanking(str(i), x.tolist(), [1] * 64, [1] * 64, None, gold.tolist()))
    rows = best_of_n(rankings)
    assert [row["n"] for row in rows] == [1, 2, 4, 8, 16, 32, 64]
    assert rows[1]["kl"] == pytest.approx(math.log(2) - 0.5)
    golds = [row["gold"] for row in rows]
    assert rows[-1]["proxy"] > rows[0]["proxy"]
    assert golds[0] < max(golds) > golds[-1] + 0.05


def test_best_of_n_without_truth_is_the_score_alone() -> None:
    rows = best_of_n([ScoredRanking("p", [1.0, 4.0, 2.0], [3, 1, 2], [1, 1, 1])])
    assert [(row["n"], row["gold"]) for row in rows] == [(1, None), (2, None), (3, None)]
    assert [row["proxy"] for row in rows] == pytest.approx([7 / 3, 10 / 3, 4.0])
    # Pairs have nothing to choose the best of.
    assert best_of_n([ScoredRanking("p", [1.0, 4.0], [2, 1], [1, 1])]) == []


def test_rmbench_matrix() -> None:
    rows = [([1.0, 2.0, 3.0], [0.0, 1.5, 2.5]), ([0.0, 0.0, 3.0], [1.0, 2.0, 2.0])]
    found = rmbench_matrix(rows)
    assert found["matrix"] == [[0.5, 0.0, 0.0], [0.5, 0.5, 0.0], [1.0, 1.0, 1.0]]
    assert (found["easy"], found["normal"], found["hard"]) == pytest.approx((2.5 / 3, 2 / 3, 0.0))


def test_nothing_to_compare() -> None:
    report = reward_report([ScoredRanking("p", [1.0, 2.0], [1, 1], [1, 1])])
    assert (report["n"], report["accuracy"], report["calibration"]) == (0, None, None)
    assert reward_lines(report)[1] == "no strict comparison"
