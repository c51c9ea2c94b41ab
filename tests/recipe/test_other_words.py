"""Words of other tools: each is answered with ours, and none of them does anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from alignkit.cli import cli
from alignkit.recipe.other_words import COMMANDS, NONE, NOTED, SETTINGS, VALUES, WORDS
from alignkit.recipe.settings import CONFIGS, BackboneConfig, RecipeHead
from tests.command import alignkit

HEAD = "name: x\nstages:\n  - sft: {data: rows.jsonl}\n  - dpo: {data: rows.jsonl}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi?", "completion": "Hello."}\n')
    return tmp_path


def commands(
    group: click.Group = cli, name: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command of the command line, by the words that call it."""
    context = click.Context(group)
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*name, word))
        else:
            yield (*name, word), command


def all_parameters() -> set[str]:
    return {str(parameter.name) for _, command in commands() for parameter in command.params}


# --- the table -----------------------------------------------------------------------------------


def test_a_word_stands_once_in_the_table() -> None:
    told = Counter(word for _, words in (*SETTINGS, *NOTED, *NONE) for word in words.split())
    assert [word for word, times in told.items() if times > 1] == []


def test_every_word_leads_to_something_that_exists() -> None:
    settings = {*BackboneConfig.model_fields, *RecipeHead.model_fields, *all_parameters()}
    for config in CONFIGS.values():
        settings |= config.model_fields.keys()
    for word, meant in WORDS.items():
        assert {name.partition(".")[0] for name in meant.ours} <= settings, word
        assert meant.ours or meant.note, word


def test_values_lead_to_choices_of_their_settings() -> None:
    configs = [BackboneConfig, *CONFIGS.values()]
    for setting, words in VALUES.items():
        fields = [c.model_fields[setting] for c in configs if setting in c.model_fields]
        choices = " ".join(repr(field.annotation) for field in fields)
        assert [ours for ours in set(words.values()) if repr(ours) not in choices] == [], setting


def test_the_commands_named_instead_exist() -> None:
    known = {" ".join(name) for name, _ in commands()} | {"data", "eval", "rank", "run"}
    for table in COMMANDS.values():
        for ours in table.values():
            if ours.startswith("alignkit "):
                name = ours.split(";")[0].split(",")[0].removeprefix("alignkit ").split(" --")[0]
                assert name in known or name.startswith("--"), ours


# --- options -------------------------------------------------------------------------------------

OPTIONS: list[tuple[str, str]] = [
    ("sft --lr 1e-4", "no option --lr; alignkit calls it --learning-rate"),
    ("sft --lr=1e-4", "no option --lr; alignkit calls it --learning-rate"),
    ("sft -lr 1e-4", "no option -lr; alignkit calls it --learning-rate"),
    ("reward --LR 1e-4", "alignkit calls it --learning-rate"),
    ("sft --batch-size 4", "alignkit calls it --per-device-train-batch-size"),
    ("dpo --batch_size 4", "alignkit calls it --per-device-train-batch-size"),
    ("sft --epochs 3", "alignkit calls it --num-train-epochs"),
    ("sft --num-epochs 3", "alignkit calls it --num-train-epochs"),
    ("ppo --ppo-epochs 3", "alignkit calls it --num-ppo-epochs"),
    ("sft --dataset x", "alignkit calls it --data"),
    ("sft --train-file x", "alignkit calls it --data"),
    ("reward --train-data x", "alignkit calls it --data"),
    ("ppo --dataset x", "alignkit calls it --prompts"),
    ("sft --base-model x", "alignkit calls it --model-name-or-path"),
    ("sft --output-dir x", "alignkit calls it --output"),
    ("run --output-dir x r.yaml", "alignkit calls it --runs-dir"),
    ("run --config r.yaml", "takes it without an option, as RECIPE"),
    ("sft --grad-accum 4", "alignkit calls it --gradient-accumulation-steps"),
    ("sft --max-seq-len 10", "alignkit calls it --max-length"),
    ("sft --max-prompt-length 10", "--max-length (it counts prompt and completion together)"),
    ("sft --lora-rank 8", "alignkit calls it --lora-r"),
    ("sft --load-in-4bit", "alignkit calls it --quantization nf4"),
    ("dpo --load-in-8bit", "alignkit calls it --quantization int8"),
    ("sft --bf16", "alignkit calls it --dtype bfloat16"),
    ("sft --use-lora", "none is needed: alignkit always trains adapters (LoRA)"),
    ("sft --trust-remote-code", "none is needed: code that comes with a model is never run"),
    ("sft --resume", "none is needed: run the same command again to resume"),
    ("dpo --kl-beta 0.1", "alignkit calls it --beta"),
    ("ppo --kl-beta 0.1", "alignkit calls it --kl-coef"),
    ("rloo --num-generations 4", "alignkit calls it --rloo-k"),
    ("generate --num-samples 4", "alignkit calls it --n"),
    ("dpo --reference-model x", "alignkit calls it --reference (start is a frozen copy"),
    ("sft --beta 0.1", "no option --beta of alignkit sft; --beta belongs to dpo"),
    ("sft --reference-model x", "--reference belongs to dpo, ppo, rloo"),
    ("sft --optim adamw", "alignkit passes it on: --set trainer.optim=VALUE"),
    ("sft --warmup-ratio 0.1", "--warmup-steps (it counts steps, not a share of them)"),
    ("sft --learning-rte 3", "did you mean --learning-rate?"),
    ("chat x --max-tokens 4", "alignkit calls it --max-new-tokens"),
    ("data convert --input a -o b", "takes it without an option, as FILE..."),
    ("data clean d.jsonl --out-dir b", "alignkit calls it --output"),
    ("eval reward r --dataset x", "alignkit calls it --data"),
    ("eval winrate --model-a x", "alignkit calls it --a"),
    ("rank c.jsonl --user ann", "alignkit calls it --annotator"),
    ("--lr 3 sft", "Options stand behind a command: alignkit COMMAND --lr"),
    ("data --lr 3", "Options stand behind a command: alignkit data COMMAND --lr"),
    ("doctor --frobnicate", "no option --frobnicate. See alignkit doctor --help"),
    # Words without an option.
    ("sft rows.jsonl", "files are given by an option: --data rows.jsonl"),
    ("ppo --output o rows.jsonl", "files are given by an option: --prompts rows.jsonl"),
    ("sft r.yaml", "--config r.yaml; a recipe: alignkit run r.yaml"),
    ("sft beta=3 --output o", "a setting is given as --set beta=3"),
    # Values.
    ("chat x --quantization 4bit", "--quantization 4bit: alignkit calls it --quantization nf4"),
    ("eval perplexity x --data y --quantization no", "calls it --quantization none"),
    ("sft --data rows.jsonl --output o --quantization 4-bit", "; alignkit calls it 'nf4'"),
    ("sft --data rows.jsonl --output o --dtype bf16", "; alignkit calls it 'bfloat16'"),
    # Commands.
    ("train r.yaml", "Here: sft, reward, dpo, ppo and rloo train one stage"),
    ("grpo", "no such command 'grpo'. Here: alignkit rloo"),
    ("orpo", "Here: alignkit dpo --loss-type"),
    ("perplexity", "Here: alignkit eval perplexity"),
    ("r.yaml", "To run a recipe: alignkit run r.yaml"),
    ("data rows.jsonl", "A command comes before a file: alignkit data check rows.jsonl"),
    ("data validate", "Here: alignkit data check"),
    ("data chekc", "did you mean 'check'?"),
    ("eval judge", "Here: alignkit eval winrate"),
]


@pytest.mark.parametrize(("command", "answer"), OPTIONS, ids=[row[0] for row in OPTIONS])
def test_what_is_written_otherwise_elsewhere_is_answered(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, answer: str
) -> None:
    said = alignkit(capsys, *command.split())
    assert answer in said.err
    assert said.code == 2
    assert said.out == ""
    assert [path.name for path in here.iterdir()] == ["rows.jsonl"]


def test_every_command_answers_words_of_all_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever command and word meet: one clear refusal, never an error of our own."""
    for number, (name, command) in enumerate(commands()):
        known = {opt for parameter in command.params for opt in parameter.opts}
        for word in list(WORDS)[number % 97 :: 97]:
            option = "--" + word.replace("_", "-")
            if option not in known:
                said = alignkit(capsys, *name, option)
                assert (said.code, f"no option {option}" in said.err) == (2, True), (name, said.err)


# --- keys of recipes, and settings ---------------------------------------------------------------

KEYS: list[tuple[str, str]] = [
    ("lr: 1e-4", "unknown key 'lr'; alignkit calls it 'learning_rate'"),
    ("batch_size: 4", "unknown key 'batch_size'; alignkit calls it 'per_device_train_batch_size'"),
    ("num_epochs: 3", "unknown key 'num_epochs'; alignkit calls it 'num_train_epochs'"),
    ("learning-rate: 1", "alignkit calls it 'learning_rate'"),
    ("load_in_4bit: true", "alignkit calls it 'quantization: nf4', a setting of the backbone"),
    ("lora_r: 8", "unknown key 'lora_r'; it is a setting of the backbone"),
    ("beta: 0.1", "unknown key 'beta'; it is a setting of dpo stages"),
    ("dataset: x", "alignkit calls it 'data'"),
    ("optim: sgd", "alignkit calls it 'trainer.optim'"),
    ("use_peft: true", "none is needed: alignkit always trains adapters"),
    ("early_stopping: 4", "'early_stopping_patience', a setting of reward stages"),
    ("backbone: {}", "it is a setting of the recipe, at its top"),
    ("train_on: assistant", "; alignkit calls it 'completion'"),
    ("on_overlong: truncate", "; alignkit calls it 'truncate_prompt'"),
    ("lr_scheduler_type: cosine_with_restarts", "not the text 'cosine_with_restarts'\n"),
]


@pytest.mark.parametrize(("key", "answer"), KEYS, ids=[row[0] for row in KEYS])
def test_keys_of_other_tools_are_answered(
    here: Path, capsys: pytest.CaptureFixture[str], key: str, answer: str
) -> None:
    (here / "r.yaml").write_text(f"name: x\nstages:\n  - sft: {{data: rows.jsonl, {key}}}\n")
    said = alignkit(capsys, "run", "r.yaml")
    assert said.code == 2
    assert "r.yaml:3:" in said.err
    assert answer in said.err


@pytest.mark.parametrize(
    ("command", "setting", "answer"),
    [
        ("run r.yaml", "lr=1", "alignkit calls it 'learning_rate', a setting of stages"),
        ("run r.yaml", "dpo.lr=1", "alignkit calls it 'learning_rate'"),
        ("run r.yaml", "backbone.lora_rank=3", "alignkit calls it 'lora_r'"),
        ("run r.yaml", "backbone.quantization=4", "not 4; alignkit calls it 'nf4'"),
        ("run r.yaml", "sft.quantization=nf4", "it is a setting of the backbone"),
        ("sft --data rows.jsonl --output o", "lr=1", "alignkit calls it 'learning_rate'"),
        ("sft --data rows.jsonl --output o", "load_in_4bit=true", "'quantization: nf4'"),
    ],
)
def test_settings_of_other_tools_are_answered(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, setting: str, answer: str
) -> None:
    (here / "r.yaml").write_text(HEAD)
    said = alignkit(capsys, *command.split(), "--set", setting)
    assert (said.code, f"--set {setting}: " in said.err) == (2, True)
    assert answer in said.err
