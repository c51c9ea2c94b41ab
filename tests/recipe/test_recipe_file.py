"""Recipes: all problems at once, each with file, line, column and a way out."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignkit.errors import AlignkitError, RecipeError
from alignkit.recipe.file import parse_setting, read_recipe
from alignkit.recipe.settings import DpoConfig, PpoConfig, SftConfig
from tests.command import alignkit

GOOD = """\
name: helpful
seed: 17
backbone:
  quantization: nf4
stages:
  - sft: {data: rows.jsonl, learning_rate: 2e-4}
  - reward: {data: rows.jsonl}
  - dpo: {data: rows.jsonl, policy: sft, beta: 0.1}
  - evaluate: {policies: [sft, dpo], baseline: sft, judge: reward, prompts: rows.jsonl}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(text: str, *settings: str) -> list[str]:
    Path("r.yaml").write_text(text)
    with pytest.raises(AlignkitError) as caught:
        read_recipe(Path("r.yaml"), settings)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def test_a_good_recipe_is_read_whole(here: Path) -> None:
    (here / "r.yaml").write_text(GOOD)
    recipe = read_recipe(Path("r.yaml"))
    assert [stage.name for stage in recipe.stages] == ["sft", "reward", "dpo", "evaluate"]
    sft = recipe.stage("sft").config
    assert isinstance(sft, SftConfig)
    assert sft.learning_rate == 2e-4
    assert recipe.seed == 17


def test_settings_are_laid_over_by_stage_name(here: Path) -> None:
    (here / "r.yaml").write_text(GOOD)
    settings = ["dpo.beta=0.3", "seed=5", "backbone.lora_r=4", "dpo.trainer.optim=sgd"]
    recipe = read_recipe(Path("r.yaml"), settings)
    dpo = recipe.stage("dpo").config
    assert isinstance(dpo, DpoConfig)
    assert (dpo.beta, dpo.trainer) == (0.3, {"optim": "sgd"})
    assert (recipe.seed, recipe.backbone.lora_r) == (5, 4)


STAGE = "name: x\nstages:\n  - sft: {{data: rows.jsonl}}\n  - {}\n"

# What the table of malformed inputs has no row for: text, then the message.
MALFORMED: list[tuple[str, str, str]] = [
    (
        "infinite",
        STAGE.format("dpo: {data: rows.jsonl, learning_rate: .inf}"),
        "'learning_rate' must be a finite number, not inf",
    ),
    (
        "output key",
        STAGE.format("dpo: {data: rows.jsonl, output: ../../etc}"),
        "'output' is not a recipe key: set a run's directory on the command line",
    ),
    ("run name", "name: ../x\nstages: [{sft: {data: rows.jsonl}}]\n", "'../x' is not a name"),
    ("empty", "", "a recipe is a mapping with name and stages, but this is empty"),
    ("no stages", "name: x\n", "stages is missing"),
    ("no name", "stages: [{sft: {data: rows.jsonl}}]\n", "'name' is missing"),
    ("unknown kind", STAGE.format("dop: {}"), "unknown stage 'dop'; did you mean 'dpo'?"),
    ("two kinds", STAGE.format("{dpo: {}, sft: {}}"), "a stage is one kind with its settings"),
    ("other tool's word", STAGE.format("dpo: {cutoff_len: 5}"), "alignkit calls it 'max_length'"),
    (
        "remote code",
        "name: x\nbackbone: {trust_remote_code: true}\nstages: [{sft: {data: rows.jsonl}}]\n",
        "r.yaml:2:12: 'trust_remote_code' is not a recipe key: code that comes with a model is",
    ),
    (
        "same name twice",
        STAGE.format("sft: {data: rows.jsonl}"),
        "r.yaml:4:5: a second stage is named 'sft'; the first is at 3:5",
    ),
    (
        "later stage",
        "name: x\nstages:\n  - dpo: {data: rows.jsonl, policy: sft}\n  - sft: {data: rows.jsonl}\n",
        "r.yaml:3:37: stage 'sft' comes after 'dpo'",
    ),
    (
        "wrong kind of stage",
        STAGE.format("ppo: {prompts: rows.jsonl, reward_model: sft}"),
        "stage 'sft' is a sft stage; this must be reward",
    ),
    (
        "no judge of that name",
        STAGE.format(
            "ppo: {prompts: rows.jsonl, reward: a:b, eval_fraction: 0.1, alarm_judge: gol}"
        ),
        "no stage or run 'gol'; did you mean 'gold'?",
    ),
    (
        "a function where only a reward model fits",
        STAGE.format("ppo: {prompts: rows.jsonl, reward_model: 'a:b'}"),
        "no stage or run 'a:b'",
    ),
    (
        "a judge of its own cause",
        STAGE.format(
            "ppo: {prompts: rows.jsonl, reward: a:b, eval_fraction: 0.1, alarm_judge: a:b}"
        ),
        "alarm_judge a:b is what the policy is trained on",
    ),
    (
        "no file",
        STAGE.format("dpo: {data: row.jsonl}"),
        "r.yaml:4:17: no file 'row.jsonl'; did you mean 'rows.jsonl'?",
    ),
    (
        "no loss of that name",
        STAGE.format("dpo: {data: rows.jsonl, loss_type: [sft, sigmoidd]}"),
        "r.yaml:4:46: 'loss_type' must be 'sigmoid', 'ipo', ",
    ),
    (
        "nearly a loss",
        STAGE.format("dpo: {data: rows.jsonl, loss_type: sigmoidd}"),
        "not the text 'sigmoidd'; did you mean 'sigmoid'?",
    ),
    ("nobody's home", STAGE.format("dpo: {data: ~nobody-here/x}"), "no file '~nobody-here/x'"),
    ("directory", STAGE.format("dpo: {data: .}"), "rankings or preferences are expected"),
    ("embedded", STAGE.format("dpo: {data: 'embedded:promts'}"), "did you mean 'prompts'?"),
    (
        "settings together",
        STAGE.format("reward: {data: rows.jsonl, eval_strategy: steps}"),
        "r.yaml:4:47: eval_strategy 'steps' needs eval_steps",
    ),
    ("seed", "name: x\nseed: -1\nstages: [{sft: {data: rows.jsonl}}]\n", "'seed' must be at least"),
    (
        "backbone",
        "name: x\nbackbone: {lora_rank: 8}\nstages: [{sft: {data: rows.jsonl}}]\n",
        "r.yaml:2:12: unknown key 'lora_rank'; alignkit calls it 'lora_r'",
    ),
]


def test_a_function_may_judge_where_a_stage_or_gold_may(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    for judge in ("judges:strict", "package.judges:strict", "gold"):
        shared = "prompts: rows.jsonl, reward: a:b, eval_fraction: 0.1"
        text = f"ppo: {{{shared}, alarm_judge: {judge}}}"
        (tmp_path / "r.yaml").write_text(STAGE.format(text))
        config = read_recipe(tmp_path / "r.yaml").stage("ppo").config
        assert isinstance(config, PpoConfig)
        assert config.alarm_judge == judge


@pytest.mark.parametrize(("name", "text", "message"), MALFORMED, ids=[row[0] for row in MALFORMED])
def test_malformed_recipes(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, message: str
) -> None:
    (here / "r.yaml").write_text(text)
    before = sorted(here.rglob("*"))
    began = time.process_time()
    said = alignkit(capsys, "run", "r.yaml")
    assert said.code == 2
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert time.process_time() - began < 2
    assert sorted(here.rglob("*")) == before


def test_numbers_in_scientific_notation_are_numbers(here: Path) -> None:
    (here / "r.yaml").write_text(STAGE.format("dpo: {data: rows.jsonl, learning_rate: 1e-4}"))
    config = read_recipe(Path("r.yaml")).stage("dpo").config
    assert isinstance(config, DpoConfig)
    assert config.learning_rate == 1e-4


def test_all_problems_are_told_at_once_in_the_order_of_the_file(here: Path) -> None:
    found = problems(
        "name: x\nseed: 1.5\nstages:\n  - sft: {data: gone.jsonl}\n"
        "  - dpo: {data: rows.jsonl, polcy: sft, beta: 0}\n  - reward: {}\n"
    )
    assert [line.split(":")[1] for line in found] == ["2", "4", "5", "5", "6"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("dpo.bta=1", "--set dpo.bta=1: unknown key 'bta'; did you mean 'beta'?"),
        ("dop.beta=1", "no stage 'dop'; did you mean 'dpo'?"),
        ("dpo.beta", "--set 'dpo.beta' is not key=value"),
        ("dpo.beta=[1", "a list is never closed"),
        ("dpo.beta=x", "--set dpo.beta=x: 'beta' must be a number, not the text 'x'"),
        ("stages=1", "stages must be a list"),
        ("name.x=1", "--set name.x: no stage 'name'"),
        ("dpo.beta.x=1", "--set dpo.beta.x=1: there is no mapping to set 'x' in"),
        ("backbone.lora_r.x=1", "'backbone.lora_r' must be a whole number, not a mapping"),
    ],
)
def test_problems_of_settings_name_the_setting(here: Path, setting: str, message: str) -> None:
    assert any(message in line for line in problems(GOOD, setting))


def test_values_of_settings_may_hold_equal_signs() -> None:
    assert parse_setting("sft.name='a=b'") == (["sft", "name"], "a=b")


@pytest.mark.parametrize("name", ["-x.yaml", "a b.yaml", "ü.yaml"])
def test_odd_file_names_work(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (here / name).write_text("name: x\n")
    said = alignkit(capsys, "run", "--", name)
    assert said.code == 2
    assert f"{name}:1:1: stages is missing" in said.err


def test_an_absent_recipe_is_named(here: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read gone.yaml: No such file"):
        read_recipe(Path("gone.yaml"))


def test_a_typo_in_the_last_stage_is_told_in_two_seconds_without_torch(here: Path) -> None:
    (here / "r.yaml").write_text(GOOD.replace("judge: reward", "jugde: reward"))
    program = (
        "import sys\n"
        "from alignkit.cli import main\n"
        "try:\n    main(['run', 'r.yaml'])\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'peft', 'trl'} & set(sys.modules)\n"
        "    print('heavy:', sorted(heavy))\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=here
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # CPU seconds, start of Python included: what a person waits on an idle machine.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    assert done.returncode == 2
    assert "r.yaml:9:53: unknown key 'jugde'; did you mean 'judge'?" in done.stderr
    assert done.stdout.strip() == "heavy: []"
    assert sorted(path.name for path in here.iterdir()) == ["r.yaml", "rows.jsonl"]
