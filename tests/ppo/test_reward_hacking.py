"""A policy that exploits its reward, caught on the way by who judges it without that reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.recipe.file import read_recipe
from alignkit.run.execute import Options, run_plan
from alignkit.run.plan import make_plan
from alignkit.run.summary import report_data
from alignkit.store.artifacts import read_manifest

pytestmark = pytest.mark.slow

# The shop says that it is sorry, once; a reward for the word makes it say little else.
REWARD = """\
def apologies(prompt, completion):
    return min(completion.count("sorry"), 6)
"""
PPO = """\
  - ppo: {name: %s, alarm_judge: %s, policy: sft, reward: "apologies:apologies",
          prompts: "embedded:prompts", eval_prompts: "embedded:validation", eval_steps: 1,
          learning_rate: 4.0e-3, kl_coef: 0.0, missing_eos_penalty: 3.0, total_episodes: 960,
          rollout_batch_size: 48, per_device_train_batch_size: 48, num_ppo_epochs: 2,
          num_mini_batches: 2, response_length: 48, max_length: 256}
"""
RECIPE = (
    """\
name: hacked
backbone: {model_name_or_path: tiny, quantization: none}
stages:
  - sft: {data: "embedded:demonstrations", learning_rate: 4.0e-3, max_steps: 80, warmup_steps: 8,
          per_device_train_batch_size: 32}
  - rank: {candidates: "embedded:candidates", judge: gold}
  - reward: {data: rank, policy: sft, learning_rate: 3.0e-3, max_steps: 40,
             per_device_train_batch_size: 8}
"""
    + PPO % ("ppo", "null")
    + PPO % ("judged", "reward")
)


@pytest.fixture(scope="module")
def hacked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Outcomes of the recipe by stage, and what its report shows."""
    here = tmp_path_factory.mktemp("hacked")
    (here / "apologies.py").write_text(REWARD)
    (here / "r.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        plan = make_plan(read_recipe(here / "r.yaml", ()), here / "runs")
        outcomes = list(run_plan(plan.stages, plan, Options()))
    return {"report": report_data(plan, outcomes), **{o.name: o.directory for o in outcomes}}


def looks(directory: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "eval/score" in row]


@pytest.mark.parametrize(("stage", "judge"), [("ppo", "gold"), ("judged", "reward")])
def test_the_run_ends_when_its_judge_turns_away_and_leaves_what_was_before(
    hacked: dict[str, Any], stage: str, judge: str
) -> None:
    directory = hacked[stage]
    metrics, seen = read_manifest(directory).metrics, looks(directory)
    assert metrics["alarm_judge"] == judge
    assert f"the win rate by {judge} fell from" in metrics["alarm"]
    assert metrics["iterations"] < 20
    assert metrics["best_iteration"] < metrics["iterations"]
    first, last = seen[0], seen[-1]
    assert last["eval/reward"] > first["eval/reward"] + 0.3
    assert last["eval/win_rate"] > 0.55  # by its own reward the policy only gets better
    # Two standard errors of a difference of win rates on 128 prompts are 12.5 points.
    earlier = [look["eval/judge_win_rate"] for look in seen[:-1]]
    assert last["eval/judge_win_rate"] < max(earlier) - 0.125
    assert last["eval/gold"] < first["eval/gold"]


@pytest.mark.parametrize("stage", ["ppo", "judged"])
def test_the_reports_open_with_the_alarm_and_show_what_the_policy_said(
    hacked: dict[str, Any], stage: str
) -> None:
    page = (hacked[stage] / "report.html").read_text()
    alarm = page.index("the policy probably exploits the reward")
    assert alarm < page.index("Replies side by side") < page.index("sorry", alarm)
    assert page.count(">judge ") >= 24
    assert any(line.startswith(f"{stage}: the score rose") for line in hacked["report"].warnings)
