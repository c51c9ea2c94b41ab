"""The example of docs/CONTRIBUTING.md, run: one module and one line make a reward and a judge."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from alignkit.cli.evaluate import evaluate
from alignkit.recipe.file import read_recipe
from alignkit.recipe.scorer_forms import FORMS, Form
from alignkit.run.execute import Options, run_plan
from alignkit.run.plan import make_plan

PAGE = Path(__file__).parents[2] / "docs" / "CONTRIBUTING.md"
HEAD = "name: x\nbackbone: {model_name_or_path: tiny, quantization: none}\nstages:\n"


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's module on the path under a name of its own, and the page's line in the table."""
    module, line, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "short_of_the_page.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    line = line.replace("alignkit.scorers.short", "short_of_the_page")
    for kind, form in eval(f"{{{line}}}", {"Form": Form}).items():
        monkeypatch.setitem(FORMS, kind, form)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check(judgements: list[dict[str, Any]]) -> None:
    """Each verdict is that of the two lengths."""
    assert judgements
    for row in judgements:
        gap = len(row["output_b"]) - len(row["output_a"])
        assert row["verdict"] == ("tie" if gap == 0 else "a" if gap > 0 else "b")
        assert row["extra"]["score_a"] == -len(row["output_a"])
    assert {row["verdict"] for row in judgements} != {"tie"}


@pytest.mark.usefixtures("short")
def test_the_example_is_a_reward_and_a_judge_in_recipes_and_on_the_command_line(
    tmp_path: Path,
) -> None:
    prompts = [{"prompt": f"Where is my {word}?"} for word in ("kettle", "lamp", "scarf", "chair")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        HEAD + "  - ppo: {prompts: prompts.jsonl, reward_model: short, response_length: 8,\n"
        "          total_episodes: 8, rollout_batch_size: 8, max_length: 64,\n"
        "          learning_rate: 0.05}\n"
        "  - evaluate: {policies: ppo, baseline: base, judge: [short], prompts: prompts.jsonl,\n"
        "               temperatures: 1.0, max_new_tokens: 8}\n"
    )
    plan = make_plan(read_recipe(recipe), tmp_path / "runs")
    trained, evaluated = run_plan(plan.stages, plan, Options())
    (step,) = rows_of(trained.directory / "metrics.jsonl")[-1:]
    assert -8 * 8 < step["rewards/short"] < 0
    check(rows_of(evaluated.directory / "judgements-1.jsonl"))
    work = tmp_path / "work"
    arguments = ["winrate", "--policies", "base=tiny", f"ppo={trained.directory}", "--judge"]
    arguments += ["short", "--prompts", str(tmp_path / "prompts.jsonl"), "--work", str(work)]
    arguments += ["--max-new-tokens", "8", "--quantization", "none"]
    result = CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "judge short" in result.output
    check(rows_of(work / "judgements.jsonl"))
