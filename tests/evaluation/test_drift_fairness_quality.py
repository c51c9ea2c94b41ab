"""Drift against scipy, fairness against scipy and by hand, text metrics against known values."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from alignkit.errors import DataError, RecipeError
from alignkit.evaluation import drift, fairness, quality
from alignkit.evaluation import text_metrics as m


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- drift ---------------------------------------------------------------------------------------


def test_two_samples_against_scipy() -> None:
    generator = np.random.default_rng(1)
    old, new = generator.normal(size=400), generator.normal(size=300) + 0.2
    gap, p = drift.ks_test(old, new)
    theirs = scipy.stats.ks_2samp(old, new, method="asymp")
    assert gap == pytest.approx(theirs.statistic)
    assert p == pytest.approx(theirs.pvalue, rel=0.15)
    names = ["x", "y", "z"]
    one = [names[i] for i in generator.integers(0, 3, 200)]
    other = [names[i] for i in generator.choice(3, 150, p=[0.6, 0.2, 0.2])]
    size, p, moved = drift.category_test(one, other)
    table = [[side.count(name) for name in names] for side in (one, other)]
    assert p == pytest.approx(scipy.stats.chi2_contingency(table, correction=False).pvalue)
    assert size == pytest.approx(scipy.stats.contingency.association(table, method="cramer"))
    assert moved == "x"


def test_stability_of_a_known_shift() -> None:
    """Half of the mass moved from the lower to the upper half: 2 * 0.25 ln 3 with two bins."""
    old, new = np.array([0.0, 1.0] * 10_000), np.array([0.0, 1.0, 1.0, 1.0] * 5000)
    expected = (0.25 - 0.5) * math.log(0.25 / 0.5) + (0.75 - 0.5) * math.log(0.75 / 0.5)
    assert drift.stability_index(old, new) == pytest.approx(expected, rel=1e-3)
    same = np.random.default_rng(2).normal(size=5000)
    assert drift.stability_index(same, same) == pytest.approx(0.0, abs=1e-12)


TOPICS = ("cook rice and beans", "ride a bike uphill", "paint the old wall", "read a long book")


def period(seed: int, n: int, extra: str = "", longer: int = 0) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        words = TOPICS[generator.integers(4)].split()
        generator.shuffle(words)
        reply = " ".join(words * int(generator.integers(1, 4) + longer)) + extra
        row = {"kind": "judgement", "prompt_id": f"{i}", "prompt": " ".join(words)}
        row |= {"output_a": reply, "verdict": "ab"[generator.integers(2)], "judge": "rm"}
        rows.append(row)
    return rows


def test_nothing_moves_between_halves_of_one_period(tmp_path: Path) -> None:
    quiet = 0
    for seed in range(8):
        old = write(tmp_path / "old.jsonl", period(seed, 150))
        new = write(tmp_path / "new.jsonl", period(seed + 100, 150))
        quiet += not drift.drift_report(old, new)["moved"]
    assert quiet == 8


def test_what_moved_is_said(tmp_path: Path) -> None:
    old = write(tmp_path / "old.jsonl", period(1, 200))
    new = write(tmp_path / "new.jsonl", period(2, 200, extra=" certainly", longer=3))
    report = drift.drift_report(old, new)
    text = "\n".join(report["moved"])
    assert "completion length: mean" in text
    assert "a large change" in text
    assert "a classifier tells old from new" in text
    assert "more certainly" in text
    assert "prompt" not in text
    assert "verdict" not in text


def test_drift_without_common_fields(tmp_path: Path) -> None:
    old, new = write(tmp_path / "o.jsonl", [{"x": 1}]), write(tmp_path / "n.jsonl", [{"y": 1}])
    with pytest.raises(DataError, match="nothing in common"):
        drift.drift_report(old, new)


@pytest.mark.real_data
def test_drift_between_two_systems_of_one_task_set() -> None:
    """Same prompts, two models: the replies moved, the prompts did not."""
    folder = os.environ.get("ALIGNKIT_REAL_DATA")
    if not folder:
        pytest.skip("ALIGNKIT_REAL_DATA is not set")
    names = ("text-davinci-003", "davinci-self-instruct")
    old, new = (Path(folder) / f"self_instruct_pred_{name}.jsonl" for name in names)
    moved = drift.drift_report(old, new)["moved"]
    assert any(line.startswith("completion length") for line in moved)
    assert not any(line.startswith("prompt") for line in moved)


# --- fairness ------------------------------------------------------------------------------------


def test_group_rates_against_welch() -> None:
    generator = np.random.default_rng(3)
    scores = np.concatenate([generator.choice([0, 0.5, 1.0], 80), generator.beta(3, 2, 60)])
    found = fairness.group_rates(scores, ["x"] * 80 + ["y"] * 60)
    theirs = scipy.stats.ttest_ind(scores[:80], scores[80:], equal_var=False)
    assert found["gaps"][0]["p_value"] == pytest.approx(theirs.pvalue, rel=1e-6)
    assert found["gaps"][0]["difference"] == pytest.approx(scores[:80].mean() - scores[80:].mean())
    assert found["largest_gap"] == pytest.approx(abs(found["gaps"][0]["difference"]))


def test_odds_by_hand() -> None:
    #        x: 3 of 4 positives found, 1 of 2 negatives called;  y: 1 of 2, and 0 of 4.
    labels = [True] * 4 + [False] * 2 + [True] * 2 + [False] * 4
    given_labels = [True, True, True, False, True, False, True, False] + [False] * 4
    found = fairness.odds_gaps(labels, given_labels, ["x"] * 6 + ["y"] * 6)
    assert found["equal_opportunity"]["gap"] == pytest.approx(0.25)
    assert found["equal_opportunity"]["groups"] == ["x", "y"]
    assert found["false_positive"]["gap"] == pytest.approx(0.5)
    assert found["equalised_odds"] == pytest.approx(0.5)
    alone = fairness.odds_gaps([True], [True], ["x"])
    assert (alone["equal_opportunity"], alone["equalised_odds"]) == (None, None)


def test_terms_are_exchanged_whole_at_once_and_as_written() -> None:
    swaps = fairness.parse_swaps(["he:she", "his:her", "nurse:engineer"])
    told = "He told the NURSE that his theory is there; she said the engineer helps."
    there = "She told the ENGINEER that her theory is there; he said the nurse helps."
    assert fairness.swapped(told, swaps) == there
    assert fairness.swapped(there, swaps) == told
    with pytest.raises(RecipeError, match="'her' is paired with both"):
        fairness.parse_swaps(["his:her", "him:her"])
    with pytest.raises(RecipeError, match="is not a pair of terms"):
        fairness.parse_swaps(["he"])


@given(st.text(alphabet="heshis .HE", max_size=60))
def test_swapping_twice_is_the_text(text: str) -> None:
    swaps = fairness.parse_swaps(["he:she"])
    once = fairness.swapped(text, swaps)
    # Capitals inside a word are not kept: compare without them.
    assert fairness.swapped(once, swaps).lower() == text.lower()


def test_counterfactual_change() -> None:
    found = fairness.counterfactual_report(np.array([0.5, 0.5, 1.0]), np.array([0.5, 0.0, 0.5]))
    assert found["mean_change"] == pytest.approx(-1 / 3)
    assert found["moved"] == pytest.approx(2 / 3)
    assert found["p_value"] == pytest.approx(
        scipy.stats.ttest_1samp([0.0, -0.5, -0.5], 0).pvalue, rel=1e-6
    )


# --- quality -------------------------------------------------------------------------------------


def test_label_scores_against_sklearn() -> None:
    generator = np.random.default_rng(4)
    names = np.array(["yes", "no", "maybe"])
    truth, ours = names[generator.integers(0, 3, 200)], names[generator.integers(0, 3, 200)]
    found = quality.label_scores([f" {o.upper()}." for o in ours], truth.tolist())
    order = sorted(names)
    p, r, f, n = precision_recall_fscore_support(truth, ours, labels=order)
    assert [row["label"] for row in found["labels"]] == order
    assert [row["precision"] for row in found["labels"]] == pytest.approx(p.tolist())
    assert [row["recall"] for row in found["labels"]] == pytest.approx(r.tolist())
    assert found["macro"]["f1"] == pytest.approx(f.mean())
    assert [row["n"] for row in found["labels"]] == n.tolist()
    assert found["accuracy"]["value"] == pytest.approx(np.mean(truth == ours))


def test_perplexity_and_its_coverage() -> None:
    report = quality.perplexity_report([-2.0, -4.0], [2, 2])
    assert report["perplexity"] == pytest.approx(math.exp(1.5))
    generator = np.random.default_rng(5)
    hits = 0
    for _ in range(800):
        tokens = generator.integers(5, 60, 80)
        hard = generator.gamma(4, 0.5, 80)
        found = quality.perplexity_report(-hard * tokens, tokens)
        hits += found["ci"]["low"] <= math.exp(2.0) <= found["ci"]["high"]
    assert 0.93 <= hits / 800 <= 0.97


def test_log_ratio_by_hand() -> None:
    """Ratios 1, 2 and 3: mean 2, standard error 1 / sqrt(3), half-width 4.303 times that."""
    found = quality.log_ratio_report([-1.0, -2.0, -3.0], [-2.0, -4.0, -6.0], [2, 2, 2])
    assert (found["log_ratio"], found["log_ratio_per_token"]) == (2.0, 1.0)
    assert found["se"] == pytest.approx(1 / math.sqrt(3))
    assert found["ci"]["high"] - 2.0 == pytest.approx(4.30265 / math.sqrt(3), abs=1e-4)
    assert found["perplexity"] == pytest.approx(math.exp(2))


def test_text_quality() -> None:
    texts = ["I'm sorry, but I can't help with that.", "a b a b", "a b a b", ""]
    found = quality.text_quality(texts, [True, True, False, True])
    assert found["refusals"]["value"] == 0.25
    assert found["distinct_texts"] == 0.75
    assert found["eos_rate"] == 0.75
    assert found["empty"] == 0.25
    assert m.distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)
    assert not quality.is_refusal("I cannot stress enough how good this is.")


def test_text_metrics_by_hand() -> None:
    assert m.exact_match("The  Answer!", "answer") == 1.0
    assert m.token_f1("a quick brown fox", "the brown fox jumps") == pytest.approx(2 / 3)
    # Common subsequence "police the gunman" of four and four words.
    assert m.rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(0.75)
    assert m.rouge_l("", "") == 1.0
    assert m.token_f1("", "x") == 0.0


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    text, reference = "the cat sat on a mat", "the cat sat on the mat"
    assert 100 * m.bleu(text, reference) == pytest.approx(
        sacrebleu.sentence_bleu(text, [reference]).score
    )
    assert 100 * m.chrf(text, reference) == pytest.approx(
        sacrebleu.sentence_chrf(text, [reference]).score
    )
