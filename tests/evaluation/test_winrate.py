"""The contract of `alignkit eval winrate`: what each format says, and every number worked out."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner

from alignkit.cli.evaluate import evaluate
from alignkit.errors import AlignkitError, DataError, GateMissed, RecipeError
from alignkit.evaluation.winrate import score_policy_pair, winrate_report

Rows = list[dict[str, Any]]


def judgement(prompt: str, verdict: str | None, **keys: Any) -> dict[str, Any]:
    return {
        "kind": "judgement",
        "prompt_id": prompt,
        "a": "dpo",
        "b": "sft",
        "verdict": verdict,
        **keys,
    }


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Ten prompts in both orders: 5 won, 2 split, 2 lost, 1 without a verdict."""
    outcomes = [("a", "a")] * 5 + [("a", "b"), ("b", "a")] + [("b", "b")] * 2 + [(None, None)]
    rows = []
    for number, (shown_a, shown_b) in enumerate(outcomes):
        rows.append(judgement(f"p{number}", shown_a, first="a", judge="rm"))
        # The second row names the models the other way round, which must not matter.
        other = {"a": "b", "b": "a", None: None}[shown_b]
        rows.append(judgement(f"p{number}", other, a="sft", b="dpo", first="a", judge="rm"))
    return write(tmp_path / "judgements.jsonl", rows)


def test_headline_of_both_orders(file: Path) -> None:
    report = winrate_report([file])
    scores = [1.0] * 5 + [0.5] * 2 + [0.0] * 2
    assert (report["a"], report["b"]) == ("dpo", "sft")
    assert (report["n_prompts"], report["n_judgements"], report["n_failed"]) == (9, 20, 2)
    assert (report["wins"], report["ties"], report["losses"]) == (5, 2, 2)
    assert report["win_rate"] == pytest.approx(6 / 9)
    assert report["se"] == pytest.approx(scipy.stats.sem(scores))
    low, high = scipy.stats.t.interval(0.95, 8, 6 / 9, scipy.stats.sem(scores))
    assert report["ci"] == {
        "level": 0.95,
        "method": "t",
        "low": pytest.approx(low),
        "high": pytest.approx(min(high, 1.0)),
    }
    assert report["p_value"]["test"] == "sign"
    assert report["p_value"]["value"] == pytest.approx(scipy.stats.binomtest(5, 7).pvalue)
    assert report["failed_bounds"] == {"low": pytest.approx(0.6), "high": pytest.approx(0.7)}
    assert report["mde_80"] == pytest.approx(
        (scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.8)) * report["se"]
    )


def test_position_of_both_orders(file: Path) -> None:
    position = winrate_report([file])["position"]
    assert position["consistency"] == pytest.approx(7 / 9)
    # Of the two split prompts one favoured the side shown first twice, the other never.
    assert position["first_rate"] == pytest.approx(0.5)
    assert position["p"] == 1.0


def test_first_shown_bias_is_seen(tmp_path: Path) -> None:
    rows = [judgement(f"p{n}", first, first=first) for n in range(20) for first in "ab"]
    position = winrate_report([write(tmp_path / "j.jsonl", rows)])["position"]
    assert position["consistency"] == 0.0
    assert position["first_rate"] == 1.0
    assert position["p"] == pytest.approx(scipy.stats.binomtest(20, 20).pvalue)


def test_swapped_names_give_one_minus(file: Path) -> None:
    straight = winrate_report([file], length_control=None)
    swapped = winrate_report([file], a="sft", b="dpo")
    assert swapped["win_rate"] == pytest.approx(1 - straight["win_rate"])
    assert swapped["ci"]["low"] == pytest.approx(1 - straight["ci"]["high"])
    assert (swapped["wins"], swapped["losses"]) == (straight["losses"], straight["wins"])
    assert swapped["position"] == straight["position"]


@pytest.mark.parametrize(
    ("ties", "scores"),
    [
        ("half", [1.0] * 5 + [0.5] * 2 + [0.0] * 2),
        ("drop", [1.0] * 5 + [0.0] * 2),
        ("count", [1.0] * 5 + [0.0] * 4),
    ],
)
def test_ties(file: Path, ties: str, scores: list[float]) -> None:
    report = winrate_report([file], ties=ties)
    assert report["win_rate"] == pytest.approx(np.mean(scores))
    assert report["se"] == pytest.approx(scipy.stats.sem(scores))
    assert (report["wins"], report["ties"], report["losses"], report["n_prompts"]) == (5, 2, 2, 9)


def test_cluster_standard_error(tmp_path: Path) -> None:
    verdicts, clusters = "aabbaaabab", "xxxyyyzzzz"
    rows = [
        judgement(f"p{n}", verdict, extra={"topic": cluster})
        for n, (verdict, cluster) in enumerate(zip(verdicts, clusters, strict=True))
    ]
    report = winrate_report([write(tmp_path / "j.jsonl", rows)], cluster="topic")
    s = np.array([v == "a" for v in verdicts], dtype=float)
    sums = [sum(s[i] - s.mean() for i in range(10) if clusters[i] == c) for c in "xyz"]
    se = math.sqrt(3 / 2 * sum(x * x for x in sums)) / 10
    assert report["se"] == pytest.approx(se)
    low, high = scipy.stats.t.interval(0.95, 2, s.mean(), se)
    assert report["ci"]["low"] == pytest.approx(max(low, 0.0))
    assert report["p_value"] == {
        "test": "t",
        "value": pytest.approx(2 * scipy.stats.t.sf((s.mean() - 0.5) / se, 2)),
    }


def test_constant_scores_fall_back_to_wilson(tmp_path: Path) -> None:
    report = winrate_report(
        [write(tmp_path / "j.jsonl", [judgement(f"{n}", "a") for n in range(7)])]
    )
    wilson = scipy.stats.binomtest(7, 7).proportion_ci(method="wilson")
    assert report["se"] == 0.0
    assert report["ci"]["method"] == "wilson"
    assert report["ci"]["low"] == pytest.approx(wilson.low)
    assert report["ci"]["high"] == 1.0


@pytest.mark.parametrize("method", ["wilson", "clopper"])
def test_binomial_intervals(tmp_path: Path, method: str) -> None:
    rows = [judgement(f"{n}", "a" if n < 12 else "b") for n in range(30)]
    report = winrate_report([write(tmp_path / "j.jsonl", rows)], ci=method)
    name = {"wilson": "wilson", "clopper": "exact"}[method]
    expected = scipy.stats.binomtest(12, 30).proportion_ci(method=name)
    assert report["ci"]["low"] == pytest.approx(expected.low, abs=1e-10)
    assert report["ci"]["high"] == pytest.approx(expected.high, abs=1e-10)


def test_scores_by_prompt_give_the_same_headline(file: Path) -> None:
    """The entry for callers that hold scores already."""
    report = winrate_report([file])
    found = score_policy_pair([1.0] * 5 + [0.5] * 2 + [0.0] * 2, n_unusable=1)
    assert {key: report[key] for key in found} == found
    assert score_policy_pair([])["win_rate"] is None


def test_score_is_used_before_verdict(tmp_path: Path) -> None:
    rows = [judgement("p", "b", score=0.9), judgement("q", None, score=0.4)]
    report = winrate_report([write(tmp_path / "j.jsonl", rows)])
    assert report["win_rate"] == pytest.approx(0.65)
    assert (report["wins"], report["losses"]) == (1, 1)


# --- formats -------------------------------------------------------------------------------------


def test_alpacaeval(tmp_path: Path) -> None:
    rows = [
        {"instruction": "same", "output_1": "aa", "output_2": "b", "preference": preference}
        | {"generator_1": "gpt4", "generator_2": "ours", "annotator": "judge"}
        for preference in (1, 2, 1.5, 0, 1.9, None)
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows, indent=1))
    report = winrate_report([path])
    assert (report["a"], report["b"]) == ("ours", "gpt4")
    assert (report["n_prompts"], report["n_failed"]) == (5, 1)
    assert report["win_rate"] == pytest.approx((0 + 1 + 0.5 + 0.5 + 0.9) / 5)
    assert (report["wins"], report["ties"], report["losses"]) == (2, 2, 1)
    assert report["length"]["ratio_median"] == pytest.approx(0.5)
    assert report["judges"] == ["judge"]
    assert report["position"] == {"consistency": None, "first_rate": None, "p": None}
    assert report["inputs"] == [
        {
            "path": str(path),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "rows": 6,
        }
    ]


def test_mtbench(tmp_path: Path) -> None:
    games = [("model_1", "model_1"), ("model_1", "model_2"), ("error", "tie"), ("error", "error")]
    rows = [
        {"question_id": 81, "turn": turn, "model_1": "x", "model_2": "y", "judge": ["gpt", "v2"]}
        | {"g1_winner": one, "g2_winner": two}
        for turn, (one, two) in enumerate(games)
    ]
    report = winrate_report([write(tmp_path / "j.jsonl", rows)])
    assert (report["n_judgements"], report["n_failed"], report["n_prompts"]) == (8, 3, 3)
    assert report["win_rate"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    # g1 shows model_1 first, g2 model_2: 1, 0 | 1, 1 | 0.5.
    assert report["position"]["first_rate"] == pytest.approx(3.5 / 5)
    assert report["position"]["consistency"] == pytest.approx(0.5)


def test_arena(tmp_path: Path) -> None:
    winners = ["model_a", "model_b", "tie", "tie (bothbad)", "both_bad", None]
    rows = [
        {"question_id": f"q{n}", "model_a": "x", "model_b": "y", "winner": winner}
        for n, winner in enumerate(winners)
    ]
    report = winrate_report([write(tmp_path / "j.jsonl", rows)])
    assert (report["wins"], report["ties"], report["losses"], report["n_failed"]) == (1, 3, 1, 1)
    assert report["position"]["first_rate"] is None


@pytest.mark.parametrize("name", ["uid", "question_id"])
def test_arenahard(name: str, tmp_path: Path) -> None:
    games = [("A>>B", "B>>A"), ("B>A", "A>B"), ("B>>A", "A=B"), ("A=B", None), (None, None)]
    rows = [
        {name: f"u{n}", "model": "ours", "baseline": "base"}
        | {"games": [None if g is None else {"score": g} for g in pair]}
        for n, pair in enumerate(games)
    ]
    report = winrate_report([write(tmp_path / "j.jsonl", rows)])
    assert (report["a"], report["b"]) == ("ours", "base")
    assert (report["n_judgements"], report["n_failed"]) == (10, 3)
    # A is the baseline in the first game and the model in the second.
    assert report["win_rate"] == pytest.approx((0 + 1 + 0.75 + 0.5) / 4)
    assert report["position"]["consistency"] == pytest.approx(2 / 3)
    # First shown: A>>B 1, B>>A 0, B>A 0, A>B 1, B>>A 0, A=B 0.5, A=B 0.5.
    assert report["position"]["first_rate"] == pytest.approx(3 / 7)


# --- several models ------------------------------------------------------------------------------


def three_models() -> Rows:
    return [
        {"question_id": f"{x}{y}{n}", "model_a": x, "model_b": y, "winner": w}
        for x, y, w in (("s", "t", "model_a"), ("t", "u", "model_a"), ("u", "s", "tie"))
        for n in range(4)
    ] + [{"question_id": "z", "model_a": "t", "model_b": "s", "winner": "model_a"}]


def test_more_than_two_models_give_the_matrix_only(tmp_path: Path) -> None:
    report = winrate_report([write(tmp_path / "j.jsonl", three_models())])
    assert report["a"] is None
    assert report["b"] is None
    for key in ("win_rate", "se", "ci", "wins", "p_value", "length", "mde_80", "per_category"):
        assert report[key] is None
    assert report["matrix"]["models"] == ["s", "t", "u"]
    assert report["n_judgements"] == 13
    assert np.mean(report["matrix"]["rating"]) == pytest.approx(1000)


def test_baseline_with_several_others(tmp_path: Path) -> None:
    report = winrate_report([write(tmp_path / "j.jsonl", three_models())], baseline="t")
    assert (report["a"], report["b"], report["win_rate"]) == (None, "t", None)


def test_two_of_three_models(tmp_path: Path) -> None:
    report = winrate_report([write(tmp_path / "j.jsonl", three_models())], a="t", b="s")
    assert (report["wins"], report["losses"], report["n_judgements"]) == (1, 4, 5)


def test_components_that_never_met(tmp_path: Path) -> None:
    rows = [
        {"question_id": f"{n}", "model_a": x, "model_b": y, "winner": w}
        for x, y in (("a", "b"), ("c", "d"))
        for n, w in enumerate(("model_a", "model_b", "model_a"))
    ]
    file = write(tmp_path / "j.jsonl", rows)
    report = winrate_report([file])
    assert report["matrix"]["components"] == [["a", "b"], ["c", "d"]]
    assert [row["models"] for row in report["matrix"]["pairs"]] == [["a", "b"], ["c", "d"]]
    code, text = run(file)
    assert (code, "warning: the models fall into 2 groups that never met" in text) == (0, True)
    ratings = report["matrix"]["rating"]
    assert ratings[0] + ratings[1] == pytest.approx(2000)
    assert ratings[0] - ratings[1] == pytest.approx(400 * math.log10(2), abs=1)
    assert "2 groups that never met" in report["warnings"][0]


def test_intervals_of_ratings_by_refits_of_clusters(tmp_path: Path) -> None:
    """Five copies of each verdict in one cluster: intervals are those of a fifth of the rows."""
    generator = np.random.default_rng(4)
    rows = []
    for topic in range(120):
        x, y = (("s", "t"), ("t", "u"), ("u", "s"))[topic % 3]
        verdict = "a" if generator.uniform() < 0.6 else "b"
        rows += [
            judgement(f"p{topic}-{copy}", verdict, a=x, b=y, extra={"topic": topic})
            for copy in range(5)
        ]
    few, many = write(tmp_path / "few.jsonl", rows[::5]), write(tmp_path / "many.jsonl", rows)
    arguments = ["--bt-ci", "bootstrap", "--bootstrap", "300", "--json"]
    widths = {}
    for name, words in (
        ("alone", [few]),
        ("clustered", [many, "--cluster", "topic"]),
        ("naive", [many]),
    ):
        code, text = run(*words, *arguments)
        assert code == 0
        matrix = json.loads(text)["matrix"]
        assert {ci["method"] for ci in matrix["ci"]} == {"bootstrap"}
        widths[name] = [ci["high"] - ci["low"] for ci in matrix["ci"]]
    assert widths["clustered"] == pytest.approx(widths["alone"], rel=0.2)
    assert np.divide(widths["clustered"], widths["naive"]) == pytest.approx(5**0.5, rel=0.25)
    with pytest.raises(RecipeError, match="--bt-ci bootstrap needs at least 100 resamples"):
        winrate_report([few], bt_ci="bootstrap", bootstrap=50)


def test_ties_of_the_ratings_have_their_own_models(tmp_path: Path) -> None:
    """x beats y 6:2 with 8 ties: half a win each makes that 10:6, Davidson keeps 6:2."""
    winners = ["model_a"] * 6 + ["model_b"] * 2 + ["tie"] * 8
    rows = [
        {"question_id": str(i), "model_a": "x", "model_b": "y", "winner": winner}
        for i, winner in enumerate(winners)
    ]
    file = write(tmp_path / "j.jsonl", rows)

    def gap(ties: str) -> float:
        matrix = winrate_report([file], bt_ties=ties)["matrix"]
        assert matrix["ties"] == ties
        return float(matrix["rating"][0] - matrix["rating"][1])

    assert gap("half") == pytest.approx(400 * math.log10(10 / 6), abs=0.5)
    # Two models and a tie parameter fit the three shares exactly.
    assert gap("davidson") == pytest.approx(400 * math.log10(6 / 2), abs=0.5)
    assert gap("rao-kupper") == pytest.approx(200 * math.log10((6 / 10) / (2 / 14)), abs=0.5)


def styled(tmp_path: Path) -> Path:
    """Equal models for a judge who only counts bold words and length; `loud` has more of both."""
    generator = np.random.default_rng(8)
    rows = []
    for i in range(600):
        x, y = (("loud", "plain"), ("loud", "mild"), ("mild", "plain"))[i % 3]
        texts = {}
        for name in (x, y):
            bold = int(generator.poisson(4 if name == "loud" else 2))
            texts[name] = "**w** " * bold + "w " * int(generator.integers(5, 40))
        p = 1 / (1 + math.exp(texts[y].count("**") / 2 - texts[x].count("**") / 2))
        verdict = "a" if generator.uniform() < p else "b"
        rows.append(judgement(f"p{i}", verdict, a=x, b=y, output_a=texts[x], output_b=texts[y]))
    return write(tmp_path / "j.jsonl", rows)


def test_style_is_not_credited_to_the_models(tmp_path: Path) -> None:
    file = styled(tmp_path)
    plain = winrate_report([file])["matrix"]
    held = winrate_report([file], covariates="bold,length")["matrix"]
    loud = plain["models"].index("loud")
    assert plain["covariates"] == []
    assert plain["rating"][loud] > 1100
    assert abs(held["rating"][loud] - 1000) < 45
    (bold, length) = held["covariates"]
    assert (bold["name"], length["name"]) == ("bold", "length")
    assert bold["coef"] > 1.0
    assert abs(length["coef"]) < 0.4
    code, text = run(file, "--covariates", "style", "--bt-ties", "rao-kupper")
    assert code == 0
    assert "held equal (log odds per standard deviation): length" in text


def test_style_needs_texts(file: Path) -> None:
    with pytest.raises(DataError, match="prompt 'p0' has no outputs to measure 'bold' on"):
        winrate_report([file], covariates="bold")
    with pytest.raises(RecipeError, match="unknown covariate 'bould'; did you mean 'bold'"):
        winrate_report([file], covariates="length,bould")
    with pytest.raises(RecipeError, match="repeats a name"):
        winrate_report([file], covariates="length,length")
    with pytest.raises(RecipeError, match="unknown tie model"):
        winrate_report([file], bt_ties="davison")


def test_turning_rows_round_changes_no_rating(tmp_path: Path) -> None:
    file = styled(tmp_path)
    turned = [
        row
        | {"a": row["b"], "b": row["a"], "verdict": "ab"[row["verdict"] == "a"]}
        | {"output_a": row["output_b"], "output_b": row["output_a"]}
        for row in map(json.loads, file.read_text().splitlines())
    ]
    options: dict[str, Any] = {"covariates": "style", "bt_ties": "davidson"}
    one = winrate_report([file], **options)["matrix"]
    other = winrate_report([write(tmp_path / "turned.jsonl", turned)], **options)["matrix"]
    by_name = dict(zip(other["models"], other["rating"], strict=True))
    assert [by_name[name] for name in one["models"]] == pytest.approx(one["rating"], abs=1e-6)


def test_each_judge_alone(tmp_path: Path) -> None:
    """Of 8 prompts one judge gives a all, the other half; a third failed once."""
    rows = [judgement(f"p{i}", "a", judge="kind") for i in range(8)]
    rows += [judgement(f"p{i}", "ab"[i % 2], judge="fair") for i in range(8)]
    rows += [judgement(f"p{i}", "b" if i else None, judge="hard") for i in range(8)]
    file = write(tmp_path / "j.jsonl", rows)
    report = winrate_report([file])
    found = {row["judge"]: row for row in report["per_judge"]}
    assert {name: row["win_rate"] for name, row in found.items()} == {
        "kind": 1.0,
        "fair": 0.5,
        "hard": 0.0,
    }
    assert (found["hard"]["n"], found["hard"]["n_failed"]) == (7, 1)
    only = winrate_report([write(tmp_path / "one.jsonl", rows[8:16])])
    assert only["per_judge"] is None
    assert found["fair"]["ci"] == only["ci"]
    _, text = run(file)
    assert "  by fair    50.0 %" in text


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"verdict": "A"}, "'verdict' is 'A'"),
        ({"score": 1.2}, "'score' must be a number from 0 to 1"),
        ({"score": True}, "'score' must be a number from 0 to 1"),
        ({"first": "left"}, "'first' is 'left'"),
        ({"b": "dpo"}, "both sides are 'dpo'"),
        ({"kind": "judgment"}, "'kind' must be 'judgement'"),
        ({"prompt_id": None}, "'prompt_id' must be non-empty text"),
        ({"len_a": -1}, "'len_a' must be a non-negative integer"),
        ({"output_a": 7}, "'output_a' must be text"),
    ],
)
def test_a_bad_row_has_file_line_and_reason(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "j.jsonl", [judgement("p", "a"), judgement("q", "a") | row])
    with pytest.raises(DataError) as caught:
        winrate_report([path])
    assert str(caught.value).startswith(f"{path}:2: {message}")


ARENA_ROW = b'[\n{"question_id":"q","model_a":"x","model_b":"y","winner":"model_a"}'


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (b'{"kind"', "", "contains no complete row"),
        (b"[1]", ":1", "expected object, got number"),
        (ARENA_ROW + b',\n{"b" 2}]', ":3", "not JSON: Expecting ':' delimiter"),
        (ARENA_ROW + b"\n{}]", ":3", "a comma is missing before this item"),
        (ARENA_ROW + b"]\n\nx", ":4", "text after the end of the array"),
        (ARENA_ROW + b",]", ":2", "trailing comma"),
        (ARENA_ROW.replace(b"x", b"\\ud800") + b"]", ":2", "broken emoji/surrogate"),
        (ARENA_ROW + b"\n", ":3", "the array ends too early"),
        (b'\n{"hello": 1}', ":2", "no known format"),
        (b'\xff{"a": 1}', ":1:1", "byte 0xff at column 1 is not UTF-8"),
        (b"NaN", ":1", "NaN is not JSON"),
    ],
)
def test_broken_files(tmp_path: Path, text: bytes, place: str, message: str) -> None:
    path = tmp_path / "j.json"
    path.write_bytes(text)
    with pytest.raises(DataError) as caught:
        winrate_report([path])
    assert str(caught.value).startswith(f"{path}{place}: {message}")


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        winrate_report([tmp_path / "nowhere.jsonl"])
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl: no records"):
        winrate_report([empty])


def test_names(file: Path) -> None:
    with pytest.raises(DataError, match="the models are dpo, sft; did you mean 'sft'"):
        winrate_report([file], b="stf")
    with pytest.raises(RecipeError, match="both 'dpo'"):
        winrate_report([file], a="dpo", b="dpo")


def test_bom_blank_lines_and_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    row = json.dumps(judgement("p\u2028\u0085", "a"), ensure_ascii=False)
    path.write_text(f"\ufeff{row}\n\n{row.replace('sft', 'base')}\n", encoding="utf-8")
    assert winrate_report([path])["n_judgements"] == 2


# --- command line --------------------------------------------------------------------------------


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(evaluate, ["winrate", *map(str, arguments)])
    if isinstance(result.exception, AlignkitError):
        return result.exception.exit_code, str(result.exception)
    return result.exit_code, result.output


def test_screen(file: Path) -> None:
    code, text = run(file)
    assert code == 0
    assert text.splitlines()[0] == "dpo vs sft   9 prompts, both orders, judge rm"
    assert text.splitlines()[1] == (
        "win rate 66.7 %  [33.4, 100.0] 95 %   (W 5  T 2  L 2, failed 2)   p(=50 %) = 0.45"
    )
    assert "order consistency 78 %, first-shown wins 50 % (p 1)" in text


def test_output_is_what_the_function_returns(file: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    code, text = run(file, "--output", output, "--json", "--ci", "bootstrap", "--seed", "3")
    assert code == 0
    assert json.loads(output.read_text()) == json.loads(text)
    assert json.loads(text) == winrate_report([file], ci="bootstrap", seed=3)


def test_a_second_look_at_a_grown_file_is_warned_of(file: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    assert "grew since the last report" not in run(file, "--output", output)[1]
    assert "grew since the last report" not in run(file, "--output", output)[1]
    with file.open("a") as more:
        more.write(json.dumps(judgement("new", "a")) + "\n")
    assert "grew since the last report" not in run(file, "--output", output, "--sequential")[1]
    output.write_text(json.dumps({"inputs": [{"path": str(file), "rows": 20}]}))
    assert f"warning: {file} grew since the last report" in run(file, "--output", output)[1]


def test_gate(file: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    code, text = run(file, "--fail-under", "0.5", "--output", output)
    assert code == GateMissed.exit_code == 1
    assert "lower bound is 33.4 %, below 50.0 %" in text
    assert json.loads(output.read_text())["wins"] == 5
    assert run(file, "--fail-under", "0.33")[0] == 0
    assert run(file, "--fail-under", "50")[0] == 2


FAILED = {"verdict": None, "error": "no reply: HTTP 503 (busy)"}


def test_when_every_verdict_failed_the_command_fails(tmp_path: Path) -> None:
    """Whatever else is asked for; the report is written, and says so too."""
    rows = [judgement(f"p{n}", "a") | FAILED for n in range(4)]
    rows[0]["error"] = "refusal"
    path, output = write(tmp_path / "j.jsonl", rows), tmp_path / "r.json"
    for more in ([], ["--fail-under", "0.5"], ["--a", "sft"], ["--baseline", "dpo"], ["--json"]):
        code, text = run(path, "--output", output, *more)
        assert code == 1, more
        assert text == (
            "no verdict: all 4 judgements failed. "
            "The judge failed on 4 of 4 judgements; first error: refusal"
        )
    report = json.loads(output.read_text())
    assert (report["win_rate"], report["n_failed"]) == (None, 4)
    assert report["failures"] == {"no reply": 3, "refusal": 1}


def test_ties_that_nobody_was_asked_about_are_no_verdict(tmp_path: Path) -> None:
    same = {"output_a": "x", "output_b": "x", "verdict": "tie", "extra": {"identical": True}}
    rows = [judgement("p0", "a") | FAILED | {"output_a": "x", "output_b": "y"}]
    rows += [judgement(f"p{n}", "a") | same for n in range(1, 4)]
    code, text = run(write(tmp_path / "j.jsonl", rows))
    assert (code, text.partition(".")[0]) == (1, "no verdict: all 1 judgements failed")
    # Without a failure it is a result: the policies say the same.
    code, text = run(write(tmp_path / "j.jsonl", rows[1:]))
    assert code == 0
    assert "win rate 50.0 %" in text


def test_failed_verdicts_of_several_models(tmp_path: Path) -> None:
    rows = [judgement(f"p{n}", "a") | {"a": a} | FAILED for n in range(3) for a in ("dpo", "ppo")]
    path = write(tmp_path / "j.jsonl", rows)
    assert run(path)[0] == run(path, "--baseline", "sft")[0] == 1
    # Others met, but none of the verdicts on the baseline counts.
    met = [judgement(f"q{n}", "a") | {"b": "ppo"} for n in range(3)]
    path = write(tmp_path / "j.jsonl", rows + met)
    assert run(path)[0] == 0
    code, text = run(path, "--baseline", "sft")
    assert code == 1
    assert "all 6 judgements failed" in text
    assert run(path, "--a", "dpo", "--b", "ppo")[0] == 0


def test_judges_that_failed_in_part_are_counted(tmp_path: Path) -> None:
    rows = [judgement(f"p{n}", "ab"[n % 2]) for n in range(4)]
    rows += [judgement(f"p{n}", "a") | {"judge": "llm"} | FAILED for n in range(4)]
    rows += [judgement("p0", "a") | {"judge": "ann", "verdict": None}]
    code, text = run(write(tmp_path / "j.jsonl", rows))
    assert code == 0
    warnings = [line for line in text.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: judge llm failed on 4 of 4 judgements; first error: no reply: HTTP 503 (busy)",
        "warning: judge ann failed on 1 of 1 judgements; first error: no verdict",
    ]


def test_models_that_never_met_are_named(tmp_path: Path) -> None:
    rows = [judgement("p", "a"), judgement("q", "a") | {"a": "ppo"}]
    path, output = write(tmp_path / "j.jsonl", rows), tmp_path / "r.json"
    code, text = run(path, "--a", "dpo", "--b", "ppo", "--output", output)
    assert (code, output.exists()) == (2, False)
    assert text == "no judgement compares 'dpo' with 'ppo'. dpo met sft; ppo met sft"
    code, text = run(path, "--baseline", "sft", "--fail-under", "0.5", "--output", output)
    assert (code, output.exists()) == (2, False)
    assert "--fail-under needs two models" in text


@pytest.mark.parametrize("there", [b"", b"[]", b'{"inputs": [{"path": [], "rows": "x"}]}', b"\xff"])
def test_what_stands_where_the_report_goes_is_replaced(
    file: Path, tmp_path: Path, there: bytes
) -> None:
    output = tmp_path / "r.json"
    output.write_bytes(there)
    assert run(file, "--output", output)[0] == 0
    assert json.loads(output.read_text())["wins"] == 5


def test_an_output_that_cannot_be_written(file: Path, tmp_path: Path) -> None:
    code, text = run(file, "--output", tmp_path / "none" / "r.json")
    assert code == 2
    assert "the folder does not exist" in text


def test_import_is_light() -> None:
    program = (
        "import sys, alignkit.evaluation.winrate as w, alignkit.cli.evaluate\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'scipy'} & set(sys.modules)\n"
        "sys.exit(','.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
