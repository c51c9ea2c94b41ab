"""`alignkit eval reward|perplexity|replies|drift|fairness` as a user meets them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from click.testing import CliRunner

from alignkit.cli.evaluate import evaluate
from alignkit.data.records import Message
from alignkit.errors import AlignkitError
from alignkit.judges import compare, judge_named
from alignkit.model.backbone import REWARD, Backbone
from alignkit.model.heads import ScalarHead
from alignkit.recipe.settings import BackboneConfig
from alignkit.tiny.data import write as write_embedded


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(evaluate, [str(a) for a in arguments])
    if isinstance(result.exception, AlignkitError):
        return result.exception.exit_code, f"{result.output}{result.exception}"
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def reward_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward run with random weights: what it says is arbitrary, and always the same."""
    directory = tmp_path_factory.mktemp("runs") / "rm"
    backbone = Backbone.load(BackboneConfig(model_name_or_path="tiny", quantization="none"))
    backbone.new_adapter(REWARD, seed=1)
    head = ScalarHead(backbone.model.config.hidden_size, seed=3)
    backbone.save_adapter(REWARD, directory / "adapter", head=head)
    return directory


def preferences(n: int) -> list[dict[str, Any]]:
    """This reward model likes the good ones better; every fourth row says the opposite."""
    rows = []
    for i in range(n):
        sides = [f"good {i * 7 % 10}", f"bad {i} words"]
        chosen, rejected = sides if i % 4 else sides[::-1]
        row = {"prompt": f"question {i}", "chosen": chosen, "rejected": rejected}
        rows.append(row | {"category": "xy"[i % 2]})
    return rows


def test_reward(reward_run: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "prefs.jsonl", preferences(16))
    output = tmp_path / "report.json"
    arguments = ["reward", reward_run, "--data", data, "--quantization", "none"]
    code, text = run(*arguments, "--output", output, "--calibrate", "--fail-under", "0.999")
    # The gate is missed, and everything was still written.
    assert (code, "lower bound" in text) == (1, True), text
    report = json.loads(output.read_text())
    assert (report["n"], report["n_rankings"]) == (16, 16)
    # The report's accuracy is that of the judge asked one by one.
    judge = judge_named(f"reward:{reward_run}")
    asked = [([Message(role="user", content=r["prompt"])], r) for r in preferences(16)]
    right = [compare(judge, prompt, r["chosen"], r["rejected"]) for prompt, r in asked]
    assert report["accuracy"] == pytest.approx(sum(v.score or 0 for v in right) / 16)
    assert [row["name"] for row in report["per_category"]] == ["x", "y"]
    kept = json.loads((reward_run / "calibration.json").read_text())
    assert kept["temperature"] == report["calibration"]["temperature"] > 0
    notes = right[0].notes
    assert notes is not None
    margin = notes["score_left"] - notes["score_right"]
    assert notes["probability_left"] == pytest.approx(
        1 / (1 + math.exp(-margin / kept["temperature"]))
    )


def test_rmbench_format(reward_run: Path, tmp_path: Path) -> None:
    rows = [
        {"id": i, "prompt": f"p {i}", "chosen": ["a", "a b", "a b c"], "rejected": ["d", "e", "f"]}
        for i in range(4)
    ]
    data = write(tmp_path / "rm.jsonl", rows)
    code, text = run("reward", reward_run, "--data", data, "--quantization", "none", "--json")
    assert code == 0, text
    matrix = json.loads(text)["rmbench"]["matrix"]
    assert len(matrix) == 3
    assert all(0 <= share <= 1 for row in matrix for share in row)


def test_not_a_reward_run(tmp_path: Path) -> None:
    data = write(tmp_path / "prefs.jsonl", preferences(2))
    code, text = run("reward", tmp_path, "--data", data)
    assert (code, "is not a finished reward run" in text) == (2, True)


def test_perplexity(tmp_path: Path) -> None:
    """The embedded model knows its own task better than the same answers to other prompts."""
    own = write_embedded("demonstrations", 1, tmp_path / "own.jsonl", rows=12)
    rows = [json.loads(line) for line in own.read_text().splitlines()]
    answers = [row["messages"][-1] for row in rows]
    for row, answer in zip(rows, answers[1:] + answers[:1], strict=True):
        row["messages"][-1] = answer
    other = write(tmp_path / "other.jsonl", rows)
    arguments = ["perplexity", "tiny", "--quantization", "none", "--json", "--data"]
    one = json.loads(run(*arguments, own, "--batch-size", 5, "--reference", "tiny")[1])
    assert one["reference"]["log_ratio"] == 0.0  # its own distance
    assert one["reference"]["perplexity"] == pytest.approx(one["perplexity"])
    assert one["perplexity"] == pytest.approx(math.exp(one["nll_per_token"]))
    assert one["ci"]["low"] < one["perplexity"] < one["ci"]["high"]
    assert json.loads(run(*arguments, other)[1])["perplexity"] > 1.2 * one["perplexity"]


def test_replies_with_labels_and_metrics(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": f"p{i}", "policy": policy, "temperature": 0.0, "stopped": i > 0}
        | {"reply": ("Yes." if i % 2 else "no") if policy == "good" else "yes"}
        for policy in ("good", "bad")
        for i in range(8)
    ]
    truth = [{"prompt_id": f"p{i}", "reference": "yes" if i % 2 else "no"} for i in range(8)]
    files = write(tmp_path / "replies.jsonl", rows), write(tmp_path / "refs.jsonl", truth)
    code, text = run(
        "replies", files[0], "--references", files[1], "--labels", "--metric", "exact", "--json"
    )
    assert code == 0, text
    found = json.loads(text)["policies"]
    good, bad = found["good at T=0"], found["bad at T=0"]
    assert (good["labels"]["accuracy"]["value"], bad["labels"]["accuracy"]["value"]) == (1.0, 0.5)
    assert bad["labels"]["macro"]["f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert good["metrics"]["exact"]["mean"] == 1.0
    assert good["eos_rate"] == pytest.approx(7 / 8)
    code, text = run("replies", files[0], "--labels")
    assert code == 2
    assert f"{files[0]}:1: no reference for this row" in text


def test_distance_from_the_reference_in_replies(tmp_path: Path) -> None:
    ratios = [0.5, 1.5, -0.25, 0.75]
    rows = [
        {"prompt_id": str(i), "policy": "dpo", "temperature": t, "reply": "x", "log_ratio": r}
        for t in (1.0, 0.0)
        for i, ratio in enumerate(ratios)
        for r in [ratio if t else None]
    ]
    path = write(tmp_path / "replies.jsonl", rows)
    found = json.loads(run("replies", path, "--json")[1])["policies"]
    assert found["dpo at T=0"]["kl"] is None
    kl = found["dpo at T=1"]["kl"]
    low, high = scipy.stats.t.interval(0.95, 3, 0.625, scipy.stats.sem(ratios))
    assert (kl["value"], kl["ci"]["low"], kl["ci"]["high"]) == pytest.approx((0.625, low, high))
    assert "KL to its reference 0.625 [" in run("replies", path)[1]
    # Of a policy whose replies were sampled in two ways, nothing is said.
    mixed = write(tmp_path / "mixed.jsonl", [row | {"temperature": None} for row in rows])
    assert json.loads(run("replies", mixed, "--json")[1])["policies"]["dpo"]["kl"] is None


def judged(path: Path, shift: float = 0.0) -> Path:
    rows = [
        {"kind": "judgement", "prompt_id": f"p{i}", "a": "dpo", "b": "sft"}
        | {"verdict": "a" if (i * 7 % 20) / 20 + shift < (0.8 if i % 2 else 0.4) else "b"}
        | {"extra": {"region": "north" if i % 2 else "south"}}
        for i in range(120)
    ]
    return write(path, rows)


def test_fairness_of_judgements(tmp_path: Path) -> None:
    before, after = judged(tmp_path / "j.jsonl"), judged(tmp_path / "swapped.jsonl", 0.2)
    arguments = ["fairness", before, "--group", "region", "--swapped", after, "--json"]
    code, text = run(*arguments)
    assert code == 0, text
    report = json.loads(text)
    rates = {row["group"]: row["win_rate"] for row in report["win_rates"]["groups"]}
    assert rates["north"] > rates["south"] + 0.2
    assert report["win_rates"]["gaps"][0]["p_holm"] < 0.01
    assert report["counterfactual"]["n"] == 120
    assert report["counterfactual"]["mean_change"] == pytest.approx(-0.2, abs=0.06)
    assert "north: " in run("fairness", before, "--group", "region")[1]
    assert run("fairness", before)[0] == 2


def test_scores_by_group(tmp_path: Path) -> None:
    """A judge that scores answers: its scores by group, each judge on its own scale."""
    rows = []
    for i in range(60):
        score = (3.0 if i % 2 else 1.0) + 0.1 * (i % 5)
        extra = {"region": "north" if i % 2 else "south", "score_a": score, "score_b": 2 - score}
        row = {"kind": "judgement", "prompt_id": f"p{i}", "a": "dpo", "b": "sft", "verdict": "a"}
        rows.append(row | {"judge": "rm", "extra": extra})
        # A second verdict of the judge on the prompt is no second score.
        rows.append(row | {"judge": "rm", "extra": extra})
    path = write(tmp_path / "j.jsonl", rows)
    code, text = run("fairness", path, "--group", "region", "--json")
    assert code == 0, text
    found = json.loads(text)["scores"]["rm"]
    north, south = found["dpo"]["groups"]
    assert (north["group"], north["n"], south["n"]) == ("north", 30, 30)
    assert (north["mean"], south["mean"]) == pytest.approx((3.2, 1.2))
    values = [3.0 + 0.1 * (i % 5) for i in range(60) if i % 2]
    low, high = scipy.stats.t.interval(0.95, 29, 3.2, scipy.stats.sem(values))
    assert (north["ci"]["low"], north["ci"]["high"]) == pytest.approx((low, high))
    assert found["dpo"]["gaps"][0]["difference"] == pytest.approx(2.0)
    assert found["sft"]["groups"][0]["mean"] == pytest.approx(-1.2)
    assert "score of dpo by rm, north: 3.2" in run("fairness", path, "--group", "region")[1]


def test_fairness_of_labels(tmp_path: Path) -> None:
    rows = [
        {"label": i % 2 == 0, "prediction": i % 2 == 0 and (g == "x" or i % 4 == 0), "who": g}
        for g in "xy"
        for i in range(80)
    ]
    code, text = run("fairness", "--labels", write(tmp_path / "l.jsonl", rows), "--group", "who")
    assert code == 0
    assert "true positive rates: x is 50.0 points above y" in text


def test_prompts_with_terms_exchanged(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "prompt": [{"role": "user", "content": "He is a nurse."}]},
        {"id": "2", "prompt": "Nothing here."},
        {"id": "3", "prompt": "Ask him or ask SHE."},
    ]
    prompts, target = write(tmp_path / "p.jsonl", rows), tmp_path / "swapped.jsonl"
    code, text = run("fairness", "--swap", "he:she", "--prompts", prompts, "--output", target)
    assert (code, text.startswith("2 prompts hold a term")) == (0, True)
    new = [json.loads(line) for line in target.read_text().splitlines()]
    assert new[0] == {"id": "1", "prompt": [{"role": "user", "content": "She is a nurse."}]}
    assert new[1]["prompt"] == "Ask him or ask HE."


def test_drift_command(tmp_path: Path) -> None:
    old = write(tmp_path / "old.jsonl", [{"prompt": f"short {i}"} for i in range(60)])
    new = write(
        tmp_path / "new.jsonl", [{"prompt": f"much longer text {i}" * 4} for i in range(60)]
    )
    code, text = run("drift", old, new, "--fail-on-drift")
    assert code == 1
    assert "prompt length: mean" in text
    assert run("drift", old, old, "--fail-on-drift") == (
        0,
        "60 old rows, 60 new, 3 compared\nnothing moved beyond chance\n",
    )
