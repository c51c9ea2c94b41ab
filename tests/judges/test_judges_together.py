"""One table: policies of a real run judged by the truth, by a reward model and by people."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from click.testing import CliRunner

from alignkit.cli.evaluate import evaluate
from alignkit.data.read import read_records
from alignkit.data.records import Candidates, Event, Message, to_json
from alignkit.errors import GateMissed
from alignkit.evaluation.winrate import winrate_report
from alignkit.recipe.file import read_recipe
from alignkit.run.execute import Options, run_plan
from alignkit.run.plan import make_plan
from alignkit.scorers.gold import gold_score
from alignkit.tiny.data import write as write_embedded

pytestmark = pytest.mark.slow

RECIPE = """\
name: small
backbone: {model_name_or_path: tiny, quantization: none}
stages:
  - sft: {data: "embedded:demonstrations", learning_rate: 4.0e-3, max_steps: 30,
          per_device_train_batch_size: 16}
  - rank: {candidates: "embedded:candidates", judge: gold, noise: 0.5}
  - reward: {data: rank, policy: sft, learning_rate: 3.0e-3, max_steps: 30,
             per_device_train_batch_size: 8, gate: {reward.accuracy: ">= 0.5", accuracy: "> 0.5"}}
  - dpo: {data: rank, policy: sft, pairs: best-worst, learning_rate: 5.0e-4, max_steps: 6,
          per_device_train_batch_size: 8}
  - evaluate: {policies: [base, sft, dpo], baseline: sft, judge: gold, reward_model: reward,
               prompts: "embedded:test", temperatures: [1.0, 0.0], max_new_tokens: 32, limit: 18}
"""
PROMPTS = 18


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the runs, and prompts they were not trained on."""
    here = tmp_path_factory.mktemp("together")
    (here / "r.yaml").write_text(RECIPE)
    plan = make_plan(read_recipe(here / "r.yaml", ()), here / "runs")
    for outcome in run_plan(plan.stages, plan, Options()):
        (here / outcome.name).symlink_to(outcome.directory)
    write_embedded("validation", 0, here / "prompts.jsonl", rows=PROMPTS)
    return here


def held(work: Path, *judges: str) -> str:
    arguments = ["winrate", "--policies", "base=tiny", f"sft={work / 'sft'}", f"dpo={work / 'dpo'}"]
    arguments += ["--baseline", "sft", "--prompts", str(work / "prompts.jsonl")]
    arguments += ["--max-new-tokens", "32", "--quantization", "none", "--work", str(work / "w")]
    arguments += ["--output", str(work / "report.json"), "--html", str(work / "report.html")]
    arguments += [word for judge in judges for word in ("--judge", judge)]
    result = CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def vote(work: Path, candidates: Path) -> Path:
    """Two people rank the answers by the task's scoring, with errors; every sixth item is left."""
    items = [r for r in read_records(candidates) if isinstance(r, Candidates)]
    careless, lines = random.Random(1), []
    for annotator in ("ann", "bo"):
        for number, item in enumerate(items):
            if number % 6 == 5:
                continue
            liked = {
                c.cid: gold_score(item.prompt, c.messages[-1].content) + careless.gauss(0, 0.5)
                for c in item.candidates
            }
            best_first = sorted(set(liked.values()), reverse=True)
            event = Event(
                id=f"{annotator}-{number}",
                ts="2025-01-01T00:00:00Z",
                annotator=annotator,
                item=item.id,
                shown=[c.cid for c in item.candidates],
                action="rank",
                ranks={cid: best_first.index(score) + 1 for cid, score in liked.items()},
                extra=item.model_dump(include={"prompt", "candidates"}),
            )
            lines.append(to_json(event))
    path = work / "votes.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def verdict_of(score: float) -> int:
    return (score > 0.5) - (score < 0.5)


def test_gold_reward_model_and_people_in_one_table(work: Path) -> None:
    held(work, "gold")  # the answers, for people to rank
    votes = vote(work, work / "w" / "candidates.jsonl")
    shown = held(work, "gold", str(work / "reward"), f"human:{votes},{work / 'w/candidates.jsonl'}")
    report = json.loads((work / "report.json").read_text())
    judges = ["gold", "reward", "human"]
    assert report["judges"] == judges
    table = {row["model"]: row["per_judge"] for row in report["against_baseline"]["models"]}
    assert {model: [row["judge"] for row in rows] for model, rows in table.items()} == {
        "base": judges,
        "dpo": judges,
    }
    rows = [json.loads(x) for x in (work / "w" / "judgements.jsonl").read_text().splitlines()]
    for model, found in table.items():
        for row in found:
            check_against_rows(
                row, [r for r in rows if (r["a"], r["judge"]) == (model, row["judge"])]
            )
    # The gold judge said what the task's scoring says of the two texts.
    for row in (row for row in rows if row["judge"] == "gold"):
        prompt = [Message.model_validate(m) for m in row["prompt"]]
        gap = gold_score(prompt, row["output_a"]) - gold_score(prompt, row["output_b"])
        assert row["score"] == (0.5 if gap == 0 else float(gap > 0))
    check_agreement(report["agreement"], rows)
    for judge in judges:
        assert shown.count(f"by {judge} ") == 2
    assert "gold and human: " in shown
    assert "gold and human: " in (work / "report.html").read_text()
    # The table needs nothing but the judgements' file.
    again = winrate_report(work / "w" / "judgements.jsonl", baseline="sft")
    for key in ("against_baseline", "agreement", "matrix", "judges"):
        assert again[key] == report[key]


def test_what_the_demo_leaves_is_enough_for_all_judges(work: Path) -> None:
    """As after `alignkit demo`: the evaluation's judgements and a person's votes on its replies."""
    folder = work / "evaluate"
    votes = vote(work, folder / "candidates-1.jsonl")
    target = work / "demo.json"
    arguments = ["winrate", str(folder / "judgements-1.jsonl"), str(votes), "--baseline", "sft"]
    arguments += ["--output", str(target), "--html", str(work / "demo.html")]
    result = CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads(target.read_text())
    judges = ["gold", "reward", "human:ann", "human:bo"]
    assert report["judges"] == judges
    table = {row["model"]: row for row in report["against_baseline"]["models"]}
    assert sorted(table) == ["base", "dpo"]
    for row in table.values():
        assert [one["judge"] for one in row["per_judge"]] == judges
        assert result.output.count("by human:ann") == 2
        assert row["kl"]["n"] == PROMPTS
    # Both see the task's scoring, the one with errors: they agree more than the reward model does.
    pairs = {tuple(pair["judges"]): pair for pair in report["agreement"]["pairs"]}
    assert len(pairs) == 6
    assert pairs["gold", "human:ann"]["kappa"] > 0.3
    # The stage's own table has the first judge's win rates and the run's KL.
    rows = json.loads((folder / "manifest.json").read_text())["metrics"]["rows"]
    for own in (r for r in rows if r["temperature"] == 1.0 and r["policy"] != "sft"):
        gold = table[own["policy"]]["per_judge"][0]
        assert (own["win_rate"], own["low"]) == (gold["win_rate"], gold["ci"]["low"])
        assert own["kl"] == pytest.approx(table[own["policy"]]["kl"]["value"])


def check_against_rows(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    known = [row["score"] for row in rows if row["score"] is not None]
    assert (found["n"], found["n_failed"]) == (len(known), PROMPTS - len(known))
    assert found["win_rate"] == pytest.approx(fmean(known))
    assert found["n_failed"] == 0 or found["judge"] == "human"


def check_agreement(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Each two judges agree on the share of comparisons that counting them gives."""
    said = {
        (row["judge"], row["a"], row["prompt_id"]): verdict_of(row["score"])
        for row in rows
        if row["score"] is not None
    }
    assert len(found["pairs"]) == 3
    for pair in found["pairs"]:
        one, other = pair["judges"]
        common = [
            (verdict, said[other, a, prompt])
            for (judge, a, prompt), verdict in said.items()
            if judge == one and (other, a, prompt) in said
        ]
        assert pair["n"] == len(common) > 20
        assert pair["agreement"] == pytest.approx(fmean(x == y for x, y in common))
    by_pair = {frozenset(pair["judges"]): pair for pair in found["pairs"]}
    assert by_pair[frozenset(("gold", "human"))]["kappa"] > 0.3


def test_a_reward_model_below_its_gate_stops_what_follows(work: Path) -> None:
    """The accuracy is held by either name; the stage after it, which has to run again, does not."""
    for name in ("accuracy", "reward.accuracy"):
        settings = (f"reward.gate={{{name}: '>= 1.01'}}", "dpo.max_steps=7")
        plan = make_plan(read_recipe(work / "r.yaml", settings), work / "runs")
        assert plan.stage("dpo").action == "run"
        before = {path.name for path in plan.stage("dpo").directory.parent.iterdir()}
        with pytest.raises(GateMissed, match=rf"gate of reward missed: {name} is 0\.\d+, not >= 1"):
            list(run_plan(plan.stages, plan, Options()))
        after = {path.name for path in plan.stage("dpo").directory.parent.iterdir()}
        assert {name for name in after - before if name.startswith("dpo")} == set()
