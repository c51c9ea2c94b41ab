"""Intervals and tests against independent libraries, and their coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from alignkit.errors import RecipeError
from alignkit.statistics import distributions as d
from alignkit.statistics.intervals import (
    bca_limits,
    bootstrap_means,
    clopper_pearson,
    effective_n,
    interval,
    mean_estimate,
    wilson,
)

probabilities = st.floats(1e-6, 1 - 1e-6)


@settings(deadline=None, max_examples=150)
@given(probabilities, st.floats(1, 2e5))
def test_t_quantile(probability: float, df: float) -> None:
    expected = scipy.stats.t.ppf(probability, df)
    assert d.t_quantile(probability, df) == pytest.approx(expected, rel=1e-8, abs=1e-8)


@settings(deadline=None, max_examples=60)
@given(st.floats(1e-4, 1 - 1e-4), st.floats(0.5, 2e3), st.floats(0.5, 2e3))
def test_beta_quantile(probability: float, a: float, b: float) -> None:
    expected = scipy.stats.beta.ppf(probability, a, b)
    assert d.beta_quantile(probability, a, b) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 3000), st.integers(0, 3000))
def test_sign_test(wins: int, losses: int) -> None:
    if wins + losses == 0:
        assert d.sign_test(0, 0) == 1.0
        return
    expected = scipy.stats.binomtest(wins, wins + losses).pvalue
    assert d.sign_test(wins, losses) == pytest.approx(expected, rel=1e-8, abs=1e-300)


@settings(deadline=None, max_examples=100)
@given(st.floats(0, 300), st.integers(1, 100))
def test_chi_squared_tail(x: float, df: int) -> None:
    assert d.chi_squared_tail(x, df) == pytest.approx(scipy.stats.chi2.sf(x, df), abs=1e-10)


@pytest.mark.parametrize("x", [0.1, 0.3, 0.6, 1.0, 1.36, 2.0])
def test_kolmogorov_tail(x: float) -> None:
    assert d.kolmogorov_tail(x) == pytest.approx(scipy.stats.kstwobign.sf(x), abs=1e-9)


def test_holm() -> None:
    generator = np.random.default_rng(0)
    for n in range(1, 12):
        p_values = (generator.uniform(size=n) ** 3).tolist()
        assert d.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


@pytest.mark.parametrize(("count", "n"), [(0, 5), (5, 5), (3, 10), (457, 805), (1, 10_000)])
def test_wilson_and_clopper_pearson(count: int, n: int) -> None:
    assert wilson(count / n, n) == pytest.approx(
        proportion_confint(count, n, method="wilson"), abs=1e-10
    )
    assert clopper_pearson(count / n, n) == pytest.approx(
        proportion_confint(count, n, method="beta"), abs=1e-9
    )


def test_clustered_error_is_that_of_statsmodels() -> None:
    generator = np.random.default_rng(4)
    clusters = generator.integers(0, 25, 200)
    scores = generator.uniform(size=200) * 0.5 + generator.uniform(size=25)[clusters] * 0.5
    estimate = mean_estimate(scores, clusters)
    fitted = sm.OLS(scores, np.ones(200)).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}
    )
    # The plain sandwich, with the correction G/(G-1) alone.
    assert estimate.se == pytest.approx(fitted.bse[0] * math.sqrt(25 / 24))
    assert estimate.df == 24


def test_one_score_and_one_cluster() -> None:
    one = interval("t", np.array([0.3]))
    assert one is not None
    assert one.method == "wilson"
    assert interval("t", np.array([])) is None
    assert interval("t", np.array([0.0, 1.0]), np.array([0, 0])) is None
    with pytest.raises(RecipeError, match="did you mean 'wilson'"):
        interval("wilsen", np.array([0.3]))


def test_cancelling_clusters_do_not_give_an_interval_of_no_width() -> None:
    scores, clusters = np.array([0.0, 1.0] * 6), np.repeat(np.arange(6), 2)
    found = interval("t", scores, clusters)
    assert found is not None
    assert found.method == "wilson"
    assert (found.low, found.high) == pytest.approx(wilson(0.5, 6))


def test_effective_n_of_copies() -> None:
    """Every prompt three times over in its own cluster is worth a third of the rows."""
    alone = np.random.default_rng(1).integers(0, 2, 200).astype(float)
    thrice, clusters = np.repeat(alone, 3), np.repeat(np.arange(200), 3)
    assert effective_n(thrice, clusters) == pytest.approx(200, rel=0.01)


def test_bca_limits_are_those_of_scipy() -> None:
    scores = np.random.default_rng(8).beta(0.4, 1.2, 60)
    resampled = bootstrap_means(scores, np.ones(60), 40_000, 1)
    jackknife = (scores.sum() - scores) / 59
    theirs = scipy.stats.bootstrap(
        (scores,), np.mean, n_resamples=40_000, method="BCa", rng=np.random.default_rng(2)
    ).confidence_interval
    ours = bca_limits(float(scores.mean()), resampled, jackknife, scipy.stats.norm.ppf(0.975))
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.002)


def test_bootstrap_by_cells_and_by_index_agree() -> None:
    """Scores of three values are resampled by their counts, the same scores jittered by index."""
    generator = np.random.default_rng(3)
    few = generator.choice([0.0, 0.5, 1.0], 2000, p=[0.4, 0.2, 0.4])
    many = few + generator.uniform(-1e-9, 1e-9, 2000)
    ones = np.ones(2000)
    by_cell, by_index = (bootstrap_means(s, ones, 4000, 5) for s in (few, many))
    assert by_cell.std() == pytest.approx(few.std() / math.sqrt(2000), rel=0.04)
    assert by_index.std() == pytest.approx(by_cell.std(), rel=0.05)
    assert by_cell.mean() == pytest.approx(few.mean(), abs=0.001)


def test_bca_of_a_constant_bootstrap() -> None:
    assert bca_limits(0.5, np.full(100, 0.5), np.full(10, 0.5), 1.96) == (0.5, 0.5)


# --- coverage ------------------------------------------------------------------------------------

REPEATS = 4000
CASES = [(0.5, 0.0), (0.58, 0.1), (0.4, 0.25)]  # win rate without ties, share of ties


def two_orders(generator: np.random.Generator, rate: float, tie: float, n: int) -> np.ndarray:
    """(REPEATS, n) scores of prompts judged in both orders, verdicts of a prompt correlated."""
    lean = generator.normal(size=(REPEATS, n, 1))
    noise = generator.normal(size=(REPEATS, n, 2)) * 0.6
    quantile = scipy.stats.norm.cdf((lean + noise) / math.sqrt(1.36))
    lose = (1 - tie) * (1 - rate)
    verdicts = np.where(quantile < lose, 0.0, np.where(quantile < lose + tie, 0.5, 1.0))
    return verdicts.mean(axis=2)


@pytest.mark.parametrize("n", [30, 100, 500])
@pytest.mark.parametrize(("rate", "tie"), CASES)
@pytest.mark.parametrize("method", ["t", "bootstrap"])
def test_coverage_of_prompt_scores(n: int, rate: float, tie: float, method: str) -> None:
    """Between 93 and 97 % of 95 % intervals hold the truth, whatever the ties."""
    scores = two_orders(np.random.default_rng(n), rate, tie, n)
    truth = (1 - tie) * rate + tie / 2
    repeats = 600 if method == "bootstrap" else REPEATS
    hits = 0
    for seed, row in enumerate(scores[:repeats]):
        found = interval(method, row, draws=500, seed=seed)
        assert found is not None
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / repeats <= 0.97


@pytest.mark.parametrize("n", [30, 100, 500])
@pytest.mark.parametrize("rate", [0.5, 0.6, 0.8])
def test_coverage_of_wilson(n: int, rate: float) -> None:
    """Exact: the binomial probability of the counts whose interval holds the rate."""
    counts = np.arange(n + 1)
    limits = np.array([wilson(count / n, n) for count in counts])
    held = (limits[:, 0] <= rate) & (rate <= limits[:, 1])
    assert 0.93 <= scipy.stats.binom.pmf(counts[held], n, rate).sum() <= 0.97


@pytest.mark.parametrize("n", [30, 100, 500])
def test_clopper_pearson_never_covers_less(n: int) -> None:
    counts = np.arange(n + 1)
    limits = np.array([clopper_pearson(count / n, n) for count in counts])
    for rate in (0.5, 0.6, 0.8, 0.99):
        held = (limits[:, 0] <= rate) & (rate <= limits[:, 1])
        assert scipy.stats.binom.pmf(counts[held], n, rate).sum() >= 0.95


@pytest.mark.parametrize("groups", [30, 100, 500])
@pytest.mark.parametrize("method", ["t", "bootstrap"])
def test_coverage_with_clusters(groups: int, method: str) -> None:
    """Prompts of a cluster share their lean; sizes differ from 1 to 6."""
    generator = np.random.default_rng(groups)
    repeats = 1000 if method == "t" else 600
    hits = naive_hits = 0
    for i in range(repeats):
        clusters = np.repeat(np.arange(groups), generator.integers(1, 7, groups))
        chance = generator.beta(1.0, 1.0, groups)[clusters]
        scores = (generator.uniform(size=len(clusters)) < chance).astype(float)
        found, naive = (interval(method, scores, c, draws=300, seed=i) for c in (clusters, None))
        assert found is not None
        assert naive is not None
        hits += found.low <= 0.5 <= found.high
        naive_hits += naive.low <= 0.5 <= naive.high
    assert 0.93 <= hits / repeats <= 0.97
    # Without --cluster the same data gives intervals that do not cover.
    assert naive_hits / repeats < 0.90
