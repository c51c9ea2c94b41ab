"""Ratings against choix and statsmodels, their intervals, and graphs that do not connect."""

from __future__ import annotations

import math

import choix
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import statsmodels.api as sm
from numpy.typing import NDArray

from alignkit.statistics.bradley_terry import POINTS, Outcomes, ratings

THETA = np.array([0.9, 0.3, -0.2, -1.0])
MODELS = ["w", "x", "y", "z"]


def played(n: int, seed: int, tie: float = 0.0) -> Outcomes:
    generator = np.random.default_rng(seed)
    left = generator.integers(0, 4, n)
    right = (left + generator.integers(1, 4, n)) % 4
    chance = 1 / (1 + np.exp(THETA[right] - THETA[left]))
    score = (generator.uniform(size=n) < chance).astype(float)
    score[generator.uniform(size=n) < tie] = 0.5
    return Outcomes(MODELS, left, right, score, np.arange(n))


def centred(theta: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1000 + POINTS * (theta - theta.mean())


def test_ratings_are_those_of_choix() -> None:
    outcomes = played(400, 1)
    won = outcomes.score == 1.0
    pairs = [
        (int(x), int(y)) if w else (int(y), int(x))
        for x, y, w in zip(outcomes.left, outcomes.right, won, strict=True)
    ]
    expected = centred(choix.opt_pairwise(4, pairs))
    # The weak prior moves a connected model by well under a point.
    assert ratings(outcomes).rating == pytest.approx(expected.tolist(), abs=0.1)


def test_a_tie_is_two_half_wins() -> None:
    outcomes = played(300, 2, tie=0.3)
    halves = [(outcomes.score, 1), (1 - outcomes.score, -1)]
    pairs: list[tuple[int, int]] = []
    for score, _ in halves[:1]:
        for x, y, s in zip(outcomes.left, outcomes.right, score, strict=True):
            pairs += [(int(x), int(y))] * int(2 * s) + [(int(y), int(x))] * int(2 - 2 * s)
    expected = centred(choix.opt_pairwise(4, pairs))
    assert ratings(outcomes).rating == pytest.approx(expected.tolist(), abs=0.1)


def test_sandwich_is_that_of_statsmodels() -> None:
    outcomes = played(600, 3)
    group = np.arange(600) // 3
    found = ratings(Outcomes(MODELS, outcomes.left, outcomes.right, outcomes.score, group))
    design = np.zeros((600, 4))
    design[np.arange(600), outcomes.left] = 1
    design[np.arange(600), outcomes.right] = -1
    # The last model is minus the sum of the others: ratings with mean zero.
    fitted = sm.GLM(
        outcomes.score, design[:, :3] - design[:, 3:], family=sm.families.Binomial()
    ).fit(cov_type="cluster", cov_kwds={"groups": group, "use_correction": False})
    half = [(ci.high - ci.low) / 2 for ci in found.ci if ci is not None]
    from scipy.stats import t

    expected = fitted.bse * POINTS * t.ppf(0.975, 199) * math.sqrt(200 / 199)
    assert half[:3] == pytest.approx(expected.tolist(), rel=1e-3)
    assert found.rating[:3] == pytest.approx((1000 + POINTS * fitted.params).tolist(), abs=0.1)


def test_bootstrap_interval_agrees_with_the_sandwich() -> None:
    outcomes = played(500, 4)
    wide = ratings(outcomes).ci
    drawn = ratings(outcomes, draws=400, seed=1).ci
    for one, other in zip(wide, drawn, strict=True):
        assert one is not None
        assert other is not None
        assert (one.method, other.method) == ("sandwich", "bootstrap")
        assert other.high - other.low == pytest.approx(one.high - one.low, rel=0.15)


def test_intervals_cover() -> None:
    truth = centred(THETA)
    hits = np.zeros(4)
    for seed in range(400):
        found = ratings(played(120, 1000 + seed))
        hits += [c.low <= t <= c.high for c, t in zip(found.ci, truth, strict=True) if c]
    assert np.all((hits / 400 > 0.92) & (hits / 400 < 0.98))
    assert 0.93 <= hits.mean() / 400 <= 0.97


def likelihood(name: str, theta: NDArray[np.float64], outcomes: Outcomes) -> float:
    """-log L written from the definitions of Davidson and of Rao and Kupper, with pi = e^theta."""
    pi, extra = np.exp(np.append(theta[:3], -theta[:3].sum())), math.exp(theta[3])
    x, y = pi[outcomes.left], pi[outcomes.right]
    if name == "davidson":
        tie = extra * np.sqrt(x * y)
        shares = np.stack([x, tie, y]) / (x + y + tie)
    else:
        kappa = math.exp(extra)
        win, loss = x / (x + kappa * y), y / (y + kappa * x)
        shares = np.stack([win, 1 - win - loss, loss])
    row = (2 - 2 * outcomes.score).astype(int)
    return float(-np.log(shares[row, np.arange(len(row))]).sum())


@pytest.mark.parametrize("name", ["davidson", "rao-kupper"])
def test_tie_models_maximise_their_likelihood(name: str) -> None:
    outcomes = played(500, 5, tie=0.25)
    best = scipy.optimize.minimize(lambda t: likelihood(name, t, outcomes), np.full(4, 0.1))
    theta = np.append(best.x[:3], -best.x[:3].sum())
    assert ratings(outcomes, ties=name).rating == pytest.approx(centred(theta).tolist(), abs=0.2)


def test_covariates_are_not_credited_to_the_models() -> None:
    """A judge who likes length: with the covariate the ratings are those without it."""
    generator = np.random.default_rng(6)
    n = 20_000
    left = generator.integers(0, 4, n)
    right = (left + generator.integers(1, 4, n)) % 4
    longer = generator.normal(size=n) + (left == 3) - (right == 3)
    z = THETA[left] - THETA[right] + 0.8 * longer
    score = (generator.uniform(size=n) < 1 / (1 + np.exp(-z))).astype(float)
    plain = Outcomes(MODELS, left, right, score, np.arange(n))
    controlled = Outcomes(MODELS, left, right, score, np.arange(n), longer[:, None])
    found = ratings(controlled)
    assert found.covariates[0] == pytest.approx(0.8, abs=0.05)
    assert found.rating == pytest.approx(centred(THETA).tolist(), abs=12)
    assert ratings(plain).rating[3] - found.rating[3] > 50


def test_components_and_unbeaten_models() -> None:
    left, right = np.array([0, 1, 2, 2]), np.array([1, 0, 3, 3])
    found = ratings(Outcomes(MODELS, left, right, np.array([1.0, 1.0, 1.0, 1.0]), np.arange(4)))
    assert found.components == [["w", "x"], ["y", "z"]]
    assert found.rating[0] == pytest.approx(1000)
    assert found.rating[2] > 1300
    assert found.rating[2] + found.rating[3] == pytest.approx(2000)
    assert "2 groups that never met" in found.warnings[0]
    assert found.warnings[1].endswith(": y, z")


@pytest.mark.parametrize("wins", [4, 40, 999])
def test_the_prior_moves_no_connected_model_by_a_point(wins: int) -> None:
    score = np.array([1.0] * wins + [0.0])
    zeros = np.zeros(wins + 1, dtype=np.int64)
    found = ratings(Outcomes(["a", "b"], zeros, zeros + 1, score, np.arange(wins + 1)))
    assert found.rating[0] - found.rating[1] == pytest.approx(400 * math.log10(wins), abs=1)


def test_every_two_models_are_compared_with_holms_correction() -> None:
    outcomes = played(600, 7)
    plain, drawn = ratings(outcomes), ratings(outcomes, draws=400, seed=2)
    assert [row["models"] for row in plain.pairs] == [
        [x, y] for i, x in enumerate(MODELS) for y in MODELS[i + 1 :]
    ]
    place = {name: number for number, name in enumerate(MODELS)}
    # The fit with the second model's worth fixed at zero has the difference as its coefficient.
    design = np.zeros((600, 4))
    design[np.arange(600), outcomes.left] = 1
    design[np.arange(600), outcomes.right] = -1
    for row, other in zip(plain.pairs, drawn.pairs, strict=True):
        i, j = (place[name] for name in row["models"])
        assert row["difference"] == pytest.approx(plain.rating[i] - plain.rating[j])
        columns = [k for k in range(4) if k != j]
        theirs = sm.GLM(outcomes.score, design[:, columns], family=sm.families.Binomial()).fit(
            cov_type="HC0"
        )
        error = theirs.bse[columns.index(i)] * math.sqrt(600 / 599)
        half = (row["ci"]["high"] - row["ci"]["low"]) / 2
        assert half == pytest.approx(error * POINTS * 1.9639, rel=1e-3)
        z = theirs.params[columns.index(i)] / error
        assert row["p_value"] == pytest.approx(2 * scipy.stats.t.sf(abs(z), 599), rel=0.01)
        assert other["ci"]["high"] - other["ci"]["low"] == pytest.approx(2 * half, rel=0.15)
    raw = [row["p_value"] for row in plain.pairs]
    assert plain.pairs[raw.index(min(raw))]["p_holm"] == pytest.approx(6 * min(raw), abs=0)


def test_a_long_file_converges() -> None:
    """Rounding in sums over a quarter of a million verdicts is no reason to go on for ever."""
    theta, counts, sides, scores = (0.8, 0.2, -0.3, -0.7), [], [], []
    for i, j in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
        won = math.exp((theta[i] - theta[j]) / 2)
        for score, share in ((1.0, won), (0.5, 0.5), (0.0, 1 / won)):
            counts.append(round(40_000 * share / (won + 0.5 + 1 / won)))
            sides.append((i, j))
            scores.append(score)
    left, right = (np.repeat([side[k] for side in sides], counts) for k in (0, 1))
    score = np.repeat(scores, counts)
    for ties in ("half", "davidson", "rao-kupper"):
        found = ratings(Outcomes(MODELS, left, right, score, np.arange(len(score))), ties=ties)
        assert found.rating == sorted(found.rating, reverse=True)
        if ties == "davidson":
            assert found.rating == pytest.approx([1000 + POINTS * t for t in theta], abs=0.1)
