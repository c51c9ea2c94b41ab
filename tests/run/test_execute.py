"""Recipes run for real on the embedded model: planned, reused, resumed, refused, gated."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from alignkit.cli.options import single_stage_recipe
from alignkit.data.chat import Encoder
from alignkit.data.records import Message
from alignkit.errors import AlignkitError, GateMissed, ModelError, RecipeError
from alignkit.model.adapter_fit import read_adapter
from alignkit.model.backbone import load_tokenizer
from alignkit.model.files import EMBEDDED, find_model
from alignkit.recipe.file import read_recipe
from alignkit.run.execute import Options, Outcome, check_gate, check_plan, run_plan, run_single
from alignkit.run.plan import Plan, make_plan, plan_stage, selected
from alignkit.store.artifacts import publishing, write_manifest
from tests.command import alignkit
from tests.store.test_artifacts import FIELDS

RECIPE = """\
name: small
stages:
  - sft: {data: "embedded:demonstrations", max_steps: 2, per_device_train_batch_size: 2}
  - generate: {policy: sft, prompts: "embedded:prompts", limit: 3, n: 2, max_new_tokens: 4}
  - rank: {candidates: generate}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory where the recipe above has run."""
    here = tmp_path_factory.mktemp("ran")
    (here / "r.yaml").write_text(RECIPE)
    outcomes = execute(here)
    assert [outcome.reused for outcome in outcomes] == [False, False, False]
    return here


@pytest.fixture
def here(ran: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    shutil.copytree(ran, tmp_path / "copy")
    return tmp_path / "copy"


def planned(here: Path, *settings: str) -> Plan:
    recipe = read_recipe(here / "r.yaml", settings)
    return make_plan(recipe, here / "runs" / recipe.name)


def execute(here: Path, *settings: str, say: Any = lambda _: None) -> list[Outcome]:
    plan = planned(here, *settings)
    return list(run_plan(plan.stages, plan, Options(say=say)))


def actions(plan: Plan) -> dict[str, tuple[str, str]]:
    return {stage.name: (stage.action, stage.why) for stage in plan.stages}


# --- planning ----------------------------------------------------------------------------------


def test_what_is_finished_is_reused(here: Path) -> None:
    assert [action for action, _ in actions(planned(here)).values()] == ["reuse"] * 3
    assert all(outcome.reused for outcome in execute(here))


def test_a_changed_setting_runs_its_stage_and_what_follows(here: Path) -> None:
    found = actions(planned(here, "generate.temperature=0.5"))
    assert found["sft"][0] == "reuse"
    assert found["generate"] == ("run", "changed: temperature 1.0 → 0.5")
    assert found["rank"] == ("run", "after generate")


def test_what_changes_no_weight_changes_no_key(here: Path) -> None:
    plan = planned(here, "sft.save_steps=1", "sft.logging_steps=1", "sft.gate={steps: '> 0'}")
    assert actions(plan)["sft"][0] == "reuse"


def test_another_name_of_the_same_data_is_the_same(here: Path) -> None:
    data = next((here / "runs" / "small" / "data").glob("demonstrations-*"))
    shutil.copy(data, here / "renamed.jsonl")
    assert actions(planned(here, "sft.data=renamed.jsonl"))["sft"][0] == "reuse"
    with (here / "renamed.jsonl").open("a") as stream:
        stream.write(data.read_text().splitlines()[0] + "\n")
    found = actions(planned(here, "sft.data=renamed.jsonl"))
    assert found["sft"][0] == "run"
    assert found["sft"][1].startswith("changed: data ")


def test_a_plan_writes_nothing(here: Path) -> None:
    before = sorted(here.rglob("*"))
    plan = planned(here, "seed=9")
    check_plan(plan.stages, plan)
    assert sorted(here.rglob("*")) == before


def test_a_damaged_stage_is_made_again_and_the_damaged_one_kept(here: Path) -> None:
    rankings = next((here / "runs" / "small").glob("rank-*/rankings.jsonl"))
    good = rankings.read_bytes()
    rankings.write_bytes(good[:-20] + b"?" + good[-19:])
    found = actions(planned(here))["rank"]
    assert found[0] == "run"
    assert "rankings.jsonl does not match its checksum" in found[1]
    said: list[str] = []
    outcome = execute(here, say=said.append)[-1]
    assert not outcome.reused
    assert rankings.read_bytes() == good
    aside = next((here / "runs" / "small").glob("rank-*.damaged-1"))
    assert (aside / "rankings.jsonl").read_bytes() != good
    assert any("is not as it was left" in line for line in said)


@pytest.mark.parametrize("harm", ["manifest.json", "rankings.jsonl", "stage.json"])
def test_a_half_deleted_stage_is_noticed(here: Path, harm: str) -> None:
    next((here / "runs" / "small").glob(f"rank-*/{harm}")).unlink()
    assert actions(planned(here))["rank"][0] == "run"


def test_a_stage_moved_over_another_is_noticed(here: Path) -> None:
    run = here / "runs" / "small"
    generate, rank = next(run.glob("generate-*")), next(run.glob("rank-*"))
    shutil.rmtree(rank)
    shutil.copytree(generate, rank)
    action, why = actions(planned(here))["rank"]
    assert (action, why) == ("run", f"{rank.name} holds another stage's result")


def test_finished_work_that_has_no_name_yet_is_taken(here: Path) -> None:
    rank = next((here / "runs" / "small").glob("rank-*"))
    before = (rank / "manifest.json").read_bytes()
    rank.rename(rank.with_name(rank.name + ".partial"))
    assert not execute(here)[-1].reused
    assert (rank / "manifest.json").read_bytes() == before


def test_until_and_only(here: Path) -> None:
    plan = planned(here, "generate.temperature=0.5")
    assert [stage.name for stage in selected(plan, until="generate", only=None)] == [
        "sft",
        "generate",
    ]
    assert [stage.name for stage in selected(plan, until=None, only="generate")] == ["generate"]
    with pytest.raises(RecipeError, match="needs 'generate', which is not finished"):
        selected(plan, until=None, only="rank")
    with pytest.raises(RecipeError, match="no stage 'ranks'; did you mean 'rank'"):
        selected(plan, until="ranks", only=None)


def test_a_failing_stage_leaves_the_earlier_ones(here: Path) -> None:
    (here / "bad.jsonl").write_text('{"kind": "candidates", "v": 1}\n')
    plan = planned(here, "rank.candidates=bad.jsonl", "generate.temperature=0.7")
    with pytest.raises(AlignkitError):
        list(run_plan(plan.stages, plan, Options()))
    again = actions(planned(here, "rank.candidates=bad.jsonl", "generate.temperature=0.7"))
    assert again["generate"][0] == "reuse"
    assert not list((here / "runs" / "small").glob(f"{plan.stages[-1].directory.name}/*"))


# --- checks before the first step ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sft.trainer.neftune_alpha=5", "did you mean 'neftune_noise_alpha'"),
        ("sft.trainer.learning_rate=1", "'learning_rate' is a setting of the stage itself"),
        ("sft.trainer.bf16=true", "trainer.bf16 cannot be set: backbone.dtype decides it"),
        ("sft.trainer.hub_token=abc", "a token does not belong in a recipe"),
        ("sft.trainer.optim=adamx", "trainer.optim: adamx is not a valid"),
    ],
)
def test_trainer_arguments_are_checked_before_the_run(
    here: Path, setting: str, message: str
) -> None:
    plan = planned(here, setting)
    with pytest.raises(AlignkitError, match="--set") as caught:
        check_plan(plan.stages, plan)
    assert message in str(caught.value)


def test_rows_are_checked_before_the_run(here: Path) -> None:
    (here / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 7}\n')
    plan = planned(here, "sft.data=rows.jsonl")
    with pytest.raises(AlignkitError, match="rows.jsonl:2"):
        check_plan(plan.stages, plan)


def test_first_rows_are_encoded_before_the_run(here: Path) -> None:
    """What ails a template is told with the row, before a model is loaded; so are its stops."""
    (here / "odd.jinja").write_text(
        "{{ messages | length }}{% for m in messages %}{{ m.content }}.{% endfor %}"
    )
    rows = [{"prompt": "One?", "completion": "Two."}] * 2
    (here / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = planned(here, "sft.data=odd.jsonl", "backbone.chat_template=odd.jinja")
    said: list[str] = []
    with pytest.raises(AlignkitError) as error:
        check_plan(plan.stages, plan, say=said.append)
    assert error.value.exit_code == 2
    assert "odd.jsonl:1: the chat template renders the prompt differently" in str(error.value)
    assert said[0].startswith("completions end with <|end|>; generation stops at <|end|>")


def test_templates_are_told_the_day_of_the_first_start(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe that goes on another day asks its policy what it was trained on."""
    (here / "dated.jinja").write_text(
        "{{ strftime_now('%Y-%m-%d') }} {% for m in messages %}{{ m.content }}\n{% endfor %}"
    )
    template = "backbone.chat_template=dated.jinja"
    plan = planned(here, template)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1721952000")  # 26 July 2024
    (sft,) = run_plan(plan.stages[:1], plan, Options())
    assert sft.manifest.template_date == "2024-07-26"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1784000000")  # two years later
    said = execute(here, template)
    assert [outcome.manifest.template_date for outcome in said] == ["2024-07-26"] * 3
    assert [outcome.reused for outcome in said] == [True, False, False]
    files = find_model(str(said[0].directory))
    asked = [Message(role="user", content="Hi")]
    encoder = Encoder(load_tokenizer(files, str(here / "dated.jinja")))
    assert encoder.prompt_text(asked).startswith("2024-07-26 Hi")


def test_what_cannot_fit_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit.run.estimate.total_memory", lambda: 1 << 20)
    plan = planned(here, "seed=2")
    with pytest.raises(RecipeError, match="needs at least .* MiB for weights alone"):
        check_plan(plan.stages, plan)


def test_an_adapter_of_another_base_is_refused_with_both_names(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    other = {"model": "other/base", "fingerprint": "f" * 64}
    with publishing(here / "run") as partial:
        (partial / "adapter").mkdir()
        write_manifest(partial, {**FIELDS, "backbone": other})
    said = alignkit(
        capsys, "sft", "--data", "embedded:demonstrations", "--output", "out", "--policy", "run"
    )
    assert said.code == 2
    assert "trained on other/base, this run has tiny" in said.err
    assert not (here / "out.partial").exists()


def test_an_adapter_made_elsewhere_is_a_start(
    rows: Path, ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(next((ran / "runs" / "small").glob("sft-*")) / "adapter", rows / "bare")
    said = alignkit(
        capsys, "sft", "--data", "rows.jsonl", "--output", "out", "--policy", "bare", *ONE, "--json"
    )
    assert said.code == 0, said.err
    assert json.loads(said.out)["metrics"]["steps"] == 4


def test_a_run_named_from_outside_is_verified(
    rows: Path, ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lowest bit of one weight: too little for the probe to hear, found all the same."""
    shutil.copytree(next((ran / "runs" / "small").glob("sft-*")), rows / "run")
    weights = rows / "run" / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4] ^= 1
    weights.write_bytes(content)
    for command in (
        ("sft", "--policy", "run", "--data", "rows.jsonl", "--output", "out", "--dry-run"),
        ("sft", "--model", "./run", "--data", "rows.jsonl", "--output", "out", "--dry-run"),
        ("generate", "--policy", "run", "--prompts", "rows.jsonl", "--output", "out"),
    ):
        said = alignkit(capsys, *command)
        assert said.code == 2
        assert "adapter/adapter_model.safetensors does not match its checksum" in said.err
        assert not (rows / "out.partial").exists()
    with pytest.raises(ModelError, match="does not match its checksum"):
        read_adapter(rows / "run" / "adapter")


def test_a_place_that_cannot_be_written_is_one_line(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (rows / "file").write_text("")
    said = alignkit(capsys, "sft", "--data", "rows.jsonl", "--output", "file/out")
    assert said.code == 2
    assert "Traceback" not in said.err
    assert "file is a file, not a directory" in said.err


def test_a_stage_that_fails_before_it_made_anything_leaves_nothing(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows too long are found by the tokenizer; with a better setting the same place is free."""
    command = ["sft", "--data", "rows.jsonl", "--output", "out", *ONE]
    said = alignkit(capsys, *command, "--max-length", "4")
    assert (said.code, "longer than max_length 4" in said.err) == (2, True)
    assert not (rows / "out.partial").exists()
    assert alignkit(capsys, *command, "--max-length", "400").code == 0


# --- gates ---------------------------------------------------------------------------------------


def test_a_missed_gate_stops_after_everything_was_written(here: Path) -> None:
    plan = planned(here, "generate.gate={candidates: '>= 1000000', sft.steps: '> 1'}")
    with pytest.raises(GateMissed) as caught:
        list(run_plan(plan.stages, plan, Options()))
    assert caught.value.exit_code == 1
    assert "candidates is 6, not >= 1000000" in str(caught.value)


def test_a_gate_on_no_metric_names_the_nearest(here: Path) -> None:
    outcomes = execute(here)
    done = {outcome.name: outcome.manifest for outcome in outcomes}
    gated = planned(here, "sft.gate={train_los: '< 9'}").stage("sft")
    with pytest.raises(RecipeError, match="no metric 'train_los'; did you mean 'train_loss'"):
        check_gate(gated, done)


# --- one stage in a directory of its own ---------------------------------------------------------

ONE = ["--max-steps", "4", "--per-device-train-batch-size", "2", "--save-steps", "1"]


@pytest.fixture
def rows(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    data = next((ran / "runs" / "small" / "data").glob("demonstrations-*"))
    lines = data.read_text().splitlines(keepends=True)[:20]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_stage_runs_says_complete_and_refuses_other_settings(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sft", "--data", "rows.jsonl", "--output", "out", *ONE]
    said = alignkit(capsys, *command, "--json")
    assert said.code == 0, said.err
    result = json.loads(said.out)
    assert result["metrics"]["steps"] == 4
    assert (rows / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (rows / "out.partial").exists()

    said = alignkit(capsys, *command)
    assert said.code == 0
    assert "is complete; --fresh starts over" in said.err

    said = alignkit(capsys, *command, "--learning-rate", "0.5")
    assert said.code == 2
    assert "learning_rate 0.0002 → 0.5" in said.err
    assert not (rows / "out.partial").exists()

    made = (rows / "out" / "manifest.json").read_bytes()
    said = alignkit(capsys, *command, "--learning-rate", "0.5", "--fresh")
    assert said.code == 0, said.err
    assert (rows / "out" / "manifest.json").read_bytes() != made


def test_a_directory_with_other_things_is_left_alone(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (rows / "mine").mkdir()
    (rows / "mine" / "thesis.tex").write_text("x")
    for flags in ([], ["--fresh"]):
        said = alignkit(capsys, "sft", "--data", "rows.jsonl", "--output", "mine", *ONE, *flags)
        assert said.code == 2
        assert "is not empty and is no run of alignkit" in said.err
    assert (rows / "mine" / "thesis.tex").read_text() == "x"


def test_options_config_file_and_set_are_laid_over_each_other(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (rows / "sub").mkdir()
    shutil.move(rows / "rows.jsonl", rows / "sub" / "rows.jsonl")
    (rows / "sub" / "c.yaml").write_text(
        "data: rows.jsonl\nmax_steps: 3\nlearning_rate: 1e-3\nbackbone: {lora_r: 4}\n"
    )
    said = alignkit(
        capsys, "sft", "--config", "sub/c.yaml", "--output", "out", "--dry-run", "--json",
        "--max_steps", "2", "--set", "trainer.optim=sgd",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert json.loads(said.out)[0]["steps"] == 2
    assert not (rows / "out").exists()
    (rows / "sub" / "c.yaml").write_text("data: rows.jsonl\nlerning_rate: 1\n")
    said = alignkit(capsys, "sft", "--config", "sub/c.yaml", "--output", "out")
    assert said.code == 2
    assert "sub/c.yaml:2:1: unknown key 'lerning_rate'; did you mean 'learning_rate'?" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning-rate", "fast"], "--learning-rate: 'learning_rate' must be a number"),
        (["--train-on", "al"], "--train-on: 'train_on' must be 'completion' or 'all'"),
        (["--set", "bta=1"], "--set bta=1: unknown key 'bta'"),
        (["--model", "./gone"], "no model at ./gone"),
        (["--policy", "gone"], "--policy: no stage or run 'gone'"),
    ],
)
def test_problems_name_the_option(
    rows: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    said = alignkit(capsys, "sft", "--data", "rows.jsonl", "--output", "out", *arguments)
    assert said.code == 2
    assert message in said.err
    assert not (rows / "out.partial").exists()


def test_missing_data_is_told_with_what_it_is(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = alignkit(capsys, "sft", "--output", "out")
    assert (said.code, "'data' is missing" in said.err) == (2, True)


# --- going on although something has changed -----------------------------------------------------


@pytest.fixture
def begun(rows: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """`out.partial` as a run leaves it that was killed with two checkpoints saved."""
    recipe = single_stage_recipe(
        "sft", {"data": ("rows.jsonl",), "max_steps": 4, "save_steps": 1}, config=None, settings=()
    )

    def copy_away(_: str) -> None:
        if (rows / "out.partial" / "checkpoints").is_dir():
            shutil.copytree(rows / "out.partial", rows / "copy", dirs_exist_ok=True)

    run_single(plan_stage(recipe, rows / "out"), Options(say=copy_away))
    shutil.rmtree(rows / "out")
    (rows / "copy").rename(rows / "out.partial")
    shutil.rmtree(rows / "out.partial" / "adapter", ignore_errors=True)
    return rows


def other_data(here: Path) -> None:
    lines = (here / "rows.jsonl").read_text().splitlines(keepends=True)
    (here / "rows.jsonl").write_text("".join(reversed(lines)))


def other_base(here: Path) -> None:
    shutil.copytree(EMBEDDED["tiny"], here / "model")
    content = bytearray((here / "model" / "model.safetensors").read_bytes())
    content[-4] ^= 1
    (here / "model" / "model.safetensors").write_bytes(content)


def nothing(_: Path) -> None:
    """The files are as they were."""


CHANGES: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "setting": (nothing, ["--learning-rate", "0.5"], "learning_rate 0.0002 → 0.5"),
    "data": (other_data, [], r"data [0-9a-f]{8} → [0-9a-f]{8}"),
    "base": (other_base, ["--model", "./model"], r"backbone\.model \S+ → \S+"),
    "quantization": (nothing, ["--quantization", "none"], "backbone.quantization nf4 → none"),
    "seed": (nothing, ["--seed", "9"], "seed 0 → 9"),
    "version": (nothing, [], r"versions\.trl \S+ → 99\.0"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_listed_and_refused_unless_one_insists(
    begun: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    apply, arguments, words = CHANGES[change]
    apply(begun)
    if change == "version":
        real = metadata.version
        monkeypatch.setattr(
            metadata, "version", lambda name: "99.0" if name == "trl" else real(name)
        )
    command = [
        "sft", "--data", "rows.jsonl", "--output", "out", "--max-steps", "4", "--save-steps", "1",
        *arguments,
    ]  # fmt: skip
    said = alignkit(capsys, *command)
    assert said.code == 2, said.err
    assert re.search(words, said.err), said.err
    assert not (begun / "out").exists()
    said = alignkit(capsys, *command, "--resume-anyway")
    assert said.code == 0, said.err
    assert re.search(f"although it is from another run: .*{words}", said.err), said.err


# --- stopping and starting -----------------------------------------------------------------------


@pytest.fixture
def running(rows: Path) -> Iterator[Any]:
    """`running(arguments)`: alignkit in a process of its own that has saved a checkpoint."""
    started = []

    def saved() -> set[str]:
        found = (rows / "out.partial" / "checkpoints").glob("checkpoint-*")
        return {path.name for path in found}

    def start(*arguments: str) -> subprocess.Popen[str]:
        before = saved()
        command = [sys.executable, "-m", "alignkit", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        started.append(process)
        limit = time.monotonic() + 120
        while not saved() - before:
            if process.poll() is not None or time.monotonic() > limit:
                pytest.fail(f"no checkpoint: {process.communicate()[1]}")
            time.sleep(0.01)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.slow
def test_sigterm_saves_says_how_to_go_on_and_leaves_no_artifact(
    rows: Path, running: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sft", "--data", "rows.jsonl", "--output", "out", *ONE, "--max-steps", "400"]
    process = running(*command)
    said = alignkit(capsys, *command)
    assert said.code == 2
    assert f"in use by process {process.pid}" in said.err
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "interrupted by SIGTERM; checkpoint-" in err
    assert "Run the same command again to resume" in err
    assert "Traceback" not in err
    assert not (rows / "out").exists()
    process = running(*command)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "resuming from checkpoint-" in err
