"""Configurations of other tools given to `run`: recognised, and shown as a recipe that works."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from alignkit.recipe.file import read_recipe
from alignkit.recipe.settings import SftConfig
from tests.command import alignkit

AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
# a comment
load_in_8bit: false
load_in_4bit: true
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
val_set_size: 0.1
output_dir: ./outputs/lora-out
adapter: qlora
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_modules: &targets
  - gate_proj
  - down_proj
sequence_len: 2048
sample_packing: true
wandb_project:
gradient_accumulation_steps: 2
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
warmup_ratio: 0.1
weight_decay: 0.0
special_tokens:
  pad_token: "<|end_of_text|>"
"""
AXOLOTL_DPO = """
base_model: meta-llama/Llama-3.1-8B
rl: dpo
datasets: [{path: argilla/x, type: chat_template.default, split: train}]
sequence_len: 1024
micro_batch_size: 1
num_epochs: 3
adapter: lora
lora_target_linear: true
rl_beta: 0.2
"""
LLAMA_FACTORY = """
### model
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
quantization_bit: 4
trust_remote_code: true
### method
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
pref_beta: 0.1
pref_loss: sigmoid
### dataset
dataset: dpo_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
output_dir: saves/llama3-8b/lora/dpo
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
"""
TRL = """
model_name_or_path: Qwen/Qwen2-0.5B
dataset_name: trl-lib/Capybara
dataset_train_split: train
learning_rate: 2.0e-5
num_train_epochs: 1
packing: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
use_peft: false
lora_r: 32
output_dir: Qwen2-0.5B-SFT
report_to: [wandb]
"""
HANDBOOK = """
model_name_or_path: mistralai/Mistral-7B-v0.1
torch_dtype: bfloat16
attn_implementation: flash_attention_2
dataset_mixer:
  HuggingFaceH4/ultrafeedback_binarized: 1.0
dataset_splits: [train_prefs, test_prefs]
beta: 0.01
learning_rate: 5.0e-7
num_train_epochs: 1
warmup_ratio: 0.1
"""
TORCHTUNE = """
output_dir: /tmp/torchtune/llama3_8B/lora
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  path: /tmp/Meta-Llama-3-8B-Instruct/original/tokenizer.model
  max_seq_len: 512
model:
  _component_: torchtune.models.llama3.lora_llama3_8b
  lora_attn_modules: ['q_proj', 'v_proj']
  lora_rank: 8
  lora_alpha: 16
checkpointer:
  _component_: torchtune.training.FullModelMetaCheckpointer
  checkpoint_dir: /tmp/Meta-Llama-3-8B-Instruct/original/
dataset:
  _component_: torchtune.datasets.stack_exchange_paired_dataset
  packed: false
seed: 7
batch_size: 2
optimizer:
  _component_: torch.optim.AdamW
  lr: 5e-4
  weight_decay: 0.05
loss:
  _component_: torchtune.rlhf.loss.DPOLoss
epochs: 1
gradient_accumulation_steps: 16
device: cuda
dtype: bf16
"""
VERL = """
defaults: [_self_]
data:
  train_files: ~/data/gsm8k/train.parquet
  train_batch_size: 1024
  max_response_length: 256
actor_rollout_ref:
  model: {path: deepseek-ai/deepseek-llm-7b-chat, lora_rank: 32}
  actor: {optim: {lr: 1e-6}, clip_ratio: 0.2, ppo_epochs: 1}
  rollout: {n: 8, temperature: 1.0}
algorithm: {adv_estimator: grpo, kl_ctrl: {kl_coef: 0.001}}
trainer: {total_epochs: 15, default_local_dir: "checkpoints/${trainer.project_name}"}
"""
OPEN_RLHF = """
pretrain: OpenRLHF/Llama-3-8b-sft-mixture
reward_pretrain: OpenRLHF/Llama-3-8b-rm-mixture
prompt_data: OpenRLHF/prompt-collection-v0.1
actor_learning_rate: 5e-7
critic_learning_rate: 9e-6
init_kl_coef: 0.01
eps_clip: 0.2
generate_max_len: 1024
zero_stage: 3
lora_rank: 64
"""
NEMO = """
policy: {model_name: Qwen/Qwen2.5-1.5B, max_total_sequence_length: 512}
grpo: {num_generations_per_prompt: 16}
cluster: {gpus_per_node: 1, num_nodes: 1}
"""
SWIFT = """
rlhf_type: dpo
model: Qwen/Qwen2.5-7B-Instruct
train_type: lora
dataset: hjh0119/shareAI-Llama3-DPO-zh-en-emoji
num_train_epochs: 1
learning_rate: 1e-4
lora_rank: 8
target_modules: all-linear
"""
UNSLOTH = """
model_name: unsloth/llama-3-8b
max_seq_length: 2048
load_in_4bit: true
r: 16
lora_alpha: 16
lora_dropout: 0
use_gradient_checkpointing: unsloth
use_rslora: false
learning_rate: 2e-4
max_steps: 400
"""

# tool, its configuration, the stage it becomes, lines of the recipe, words that are not in it
CONFIGURATIONS: list[tuple[str, str, str, list[str], list[str]]] = [
    ("an Axolotl configuration", AXOLOTL, "sft",
     ["model_name_or_path: NousResearch/Llama-3.2-1B", "quantization: nf4", "lora_r: 16",
      "lora_target_modules: [gate_proj, down_proj]", "max_length: 2048", "packing: true",
      "per_device_train_batch_size: 2", "gradient_accumulation_steps: 2", "learning_rate: 0.0002",
      "num_train_epochs: 1", "lr_scheduler_type: cosine",
      "data: demonstrations.jsonl  # there: teknium/GPT4-LLM-Cleaned"],
     ["warmup", "bf16", "int8"]),
    ("an Axolotl configuration", AXOLOTL_DPO, "dpo",
     ["beta: 0.2", "lora_target_modules: all-linear", "data: preferences.jsonl  # there: argilla"],
     []),
    ("a LLaMA-Factory configuration", LLAMA_FACTORY, "dpo",
     ["quantization: nf4", "lora_r: 8", "lora_target_modules: all-linear", "beta: 0.1",
      "max_length: 2048", "learning_rate: 5e-06", "num_train_epochs: 3.0"],
     ["template", "warmup", "trust"]),
    ("a configuration for TRL", TRL, "sft",
     ["model_name_or_path: Qwen/Qwen2-0.5B", "packing: true", "gradient_accumulation_steps: 8"],
     ["wandb", "learning_rate"]),
    # No adapters there: its learning rate is one of full weights.
    ("a configuration for TRL", HANDBOOK, "dpo", ["beta: 0.01"], ["learning_rate"]),
    ("a torchtune configuration", TORCHTUNE, "dpo",
     ["seed: 7", "lora_r: 8", "lora_alpha: 16", "max_length: 512", "learning_rate: 0.0005",
      "weight_decay: 0.05", "per_device_train_batch_size: 2", "num_train_epochs: 1"], []),
    ("a verl configuration", VERL, "rloo",
     ["model_name_or_path: deepseek-ai/deepseek-llm-7b-chat", "lora_r: 32", "rloo_k: 8",
      "response_length: 256", "kl_coef: 0.001", "reward_model: reward"],
     ["train_batch_size: 1024"]),
    ("an OpenRLHF configuration", OPEN_RLHF, "ppo",
     ["kl_coef: 0.01", "cliprange: 0.2", "value_learning_rate: 9e-06", "lora_r: 64"],
     ["response_length: 1024"]),  # it leaves no room for a prompt in max_length as it is
    ("a NeMo RL configuration", NEMO, "rloo",
     ["model_name_or_path: Qwen/Qwen2.5-1.5B", "rloo_k: 16", "max_length: 512"], []),
    ("an ms-swift configuration", SWIFT, "dpo",
     ["lora_r: 8", "learning_rate: 0.0001", "lora_target_modules: all-linear"], []),
    ("an Unsloth configuration", UNSLOTH, "sft",
     ["model_name_or_path: unsloth/llama-3-8b", "max_length: 2048", "lora_r: 16",
      "max_steps: 400"], []),
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@pytest.mark.parametrize(
    ("tool", "text", "kind", "lines", "absent"),
    CONFIGURATIONS,
    ids=[f"{row[0]} {row[2]}" for row in CONFIGURATIONS],
)
def test_a_configuration_of_another_tool_is_shown_as_a_recipe(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    tool: str,
    text: str,
    kind: str,
    lines: list[str],
    absent: list[str],
    suffix: str,
) -> None:
    path = here / f"My run_1.{suffix}"
    path.write_text(json.dumps(as_json(text)) if suffix == "json" else text)
    said = alignkit(capsys, "run", path.name)
    assert (said.code, said.out) == (2, "")
    assert f"this is {tool}" in said.err
    recipe = said.err[said.err.index("name: ") :]
    for line in lines:
        assert f"{line}\n" in recipe or f"{line}" in recipe.split("# there: ")[0] + recipe
    for word in absent:
        assert word not in recipe.replace("# there:", "")
    assert [entry.name for entry in here.iterdir()] == [path.name]
    accepted(here, recipe, kind)


def as_json(text: str) -> object:
    from alignkit.recipe.yaml_source import parse_yaml

    return parse_yaml(text, file="x").value


def accepted(here: Path, recipe: str, kind: str) -> None:
    """The recipe that was shown is one, once the files of rows are there."""
    for name in re.findall(r"[a-z]+\.jsonl", recipe):
        (here / name).write_text("{}\n")
    (here / "shown.yaml").write_text(recipe)
    read = read_recipe(here / "shown.yaml")
    assert read.stages[-1].kind == kind
    assert read.name == "my-run_1"


def test_values_are_those_of_the_other_tool(here: Path) -> None:
    (here / "a.yaml").write_text(AXOLOTL)
    with pytest.raises(Exception, match="Axolotl") as found:
        read_recipe(here / "a.yaml")
    hint = found.value.hint  # type: ignore[attr-defined]
    (here / "demonstrations.jsonl").write_text("{}\n")
    (here / "shown.yaml").write_text(hint[hint.index("name: ") :])
    read = read_recipe(here / "shown.yaml")
    config = read.stage("sft").config
    assert isinstance(config, SftConfig)
    assert (config.learning_rate, config.max_length, config.packing) == (2e-4, 2048, True)
    assert read.backbone.lora_target_modules == ("gate_proj", "down_proj")
    assert (read.backbone.lora_dropout, read.backbone.quantization) == (0.05, "nf4")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("compute_environment: LOCAL_MACHINE\nnum_processes: 8\n", "a configuration of accelerate"),
        ('{"zero_optimization": {"stage": 3}}', "a configuration of DeepSpeed"),
        ('{"peft_type": "LORA", "r": 8}', "an adapter's adapter_config.json"),
        ('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}', "a model's config.json"),
        ("merge_method: slerp\n", "a mergekit configuration"),
    ],
)
def test_other_files_of_settings_are_named(
    here: Path, capsys: pytest.CaptureFixture[str], text: str, answer: str
) -> None:
    (here / "r.yaml").write_text(text)
    said = alignkit(capsys, "run", "r.yaml")
    assert said.code == 2
    assert f"this is {answer}, not a recipe. Start from " in said.err
    assert "quickstart.yaml, or see one at work: alignkit demo" in said.err


def test_settings_of_one_stage_are_no_recipe(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "r.yaml").write_text("data: rows.jsonl\nbeta: 0.2\nlora_r: 8\n")
    said = alignkit(capsys, "run", "r.yaml")
    assert said.code == 2
    assert "alignkit dpo --config r.yaml --output DIR; in a recipe they go under" in said.err


def test_a_recipe_with_words_of_other_tools_stays_a_recipe(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "r.yaml").write_text(
        "name: x\nbase_model: y\nlr: 3\nstages: [sft: {data: gone.jsonl}]\n"
    )
    said = alignkit(capsys, "run", "r.yaml")
    assert said.code == 2
    assert (
        "r.yaml:2:1: unknown key 'base_model'; alignkit calls it 'model_name_or_path'" in said.err
    )


@pytest.mark.parametrize(
    "text", ["name: x\n", "a: 1\n", "learning_rate: 1e-4\n", "name: 3\nfoo: [1]\n"]
)
def test_what_speaks_of_no_tool_is_judged_as_a_recipe(
    here: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (here / "r.yaml").write_text(text)
    said = alignkit(capsys, "run", "r.yaml")
    assert (said.code, "stages is missing" in said.err) == (2, True)
