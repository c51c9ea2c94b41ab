"""Paired differences, judges against people, sequences that may be looked at, and power."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.contingency_tables import mcnemar

from alignkit.errors import RecipeError
from alignkit.evaluation.text_report import winrate_lines
from alignkit.evaluation.winrate import winrate_report
from alignkit.statistics.paired import ScoredPrompts, paired_differences
from alignkit.statistics.power import power_of, power_report, prompts_needed, smallest_effect_of
from alignkit.statistics.ppi import corrected_mean
from alignkit.statistics.sequential import _bets, confidence_sequence

Array = np.ndarray[Any, np.dtype[np.float64]]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- pairs of models -----------------------------------------------------------------------------


def three_against_base(seed: int, n: int) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    rows = []
    for prompt in range(n):
        easy = generator.normal()
        for model, skill in (("x", 0.6), ("y", 0.3), ("z", -0.2)):
            won = easy + skill + generator.normal() * 0.5 > 0
            row = {"kind": "judgement", "prompt_id": f"p{prompt}", "a": model, "b": "base"}
            rows.append(row | {"verdict": "a" if won else "b"})
    return rows


def test_differences_are_paired(tmp_path: Path) -> None:
    rows = three_against_base(1, 200)
    report = winrate_report([write(tmp_path / "j.jsonl", rows)], baseline="base")
    found = report["against_baseline"]
    assert [row["model"] for row in found["models"]] == ["x", "y", "z"]
    score = {m: np.array([r["verdict"] == "a" for r in rows if r["a"] == m]) for m in "xyz"}
    raw = []
    for row in found["differences"]:
        one, other = (score[name] for name in row["models"])
        theirs = scipy.stats.ttest_rel(one.astype(float), other.astype(float))
        assert row["difference"] == pytest.approx(one.mean() - other.mean())
        assert row["p_value"] == pytest.approx(theirs.pvalue, rel=1e-6)
        low, high = theirs.confidence_interval(0.95)
        assert (row["ci"]["low"], row["ci"]["high"]) == pytest.approx((low, high))
        table = [[np.sum(one & other), np.sum(one & ~other)], [np.sum(~one & other), 0]]
        assert row["mcnemar"]["p"] == pytest.approx(mcnemar(table, exact=True).pvalue)
        raw.append(row["p_value"])
        # Pairing takes the prompts' difficulty out of the standard error.
        apart = math.hypot(scipy.stats.sem(one), scipy.stats.sem(other))
        assert row["se"] < 0.8 * apart
    assert found["differences"][raw.index(min(raw))]["p_holm"] == pytest.approx(3 * min(raw))


def test_length_is_controlled_for_each_model_over_the_baseline(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    rows = three_against_base(2, 120)
    for row in rows:
        row |= {"len_a": int(generator.integers(50, 200)), "len_b": int(generator.integers(50, 99))}
    path = write(tmp_path / "j.jsonl", rows)
    options = {"length_control": "prior", "bootstrap": 100}
    found = winrate_report([path], baseline="base", **options)  # type: ignore[arg-type]
    for row in found["against_baseline"]["models"]:
        alone = winrate_report([path], a=row["model"], b="base", **options)  # type: ignore[arg-type]
        assert row["length"] == alone["length"]
        assert row["length"]["lc_win_rate"] is not None
    shown = "\n".join(winrate_lines(found))
    assert shown.count("length-controlled ") == 3
    nobody = winrate_report([path], **options)  # type: ignore[arg-type]
    assert "length control needs two models or a baseline" in nobody["warnings"][-1]


def test_models_without_common_prompts_are_not_compared() -> None:
    one = ScoredPrompts(np.array([1, 2, 3]), np.array([1.0, 0.0, 1.0]))
    other = ScoredPrompts(np.array([4, 5]), np.array([1.0, 0.0]))
    assert paired_differences({"x": one, "y": other}, 0.95) == []
    same = paired_differences({"x": one, "y": one}, 0.95)[0]
    assert (same["difference"], same["se"], same["ci"], same["p_value"]) == (0.0, 0.0, None, 1.0)


# --- judges and people ---------------------------------------------------------------------------


def test_judges_and_people_in_one_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    rows = []
    verdicts: dict[str, list[str]] = {"rm": [], "gpt": [], "human:ann": []}
    for prompt in range(120):
        lean = generator.normal()
        for judge, noise in (("rm", 0.8), ("gpt", 0.5), ("human:ann", 0.2)):
            if judge.startswith("human") and prompt >= 40:
                continue
            verdict = "a" if lean + noise * generator.normal() > 0 else "b"
            verdicts[judge].append(verdict)
            row = {"kind": "judgement", "prompt_id": f"p{prompt}", "a": "dpo", "b": "sft"}
            rows.append(row | {"verdict": verdict, "judge": judge})
    report = winrate_report([write(tmp_path / "j.jsonl", rows)])
    assert report["judges"] == ["rm", "gpt", "human:ann"]
    pair = report["agreement"]["pairs"][0]
    assert (pair["judges"], pair["n"]) == (["rm", "gpt"], 120)
    assert pair["kappa"] == pytest.approx(cohen_kappa_score(verdicts["rm"], verdicts["gpt"]))
    assert report["human"]["n"] == 40
    both = [
        (
            np.mean([v[i] == "a" for v in (verdicts["rm"], verdicts["gpt"])]),
            verdicts["human:ann"][i],
        )
        for i in range(40)
    ]
    decided = [(s > 0.5) == (h == "a") for s, h in both if s != 0.5]
    assert report["human"]["accuracy"] == pytest.approx(np.mean(decided))


def test_copies_in_a_cluster_tell_no_more_about_the_judges(tmp_path: Path) -> None:
    """Each conversation five times over: agreement and correction are as sure as of one each."""
    generator = np.random.default_rng(8)
    rows = []
    for talk in range(90):
        lean = generator.normal()
        for judge in ("rm", "gpt", "human:ann"):
            verdict = "a" if lean + 0.7 * generator.normal() > 0 else "b"
            if judge != "human:ann" or talk < 30:
                row = {"kind": "judgement", "a": "dpo", "b": "sft", "verdict": verdict}
                row |= {"judge": judge, "extra": {"talk": f"{talk:02}"}}
                rows += [row | {"prompt_id": f"p{talk}-{copy}"} for copy in range(5)]
    one = winrate_report([write(tmp_path / "one.jsonl", rows[::5])])
    path = write(tmp_path / "five.jsonl", rows)
    five, naive = winrate_report([path], cluster="talk"), winrate_report([path])
    for pair, other in zip(one["agreement"]["pairs"], five["agreement"]["pairs"], strict=True):
        assert pair["kappa"] == pytest.approx(other["kappa"])
        assert pair["ci"] == pytest.approx(other["ci"])
    assert one["agreement"]["alpha"]["ci"]["low"] == pytest.approx(
        five["agreement"]["alpha"]["ci"]["low"], abs=0.01
    )
    assert one["human"]["kappa_ci"] == pytest.approx(five["human"]["kappa_ci"])
    for key in ("ci", "accuracy_ci"):
        widths = [r["human"][key]["high"] - r["human"][key]["low"] for r in (one, five, naive)]
        assert widths[1] == pytest.approx(widths[0], rel=0.05)
        assert widths[2] == pytest.approx(widths[0] / math.sqrt(5), rel=0.15)


@pytest.mark.parametrize("quality", [0.0, 0.9])
def test_correction_covers_and_is_never_wider(quality: float) -> None:
    """A judge biased by 15 points, once blind and once good: 60 of 600 prompts seen by people."""
    generator = np.random.default_rng(3)
    hits, widths, repeats = 0, [], 600
    for _ in range(repeats):
        human = (generator.uniform(size=600) < 0.55).astype(float)
        noise = generator.uniform(size=600) < 0.55 + 0.15
        judge = np.where(generator.uniform(size=600) < quality, human, noise).astype(float)
        seen = np.where(np.arange(600) < 60, human, np.nan)
        found = corrected_mean(judge, seen)
        hits += found.ci.low <= 0.55 <= found.ci.high
        widths.append(found.se / scipy.stats.sem(human[:60]))
    assert 0.93 <= hits / repeats <= 0.97
    assert np.mean(widths) < (0.6 if quality else 1.01)


def test_plain_weight_is_the_judge_mean_plus_the_mean_gap() -> None:
    judge = np.array([0.9, 0.2, 0.7, 0.6, 0.4, 0.8])
    human = np.array([1.0, 0.0, 0.0, np.nan, np.nan, np.nan])
    found = corrected_mean(judge, human, weight=1.0)
    assert found.value == pytest.approx(0.6 + np.mean([0.1, -0.2, -0.7]))
    expected = np.var([0.1, -0.2, -0.7], ddof=1) / 3 + np.var([0.6, 0.4, 0.8], ddof=1) / 3
    assert found.se == pytest.approx(math.sqrt(expected))


# --- looking early -------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "soft"), [(0.5, False), (0.6, True), (0.9, False)])
def test_sequence_holds_at_every_look(mean: float, soft: bool) -> None:
    """At most 5 % of runs ever exclude the truth; a fixed interval does in far more."""
    generator = np.random.default_rng(4)
    runs, n, ever, fixed = 200, 300, 0, 0
    for _ in range(runs):
        if soft:
            scores = generator.beta(mean * 2, (1 - mean) * 2, n)
        else:
            scores = (generator.uniform(size=n) < mean).astype(float)
        low, high = confidence_sequence(scores, grid=201)
        ever += bool(np.any((low > mean) | (high < mean)))
        t = np.arange(1, n + 1)
        running = np.cumsum(scores) / t
        se = np.sqrt(np.maximum(running * (1 - running), 1e-9) / t)
        fixed += bool(np.any(np.abs(running - mean)[20:] > 1.96 * se[20:]))
    assert ever / runs <= 0.05
    if not soft:
        assert fixed / runs > 0.15


def test_sequence_closes_in_on_the_mean() -> None:
    scores = (np.random.default_rng(5).uniform(size=3000) < 0.7).astype(float)
    low, high = confidence_sequence(scores)
    assert np.all(np.diff(low) >= 0)
    assert np.all(np.diff(high) <= 0)
    assert low[-1] < scores.mean() < high[-1]
    assert high[-1] - low[-1] < 0.08
    assert low[0] == 0.0
    assert high[0] == 1.0


def test_a_coarse_grid_never_makes_the_sequence_shorter() -> None:
    scores = (np.random.default_rng(6).uniform(size=400) < 0.63).astype(float)
    low, high = confidence_sequence(scores, grid=2001)
    coarse_low, coarse_high = confidence_sequence(scores, grid=12)
    assert np.all(coarse_low <= low)
    assert np.all(coarse_high >= high)


def test_a_bet_does_not_know_the_score_it_is_on() -> None:
    scores = np.random.default_rng(7).uniform(size=40)
    for t in range(40):
        other = scores.copy()
        other[t] = 1 - scores[t]
        bets, changed = (_bets(s, np.ones(40), 0.05) for s in (scores, other))
        assert bets[: t + 1].tolist() == changed[: t + 1].tolist()
        assert t == 39 or bets[t + 1] != changed[t + 1]


def test_sequential_in_the_report(tmp_path: Path) -> None:
    rows = [
        {"kind": "judgement", "prompt_id": f"p{i}", "a": "x", "b": "y", "verdict": "ab"[i % 5 == 0]}
        for i in range(200)
    ]
    report = winrate_report([write(tmp_path / "j.jsonl", rows)], sequential=True)
    found = report["sequential"]
    assert found["ci"]["low"] > 0.5
    assert 20 < found["decided_after"] < 150
    assert found["ci"]["high"] - found["ci"]["low"] > report["ci"]["high"] - report["ci"]["low"]


def test_a_cluster_counts_by_its_prompts_in_the_sequence() -> None:
    """Clusters of five that win and clusters of one that lose: five prompts in six are won."""
    cluster = np.repeat(np.arange(400), np.tile([5, 1], 200))
    scores = np.repeat(np.tile([1.0, 0.0], 200), np.tile([5, 1], 200))
    low, high = confidence_sequence(scores, cluster)
    assert len(low) == 400
    assert 0.6 < low[-1] < scores.mean() < high[-1] < 0.95


def test_sequential_follows_the_ties_and_the_clusters(tmp_path: Path) -> None:
    """Of 60 clusters of five equal verdicts, as much is known as of 60 prompts."""
    verdicts = [["a", "a", "tie", "b"][i % 4] for i in range(60)]
    rows = [
        {"kind": "judgement", "prompt_id": f"p{i}-{k}", "a": "x", "b": "y", "verdict": verdict}
        | {"extra": {"user": i}}
        for i, verdict in enumerate(verdicts)
        for k in range(5)
    ]
    file, few = write(tmp_path / "j.jsonl", rows), write(tmp_path / "few.jsonl", rows[::5])
    together = winrate_report([file], sequential=True, cluster="user")["sequential"]
    alone = winrate_report([few], sequential=True)["sequential"]
    assert (together["units"], alone["units"]) == ("clusters", "prompts")
    assert together["ci"] == alone["ci"]
    # Without its ties the file has two wins to a loss.
    found = winrate_report([few], sequential=True, ties="drop")["sequential"]["ci"]
    low, high = confidence_sequence(np.array([float(v == "a") for v in verdicts if v != "tie"]))
    assert (found["low"], found["high"]) == (low[-1], high[-1])


# --- power ---------------------------------------------------------------------------------------


def test_known_numbers_of_prompts() -> None:
    expected = {0.02: 4904, 0.03: 2178, 0.05: 783, 0.08: 305, 0.1: 194, 0.15: 85, 0.2: 47}
    assert {effect: prompts_needed(effect) for effect in expected} == expected


def test_power_by_simulation() -> None:
    """783 prompts at a true rate of 55 %, and with 20 % ties the number that needs."""
    generator = np.random.default_rng(6)
    for ties in (0.0, 0.2):
        n = prompts_needed(0.05, ties=ties)
        wins = (1 - ties) / 2 + 0.05
        scores = generator.choice([1.0, 0.5, 0.0], (4000, n), p=[wins, ties, 1 - ties - wins])
        t = (scores.mean(axis=1) - 0.5) / scores.std(axis=1, ddof=1) * math.sqrt(n)
        assert np.mean(np.abs(t) > 1.96) == pytest.approx(0.8, abs=0.02)
        assert power_of(n, 0.05, ties=ties) == pytest.approx(0.8, abs=0.002)
    assert prompts_needed(0.05, ties=0.2) < prompts_needed(0.05)


def test_smallest_effect_inverts_the_number() -> None:
    assert smallest_effect_of(783) == pytest.approx(0.05, abs=1e-4)
    assert smallest_effect_of(3) is None


def test_power_mistakes() -> None:
    with pytest.raises(RecipeError, match="an effect of 0.6 is impossible"):
        prompts_needed(0.6)
    with pytest.raises(RecipeError, match="--power is 1"):
        power_report(power=1.0)
