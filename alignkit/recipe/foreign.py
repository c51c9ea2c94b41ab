"""Recognize configurations of other tools, and show how they begin as a recipe.

They are recognized by their keys alone, whatever file they come in; nothing of another tool is run
or imported. The recipe shown has the settings that mean the same here, and is accepted as it is
once its files of rows exist.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alignkit.errors import RecipeError
from alignkit.recipe.other_words import meaning, normal, value_meant
from alignkit.recipe.settings import CONFIGS, BackboneConfig, Config, OnlineConfig
from alignkit.recipe.yaml_source import scalar, shortened
from alignkit.store.resources import shipped

Flat = Mapping[str, Any]


@dataclass(frozen=True)
class Tool:
    """How to recognize the configurations of a tool, and what of them is understood.

    One of the keys in `sure`, or `enough` of `telling` together, identifies the tool. `stage`
    returns the stage that is trained. `words` maps dotted keys to our settings; keys without dots
    are in `other_words`.
    """

    name: str
    sure: frozenset[str] = frozenset()
    telling: frozenset[str] = frozenset()
    enough: int = 3
    stage: Callable[[Flat], str | None] = lambda _: "sft"
    words: Mapping[str, str] = field(default_factory=dict)

    def score(self, keys: frozenset[str]) -> int:
        """Return how many of its keys the configuration has; 0 if too few."""
        if self.sure & keys:
            return 100 + len(self.telling & keys)
        hits = len(self.telling & keys)
        return hits if hits >= self.enough else 0


def refuse_foreign(value: Any, file: str, where: str) -> None:
    """Refuse another tool's configuration, or bare settings of a stage, with a RecipeError.

    `value` is the content of the file as plain values; `file` is its name, from which the recipe
    shown takes its own.
    """
    if not isinstance(value, dict) or "stages" in value:
        return
    flat = dict(_flat(value))
    tool = _tool_of(flat)
    if tool is None:
        _refuse_settings(value, file, where)
        return
    kind = tool.stage(flat)
    if kind is None:
        raise RecipeError(f"this is {tool.name}, not a recipe", where=where, hint=START)
    raise RecipeError(
        f"this is {tool.name}; an alignkit recipe has a name and stages",
        where=where,
        hint=f"Start from {shipped('recipes') / EXAMPLES[kind]}, or from this, with what has the "
        f"same meaning here:\n\n{as_recipe(tool, kind, flat, Path(file))}",
    )


def _refuse_settings(value: Mapping[str, Any], file: str, where: str) -> None:
    """Refuse settings of one stage, which `--config` takes: they are not a recipe."""
    keys = value.keys() - {"backbone", "seed"} - BackboneConfig.model_fields.keys()
    for kind in TRAINED:
        if keys and keys <= CONFIGS[kind].model_fields.keys() and {"data", "prompts"} & keys:
            raise RecipeError(
                "settings without stages",
                where=where,
                hint=f"For one stage: alignkit {kind} --config {file} --output DIR; "
                f"in a recipe they go under stages: - {kind}:",
            )


# --- recognizing ---------------------------------------------------------------------------------


def _flat(value: Any, within: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of everything in nested mappings; of a list, its first."""
    if isinstance(value, dict) and depth < 8:
        for key, inner in value.items():
            name = f"{within}.{key}" if within else str(key)
            yield name, inner
            yield from _flat(inner, name, depth + 1)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from _flat(value[0], within, depth + 1)


def _tool_of(flat: Flat) -> Tool | None:
    # A key counts by its whole path, but `_component_` wherever it is.
    keys = frozenset(flat) | {name.rpartition(".")[2] for name in flat if "_component_" in name}
    best = max(TOOLS, key=lambda tool: tool.score(keys))
    return best if best.score(keys) else None


def _text(flat: Flat, key: str) -> str:
    value = flat.get(key)
    return normal(value) if isinstance(value, str) else ""


def _llama_factory(flat: Flat) -> str | None:
    stages = {"pt": "sft", "sft": "sft", "rm": "reward", "dpo": "dpo", "kto": "dpo", "ppo": "ppo"}
    return stages.get(_text(flat, "stage"), "sft")


def _axolotl(flat: Flat) -> str | None:
    if flat.get("reward_model") is True:
        return "reward"
    kinds = {"dpo": "dpo", "ipo": "dpo", "orpo": "dpo", "simpo": "dpo", "kto": "dpo"}
    return (kinds | {"grpo": "rloo"}).get(_text(flat, "rl"), "sft")


def _trl(flat: Flat) -> str | None:
    if "num_ppo_epochs" in flat or "reward_model_path" in flat:
        return "rloo" if "rloo_k" in flat else "ppo"
    if {"reward_funcs", "num_generations"} & flat.keys():
        return "rloo"
    if "center_rewards_coefficient" in flat:
        return "reward"
    return "dpo" if {"beta", "loss_type", "rpo_alpha", "precompute_ref_log_probs"} & flat.keys() \
        else "sft"  # fmt: skip


def _torchtune(flat: Flat) -> str | None:
    parts = " ".join(str(value).lower() for key, value in flat.items() if "_component_" in key)
    if "ppo" in parts:
        return "ppo"
    return "dpo" if "dpo" in parts or "preference" in parts else "sft"


def _verl(flat: Flat) -> str | None:
    if "actor_rollout_ref" not in flat:
        return "sft"
    estimator = _text(flat, "algorithm.adv_estimator")
    return "ppo" if estimator in ("", "gae") else "rloo"


def _open_rlhf(flat: Flat) -> str | None:
    if {"prompt_data", "actor_learning_rate", "reward_pretrain", "remote_rm_url"} & flat.keys():
        return "ppo" if _text(flat, "advantage_estimator") in ("", "gae") else "rloo"
    return "dpo" if {"ref_pretrain", "beta"} & flat.keys() else "sft"


def _nemo(flat: Flat) -> str | None:
    return next((kind for key, kind in NEMO.items() if key in flat), "sft")


NEMO = {"dpo": "dpo", "rm": "reward", "grpo": "rloo", "sft": "sft", "distillation": "sft"}


def _swift(flat: Flat) -> str | None:
    kinds = {"dpo": "dpo", "rm": "reward", "ppo": "ppo", "grpo": "rloo", "gkd": "sft"}
    return kinds.get(_text(flat, "rlhf_type"), "sft")


def _none(flat: Flat) -> str | None:
    del flat
    return None


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


TOOLS = (
    Tool(
        "an Axolotl configuration",
        _keys("datasets.type sample_packing lora_target_linear dataset_prepared_path "
              "pad_to_sequence_len lora_model_dir"),
        _keys("base_model datasets sequence_len micro_batch_size num_epochs adapter lr_scheduler "
              "val_set_size load_in_4bit special_tokens flash_attention train_on_inputs model_type "
              "tokenizer_type optimizer wandb_project rl gradient_accumulation_steps lora_r "
              "output_dir learning_rate evals_per_epoch saves_per_epoch chat_template"),
        stage=_axolotl,
        words={"datasets.path": "data"},
    ),
    Tool(
        "a LLaMA-Factory configuration",
        _keys("finetuning_type cutoff_len dataset_dir pref_beta pref_loss quantization_bit "
              "overwrite_cache lora_target tokenized_path"),
        _keys("stage do_train template dataset lora_rank max_samples plot_loss model_name_or_path "
              "preprocessing_num_workers overwrite_output_dir val_size num_train_epochs "
              "per_device_train_batch_size ddp_timeout eval_dataset output_dir"),
        stage=_llama_factory,
    ),
    Tool(
        "a torchtune configuration",
        _keys("_component_ tokenizer._component_ model._component_"),
        stage=_torchtune,
        words={
            "checkpointer.checkpoint_dir": "model_name_or_path", "model.lora_rank": "lora_r",
            "model.lora_alpha": "lora_alpha", "model.lora_dropout": "lora_dropout",
            "optimizer.lr": "learning_rate", "optimizer.weight_decay": "weight_decay",
            "tokenizer.max_seq_len": "max_length", "dataset.packed": "packing",
            "dataset.source": "data", "dataset.data_files": "data", "loss.beta": "beta",
            "loss.label_smoothing": "label_smoothing", "epochs": "num_train_epochs",
            "lr_scheduler.num_warmup_steps": "warmup_steps", "clip_grad_norm": "max_grad_norm",
        },
    ),
    Tool(
        "a verl configuration",
        _keys("actor_rollout_ref critic.ppo_mini_batch_size algorithm.adv_estimator "
              "actor_rollout_ref.model.path data.train_batch_size trainer.default_local_dir"),
        _keys("data.train_files data.val_files trainer.total_epochs trainer.n_gpus_per_node "
              "trainer.project_name model.partial_pretrain"),
        stage=_verl,
        words={
            "actor_rollout_ref.model.path": "model_name_or_path",
            "actor_rollout_ref.model.lora_rank": "lora_r",
            "actor_rollout_ref.model.lora_alpha": "lora_alpha",
            "actor_rollout_ref.actor.optim.lr": "learning_rate",
            "actor_rollout_ref.actor.clip_ratio": "cliprange",
            "actor_rollout_ref.actor.ppo_epochs": "num_ppo_epochs",
            "actor_rollout_ref.actor.grad_clip": "max_grad_norm",
            "actor_rollout_ref.rollout.temperature": "temperature",
            "actor_rollout_ref.rollout.n": "rloo_k",
            "critic.optim.lr": "value_learning_rate",
            "model.partial_pretrain": "model_name_or_path", "model.lora_rank": "lora_r",
            "model.lora_alpha": "lora_alpha", "optim.lr": "learning_rate",
            "data.max_length": "max_length", "trainer.total_epochs": "num_train_epochs",
            "data.train_files": "data", "data.max_response_length": "response_length",
            "algorithm.gamma": "gamma", "algorithm.lam": "lam",
            "algorithm.kl_ctrl.kl_coef": "kl_coef",
        },
    ),
    Tool(
        "an OpenRLHF configuration",
        _keys("reward_pretrain critic_pretrain prompt_data actor_learning_rate "
              "micro_rollout_batch_size n_samples_per_prompt advantage_estimator"),
        _keys("pretrain micro_train_batch_size train_batch_size max_len zero_stage adam_offload "
              "input_key apply_chat_template ref_pretrain max_epochs save_path init_kl_coef "
              "flash_attn learning_rate dataset bf16 packing_samples"),
        stage=_open_rlhf,
    ),
    Tool(
        "a NeMo RL configuration",
        _keys("policy.model_name cluster.gpus_per_node policy.dtensor_cfg"),
        stage=_nemo,
        words={
            "policy.model_name": "model_name_or_path",
            "policy.max_total_sequence_length": "max_length",
            "policy.dtensor_cfg.lora_cfg.dim": "lora_r",
            "policy.dtensor_cfg.lora_cfg.alpha": "lora_alpha",
            "policy.max_grad_norm": "max_grad_norm",
            "grpo.num_generations_per_prompt": "rloo_k",
            "data.dataset_name": "data", "sft.seed": "seed", "dpo.seed": "seed",
        },
    ),
    Tool(
        "an ms-swift configuration",
        _keys("rlhf_type train_type tuner_type custom_register_path model_author"),
        stage=_swift,
    ),
    Tool(
        "an Unsloth configuration",
        _keys("use_rslora loftq_config training.max_seq_length random_state load_in_4bit_unsloth"),
        _keys("model_name max_seq_length load_in_4bit r lora_alpha lora_dropout target_modules "
              "use_gradient_checkpointing bias per_device_train_batch_size lora.lora_r "
              "training.learning_rate training.num_epochs dtype"),
        enough=4,
    ),
    Tool(
        "a configuration for TRL (its script arguments)",
        _keys("dataset_mixer dataset_train_split dataset_test_split use_peft script_args "
              "dataset_splits dataset_num_proc eos_token assistant_only_loss completion_only_loss"),
        _keys("model_name_or_path dataset_name dataset_config torch_dtype attn_implementation "
              "per_device_train_batch_size gradient_accumulation_steps learning_rate output_dir "
              "bf16 report_to push_to_hub hub_model_id max_length max_seq_length num_train_epochs "
              "gradient_checkpointing lora_target_modules lora_r logging_steps warmup_ratio "
              "lr_scheduler_type load_in_4bit save_strategy eval_strategy seed packing beta"),
        stage=_trl,
    ),
    Tool(
        "a configuration of accelerate",
        _keys("compute_environment distributed_type"),
        stage=_none,
    ),
    Tool(
        "a configuration of DeepSpeed",
        _keys("zero_optimization train_micro_batch_size_per_gpu"),
        stage=_none,
    ),
    Tool("an adapter's adapter_config.json", _keys("peft_type"), stage=_none),
    Tool(
        "a model's config.json",
        _keys("architectures num_hidden_layers transformers_version"),
        stage=_none,
    ),
    Tool(
        "a tokenizer's configuration", _keys("tokenizer_class added_tokens_decoder"), stage=_none
    ),
    Tool("a mergekit configuration", _keys("merge_method"), stage=_none),
    Tool("a run's manifest", _keys("schema_version"), stage=_none),
)  # fmt: skip


# --- a recipe from it ----------------------------------------------------------------------------

TRAINED = [kind for kind, config in CONFIGS.items() if config.about.makes]
EXAMPLES = {
    "sft": "helpful-dpo.yaml",
    "reward": "helpful-ppo.yaml",
    "dpo": "helpful-dpo.yaml",
    "ppo": "helpful-ppo.yaml",
    "rloo": "helpful-ppo.yaml",
}
START = f"Start from {shipped('recipes') / 'quickstart.yaml'}, or see one at work: alignkit demo"
ROWS = {
    "sft": "demonstrations.jsonl",
    "reward": "rankings.jsonl",
    "dpo": "preferences.jsonl",
    "ppo": "prompts.jsonl",
    "rloo": "prompts.jsonl",
}

# Settings with the same meaning there and here; a learning rate only if both train LoRA.
SAME = _keys(
    "num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps max_length "
    "weight_decay max_grad_norm warmup_steps lr_scheduler_type beta label_smoothing packing "
    "kl_coef gamma lam cliprange vf_coef response_length temperature num_ppo_epochs "
    "value_learning_rate learning_rate rloo_k"
)
SAME_BACKBONE = _keys(
    "model_name_or_path quantization lora_r lora_alpha lora_dropout lora_target_modules "
    "attn_implementation"
)
RATES = ("learning_rate", "value_learning_rate")


def as_recipe(tool: Tool, kind: str, flat: Flat, file: Path) -> str:
    """Write a recipe of one stage of `kind` with what means the same in a configuration."""
    backbone, stage, data = _translated(tool, kind, flat)
    lines = [f"name: {_name(file)}"]
    if isinstance(flat.get("seed"), int) and 0 <= flat["seed"] < 2**32:
        lines.append(f"seed: {flat['seed']}")
    if backbone:
        lines += ["backbone:", *(f"  {name}: {_yaml(value)}" for name, value in backbone.items())]
    lines.append("stages:")
    if kind in ONLINE:
        lines += ["  - reward:", f"      data: {ROWS['reward']}"]
    lines.append(f"  - {kind}:")
    field = "prompts" if kind in ONLINE else "data"
    lines.append(f"      {field}: {ROWS[kind]}{f'  # there: {_comment(data)}' if data else ''}")
    if kind in ONLINE:
        lines.append("      reward_model: reward")
    lines += [f"      {name}: {_yaml(value)}" for name, value in stage.items()]
    return "\n".join(lines) + "\n"


def _translated(
    tool: Tool, kind: str, flat: Flat
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """Return (settings of the backbone, of the stage, the data) in our spelling."""
    backbone: dict[str, Any] = {}
    stage: dict[str, Any] = {}
    needed = {"data": ["rows"]} if kind not in ONLINE else ONLINE_NEEDS
    data = None
    adapters = _trains_adapters(flat)
    for key, given in flat.items():
        name, value = _translate(tool, key, given, kind)
        if name in ("data", "prompts") and data is None:
            data = given if isinstance(given, str) else None
        if name in RATES and not adapters:
            continue
        if name in SAME_BACKBONE and _valid(BackboneConfig, backbone | {name: value}):
            backbone.setdefault(name, value)
        elif name in SAME and _valid(CONFIGS[kind], needed | stage | {name: value}):
            stage.setdefault(name, value)
    return backbone, stage, data


ONLINE = [kind for kind, config in CONFIGS.items() if issubclass(config, OnlineConfig)]
ONLINE_NEEDS = {"prompts": ["rows"], "reward_model": ["reward"]}


def _translate(tool: Tool, key: str, given: Any, kind: str) -> tuple[str, Any]:
    """Return our setting and value for another tool's key; an empty name if we have none."""
    fields = {*BackboneConfig.model_fields, *CONFIGS[kind].model_fields}
    name, value = dict(tool.words).get(key, ""), given
    if not name and "." not in key:
        word = meaning(key)
        name = key if key in fields else (word.here(fields) or "") if word else ""
        if word and word.value and key not in fields:
            if given is not True:  # a switch that is off means nothing
                return "", None
            value = word.value
    return name, _value(name, value)


def _value(name: str, value: Any) -> Any:
    if isinstance(value, str):
        value = scalar(value) if name in NUMBERS else value
    if name == "lora_target_modules":
        names = value.split(",") if isinstance(value, str) else value
        names = [part.strip() for part in names] if isinstance(names, list) else names
        return "all-linear" if names in (["all"], ["all-linear"]) else names
    return value_meant(name, value) or value


NUMBERS = frozenset(("learning_rate", "weight_decay", "value_learning_rate", "beta", "kl_coef"))


def _trains_adapters(flat: Flat) -> bool:
    """Return whether the other tool trains LoRA too: its learning rates then fit ours."""
    last = {normal(key.rpartition(".")[2]): value for key, value in flat.items()}
    switch = next((last[key] for key in ("use_peft", "use_lora") if key in last), None)
    if switch is not None:
        return switch is True
    way = next((last[key] for key in WAYS if key in last), None)
    if way is not None:
        return "lora" in normal(way)
    return any(last.get(key) for key in ("lora_r", "lora_rank", "lora_alpha", "lora_dim"))


WAYS = ("adapter", "finetuning_type", "train_type", "tuner_type", "peft_type")


def _valid(config: type[Config], settings: Mapping[str, Any]) -> bool:
    """Return whether these settings are accepted together."""
    try:
        config.model_validate(dict(settings))
    except ValidationError:
        return False
    return True


def _name(file: Path) -> str:
    """Make a run's name from a file's."""
    return re.sub(r"[^a-z0-9_-]+", "-", file.stem.lower()).strip("-_")[:40] or "mine"


def _yaml(value: Any) -> str:
    """Write a value as our recipes do."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_yaml(entry) for entry in value)}]"
    if isinstance(value, str) and not (PLAIN.fullmatch(value) and scalar(value) == value):
        return json.dumps(value, ensure_ascii=not value.isprintable())
    return str(value)


PLAIN = re.compile(r"[A-Za-z./][\w./-]*")


def _comment(data: str) -> str:
    return shortened(" ".join(data.split()))[1:-1]
