"""Settings of every stage, as types: the one place where a name, a default and its help live.

Recipes, command-line options, the published JSON Schema and the manuals are all made from these
classes. Nothing here reads a file or imports torch: `alignkit.recipe.yaml_source` reads recipes,
and `alignkit.run.execute` runs them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from alignkit.errors import pick
from alignkit.recipe.scorer_forms import By, is_function, mistake, parts, respelled
from alignkit.recipe.yaml_source import Document

STAGE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
HTTP = re.compile(r"https?://[^/\s]", re.IGNORECASE)
GATE = re.compile(r"\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
POLICY_KINDS = ("sft", "dpo", "ppo", "rloo")
EMBEDDED = ("demonstrations", "prompts", "candidates", "validation", "test")


@dataclass(frozen=True)
class Source:
    """Marks a field whose values are data: a file, `embedded:…`, or an earlier stage's output."""

    stages: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def parts(self, value: str) -> list[tuple[str, Source | Refers]]:
        """What the value names, each with the marker it counts by; nothing for a word."""
        return [] if value in self.words else [(value, self)]

    def respelled(self, value: str, replace: Callable[[str], str]) -> str:
        """The value with what it names replaced."""
        return value if value in self.words else replace(value)


@dataclass(frozen=True)
class Refers:
    """Marks a field whose values name an earlier stage of these kinds, or a run's directory.

    `words` are values with a meaning of their own. With `by`, values are scorers or judges, written
    as `alignkit.recipe.scorer_forms` says; with `functions`, `module:function` is one of them.
    """

    stages: tuple[str, ...]
    words: tuple[str, ...] = ()
    by: By | None = None
    functions: bool = False

    def parts(self, value: str) -> list[tuple[str, Source | Refers]]:
        """What the value names, each with the marker it counts by; nothing for a word."""
        if self.by is None:
            return [] if value in self.words else [(value, self)]
        found = parts(value, functions=self.functions)
        return [
            (part, self if kind == "run" else Source())
            for kind, part in found
            if kind != "function"
        ]

    def code(self, value: str) -> list[str]:
        """The functions that the value names."""
        found = [] if self.by is None else parts(value, functions=self.functions)
        return [part for kind, part in found if kind == "function"]

    def respelled(self, value: str, replace: Callable[[str], str]) -> str:
        """The value with what it names replaced."""
        if self.by is None:
            return value if value in self.words else replace(value)
        return respelled(value, lambda _kind, part: replace(part), functions=self.functions)

    def mistake(self, value: str) -> tuple[str, str] | None:
        """What is wrong with the value as it is written, and the remedy."""
        return None if self.by is None else mistake(value, self.by, functions=self.functions)


@dataclass(frozen=True)
class Calls:
    """Marks a field whose values may be `module:function`: its source enters the content key."""


@dataclass(frozen=True)
class Cosmetic:
    """Marks a field that changes no weight and no result: it is left out of the content key."""


def _wrong(name: str, message: str) -> PydanticCustomError:
    """A problem of several settings together, shown at the place of the one named."""
    return PydanticCustomError("setting", "{message}", {"field": name, "message": message})


def _as_tuple(value: object) -> object:
    """One value is a list of one; lists become tuples, so that a config cannot be edited."""
    if value is None or isinstance(value, tuple):
        return value
    return tuple(value) if isinstance(value, list) else (value,)


Texts = Annotated[
    tuple[str, ...], BeforeValidator(_as_tuple, json_schema_input_type=str | list[str])
]
Numbers = Annotated[
    tuple[Annotated[float, Field(allow_inf_nan=False)], ...],
    BeforeValidator(_as_tuple, json_schema_input_type=float | list[float]),
]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]


class Config(BaseModel):
    """Settings that cannot change once made, and know every key they may have."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    @classmethod
    def marked(cls, marker: type) -> Iterator[tuple[str, Any]]:
        """Fields that carry a marker of this type, with the marker."""
        for name, info in cls.model_fields.items():
            for value in info.metadata:
                if isinstance(value, marker):
                    yield name, value


# What stages read: demonstrations, and rankings or preferences, from files or earlier stages.
DEMONSTRATED = Source(stages=("split",), records=("demonstration",))
RANKED = Source(stages=("rank", "split"), records=("ranking", "preference"))


class BackboneConfig(Config):
    """The frozen base model every adapter sits on, and the shape of those adapters."""

    model_name_or_path: str = "tiny"
    """The base model: a hub id, a directory, a run's directory (its base, and its adapter to
    start from), or `tiny`, the model of 0.5 M parameters that ships with alignkit."""
    revision: str | None = None
    """Commit or tag of a hub model; without it the newest is used and its commit recorded."""
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    """How frozen weights are stored: nf4 takes 0.55 bytes a weight, int8 1, none 2 or 4. Only the
    backbone is quantized; what is trained is always fp32."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the arithmetic. auto is bfloat16 on a GPU that has it, float32 on a CPU."""
    lora_r: Count = 16
    """Rank of each adapter: more can learn more, and costs memory and time in proportion."""
    lora_alpha: Count = 32
    """Adapter output is scaled by lora_alpha / lora_r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of adapter inputs dropped in sft and reward training; dpo, ppo and rloo use 0."""
    lora_target_modules: Texts = ("all-linear",)
    """Names of the layers that get adapters; all-linear means every one but the output layer."""
    attn_implementation: str | None = None
    """Attention kernel: eager, sdpa or flash_attention_2; without it transformers chooses."""
    chat_template: str | None = None
    """File with a Jinja chat template, used in place of the tokenizer's own."""


class StageConfig(Config):
    """What every stage has."""

    kind: ClassVar[str]

    name: Annotated[str | None, Cosmetic()] = None
    """What later stages call this one; without it, the stage's kind."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed of shuffling, dropout, sampling and fresh weights; without it, the recipe's."""
    gate: Annotated[dict[str, str], Cosmetic()] = Field(default_factory=dict)
    """Thresholds on this stage's metrics, such as `accuracy: ">= 0.7"`; a missed one stops the
    run with exit code 1 after everything was written."""

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, name: str | None) -> str | None:
        if name is not None and not STAGE_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a stage name: use a-z, 0-9, - and _, at most 64")
        return name

    @field_validator("gate")
    @classmethod
    def _gates_compare(cls, gate: dict[str, str]) -> dict[str, str]:
        for metric, threshold in gate.items():
            if not GATE.fullmatch(threshold):
                raise ValueError(f"{metric}: {threshold!r} is not a threshold such as '>= 0.7'")
        return gate


class TrainingConfig(StageConfig):
    """What the stages that go through a data set have in common."""

    data: Texts = Field(min_length=1)
    """JSONL files to train on, in any format `alignkit data check` knows."""
    eval_data: Texts | None = None
    """Files to evaluate on. They take no part in training."""
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the prompts held out of `data` for evaluation when there is no eval_data; all rows
    of one prompt stay on one side."""
    format: str | None = None
    """Format of the data files; without it, it is found and named."""
    on_bad_row: Literal["error", "drop"] = "error"
    """A row that cannot be read: stop before training, or leave it out and say which."""
    on_overlong: Literal["error", "drop", "truncate_prompt"] = "error"
    """A row longer than max_length: stop, leave it out, or cut the start of its prompt. Completions
    are never cut."""
    max_length: Count = 1024
    """Longest prompt and completion together, in tokens; memory grows with it."""
    learning_rate: Positive = 1e-4
    """Peak step size. The default is meant for adapters, about ten times one for full weights."""
    num_train_epochs: Positive = 1.0
    """Passes over the data."""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Optimizer steps in all; when above 0 it replaces num_train_epochs."""
    per_device_train_batch_size: Count = 8
    """Rows in one forward pass; lower it to save memory."""
    per_device_eval_batch_size: Count = 16
    """Rows in one forward pass of evaluation; it changes no result."""
    gradient_accumulation_steps: Count = 1
    """Forward passes summed into one optimizer step: the batch without the memory."""
    warmup_steps: CountOrNone = 0
    """Steps over which the learning rate rises from 0 to its peak."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    ] = "linear"
    """How the learning rate goes down after its peak."""
    weight_decay: NotNegative = 0.0
    """AdamW's decoupled decay of the trained weights."""
    max_grad_norm: NotNegative = 1.0
    """Gradients longer than this are scaled down to it; 0 leaves them alone."""
    logging_steps: Annotated[Count, Cosmetic()] = 10
    """Steps between two lines of metrics.jsonl."""
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    """When to evaluate during training; at the end it is always done if there is data for it."""
    eval_steps: Count | None = None
    """Steps between evaluations when eval_strategy is steps."""
    save_steps: Annotated[Count, Cosmetic()] = 100
    """Steps between checkpoints: what at most is lost when the machine dies."""
    save_total_limit: Annotated[int, Field(ge=2), Cosmetic()] = 2
    """Checkpoints kept; an older one goes only after a newer one is sealed."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: about 30 % slower, far less memory."""
    report_to: Annotated[Texts, Cosmetic()] = ("none",)
    """Trackers to send metrics to, such as wandb or tensorboard; none sends nothing."""
    policy: Annotated[str | None, Refers(POLICY_KINDS)] = None
    """Stage or run directory whose adapter to start from; without it, that of the run named as the
    model, or a fresh one."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Any other argument of the trainer underneath, by its own name; checked before the run."""

    @model_validator(mode="after")
    def _evaluation_has_data(self) -> TrainingConfig:
        if self.eval_strategy != "no" and not self.eval_data and not self.eval_fraction:
            raise _wrong(
                "eval_strategy",
                f"eval_strategy is {self.eval_strategy!r} but there is nothing to evaluate on: "
                "set eval_data or eval_fraction",
            )
        if self.eval_steps is not None and self.eval_strategy != "steps":
            raise _wrong("eval_steps", "eval_steps does nothing unless eval_strategy is 'steps'")
        if self.eval_steps is None and self.eval_strategy == "steps":
            raise _wrong("eval_strategy", "eval_strategy 'steps' needs eval_steps")
        return self


class SftConfig(TrainingConfig):
    """Supervised fine-tuning: the policy learns to say what demonstrations say."""

    kind: ClassVar[str] = "sft"

    data: Annotated[Texts, DEMONSTRATED] = Field(min_length=1)
    """Demonstrations: prompts with a good completion, in any format `data check` knows."""
    eval_data: Annotated[Texts | None, DEMONSTRATED] = None
    """Demonstrations to evaluate on. They take no part in training."""
    learning_rate: Positive = 2e-4
    """Peak step size. The default is meant for adapters, about ten times one for full weights."""
    train_on: Literal["completion", "all"] = "completion"
    """Which tokens are learned: those the assistant says, or all, prompts too."""
    packing: bool = False
    """Fill each forward pass with rows up to per_device_train_batch_size times max_length tokens,
    in place of that many rows: fewer steps where rows are short. Rows never see each other."""


class RewardConfig(TrainingConfig):
    """Reward model: an adapter and a head that score completions as people ranked them."""

    kind: ClassVar[str] = "reward"

    data: Annotated[Texts, RANKED] = Field(min_length=1)
    """Rankings or preferences: a file in any format `data check` knows, or a rank stage."""
    eval_data: Annotated[Texts | None, RANKED] = None
    """Rankings to evaluate on. They take no part in training."""
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the prompts held out of `data` for evaluation when there is no eval_data; all rows
    of one prompt stay on one side."""
    objective: Literal["pairs", "plackett_luce"] = "pairs"
    """What a ranking of more than two means: all its pairs, or one Plackett-Luce likelihood of the
    whole order. Each completion is forwarded once either way."""
    weight: Literal["group", "pair"] = "group"
    """Weight of a prompt: 1 in all however many pairs it has, or 1 for each pair."""
    ties: Literal["drop", "half"] = "drop"
    """Equal ranks: left out, or a pair that is half a win for each side."""
    margin: bool = True
    """Ask for a difference of at least a pair's recorded margin, where it has one."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels taken to be wrong; keeps scores of noisy rankings from running away."""
    center_rewards_coefficient: NotNegative | None = None
    """Weight of the square of a pair's summed scores: pulls the mean score to zero."""
    head_learning_rate: Positive | None = None
    """Step size of the scalar head; without it, learning_rate."""
    early_stopping_patience: Count | None = None
    """Evaluations without a better held-out accuracy before stopping at the best one seen."""

    @model_validator(mode="after")
    def _patience_needs_evaluations(self) -> RewardConfig:
        if self.early_stopping_patience and self.eval_strategy == "no":
            raise _wrong(
                "early_stopping_patience",
                "early_stopping_patience needs eval_strategy 'steps' or 'epoch'",
            )
        return self


class DpoConfig(TrainingConfig):
    """DPO and its relatives: the policy learns from preferences without a reward model."""

    kind: ClassVar[str] = "dpo"

    data: Annotated[Texts, RANKED] = Field(min_length=1)
    """Preferences or rankings: a file in any format `data check` knows, or a rank stage."""
    eval_data: Annotated[Texts | None, RANKED] = None
    """Preferences to evaluate on. They take no part in training."""
    learning_rate: Positive = 5e-6
    """Peak step size. The default is meant for adapters, about ten times one for full weights."""
    beta: Positive = 0.1
    """Pull toward the reference: small lets the policy go far, large keeps it near."""
    loss_type: Texts = ("sigmoid",)
    """Loss by TRL's name: sigmoid (DPO), ipo, hinge, robust, sigmoid_norm, exo_pair, nca_pair,
    bco_pair, sppo_hard, aot, aot_unpaired, apo_zero, apo_down, discopop, sft; or a list, summed."""
    loss_weights: Numbers | None = None
    """Weight of each loss in loss_type; without it, each counts 1."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of preferences taken to be the wrong way round; works for sigmoid (cDPO) too."""
    reference: Literal["start", "backbone"] = "start"
    """What the policy is held to: a frozen copy of its starting adapter, or the bare model."""
    pairs: Literal["all", "adjacent", "best-worst", "best-vs-rest"] = "all"
    """Which pairs of a ranking of more than two become preferences."""
    weight: Literal["group", "pair"] = "group"
    """Weight of a prompt: 1 in all however many pairs it has, or 1 for each pair."""
    discopop_tau: Positive = 0.05
    """Temperature of the loss discopop; the others do not read it."""
    max_tokens_per_batch: Count | None = None
    """Most tokens in one forward pass: long rows go in smaller batches. Without it, only
    per_device_train_batch_size counts."""
    exact_padded: bool = False
    """Use TRL's own padded forward in place of the shared-prefix one: slower, for comparison."""
    cache_reference: Literal["auto", "always", "never"] = "auto"
    """Keep the reference's log-probabilities on disk: auto does if they are used again."""

    @model_validator(mode="after")
    def _weights_match_losses(self) -> DpoConfig:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise _wrong(
                "loss_weights",
                f"loss_weights has {len(self.loss_weights)} values but loss_type has "
                f"{len(self.loss_type)}",
            )
        return self


class SplitConfig(StageConfig):
    """Data in two parts by prompt: `NAME` is the training part, `NAME.held_out` the other."""

    kind: ClassVar[str] = "split"

    data: Annotated[Texts, Source(stages=("rank",), records=("preference", "ranking"))] = Field(
        min_length=1
    )
    """Files to split, in any format `data check` knows."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the prompts in the held-out part; all rows of one prompt stay on one side."""
    format: str | None = None
    """Format of the files; without it, it is found and named."""
    on_bad_row: Literal["error", "drop"] = "error"
    """A row that cannot be read: stop, or leave it out and say which."""


class GenerateConfig(StageConfig):
    """Completions sampled from a policy, n for each prompt, as candidates for people to rank."""

    kind: ClassVar[str] = "generate"

    policy: Annotated[str | None, Refers(POLICY_KINDS)] = None
    """Stage or run directory to sample from; without it, the run named as the model, or the bare
    model."""
    prompts: Annotated[Texts, Source(stages=("split",), records=("prompt",))] = Field(min_length=1)
    """Files with prompts; of records with completions only the prompts are read."""
    n: Count = 4
    """Completions for each prompt."""
    temperature: NotNegative = 1.0
    """Above 1 is more varied, below 1 more certain, 0 always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    max_new_tokens: Count = 128
    """Longest completion, in tokens."""
    batch_size: Count = 32
    """Completions written at a time; lower it to save memory."""
    limit: Count | None = None
    """Only the first so many prompts."""
    merge: Annotated[Texts, Source(stages=("generate",), records=("candidates",))] = ()
    """Candidates files or generate stages whose completions of the same prompts are added."""


class RankConfig(StageConfig):
    """Rankings of candidates by a judge that stands in for people."""

    kind: ClassVar[str] = "rank"

    candidates: Annotated[Texts, Source(stages=("generate",), records=("candidates",))] = Field(
        min_length=1
    )
    """Candidates files or generate stages to rank."""
    judge: Annotated[str, Refers(("reward",), by="scorer", functions=True)] = "gold"
    """Who ranks: gold (the embedded task's own scoring), a reward stage or run, a Python function
    `module:function`, or an HTTP service that scores."""
    noise: NotNegative = 0.0
    """Standard deviation of normal noise added to every score, as people disagree."""


class EvaluateConfig(StageConfig):
    """Policies compared on prompts they have not seen: scores, lengths, KL, win rates."""

    kind: ClassVar[str] = "evaluate"

    policies: Annotated[Texts, Refers(POLICY_KINDS, words=("base",))] = Field(min_length=1)
    """Stages or run directories to compare; base is the bare model."""
    baseline: Annotated[str, Refers(POLICY_KINDS, words=("base",))]
    """The one the others must beat; KL is measured to it as well."""
    judge: Annotated[Texts, Refers(("reward",), by="judge", functions=True)] = ("gold",)
    """Who decides, written as for `eval winrate --judge`: gold (the embedded task's own scoring),
    a reward stage or run, `module:function`, `llm:MODEL@URL`, `human:VOTES,CANDIDATES`,
    `bleu:FILE` (or chrf, rouge, exact, f1), `panel:A+B`, or an HTTP service that scores. The first
    one decides the win rates of the table."""
    reward_model: Annotated[str | None, Refers(("reward",))] = None
    """Reward stage or run whose score is reported beside the verdicts."""
    prompts: Annotated[Texts, Source(stages=("split",), records=("prompt",))] = Field(min_length=1)
    """Files with prompts that took no part in training."""
    temperatures: Numbers = (1.0, 0.0)
    """Sampling temperatures to compare at: 0 is greedy. One alone can mislead."""
    max_new_tokens: Count = 128
    """Longest completion, in tokens."""
    batch_size: Count = 64
    """Completions written at a time; lower it to save memory."""
    limit: Count | None = None
    """Only the first so many prompts."""
    n_samples: Count = 1
    """Completions of each policy for each prompt at temperatures above 0."""

    @field_validator("temperatures")
    @classmethod
    def _temperatures_are_not_negative(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values or min(values) < 0:
            raise ValueError("temperatures must be 0 or more, and at least one")
        return values


class OnlineConfig(StageConfig):
    """What PPO and RLOO share: rollouts, rewards, the KL penalty and the clipped update."""

    policy: Annotated[str | None, Refers(POLICY_KINDS)] = None
    """Stage or run directory whose adapter to start from; its frozen copy is the reference."""
    prompts: Annotated[Texts, Source(stages=("split",), records=("prompt",))] = Field(min_length=1)
    """Files with prompts to practise on; of records with completions only the prompts are read."""
    eval_prompts: Annotated[Texts | None, Source(stages=("split",), records=("prompt",))] = None
    """Prompts on which the best checkpoint is chosen, by score minus kl_coef times KL."""
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of `prompts` held out for that choice when there is no eval_prompts."""
    on_bad_row: Literal["error", "drop"] = "error"
    """A row that cannot be read: stop before training, or leave it out and say which."""
    format: str | None = None
    """Format of the prompt files; without it, it is found and named."""
    reward_model: Annotated[Texts, Refers(("reward",), by="scorer")] = ()
    """Reward stages or runs that score completions; gold is the embedded task's own scoring."""
    reward: Annotated[Texts, Calls()] = ()
    """Python functions `module:function` taking a prompt, a list of messages with role and content,
    and a completion, a text, and returning a number; or lists of them as `prompts` and
    `completions`, returning a list. Further parameters are columns of the prompts."""
    reward_url: Texts = ()
    """HTTP services that score completions: a POST of JSON, answered with scores."""
    reward_weights: Numbers | None = None
    """Weight of each reward, in the order reward_model, reward, reward_url; else each counts 1."""
    reward_timeout: Positive = 60.0
    """Seconds to wait for an answer of reward_url before trying again."""
    normalize_rewards: bool = True
    """Shift and scale scores by the mean and deviation that the reward model has on completions of
    the starting policy, fixed before the first step."""
    reward_clip: Positive | None = 10.0
    """Scores are held between minus and plus this, after normalizing."""
    reference: Literal["start", "backbone"] = "start"
    """What KL is measured to: a frozen copy of the starting adapter, or the bare model."""
    max_length: Count = 1024
    """Longest prompt and completion together, in tokens; memory grows with it."""
    on_overlong: Literal["error", "drop", "truncate_prompt"] = "error"
    """A prompt that leaves no room for response_length: stop, leave it out, or cut its start."""
    response_length: Count = 64
    """Longest completion, in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature, applied alike to the old, new and reference log-probabilities."""
    stop_token: str = "eos"
    """Where a completion ends: eos (every stop token of the model), or one token's text."""
    missing_eos_penalty: NotNegative | None = 1.0
    """Taken off the score of a completion that does not stop by itself."""
    total_episodes: Count = 10_000
    """Completions sampled in all; iterations are total_episodes / rollout_batch_size."""
    rollout_batch_size: Count = 64
    """Completions sampled for one iteration; their advantages are whitened together."""
    rollout_forward_batch_size: Count = 64
    """Completions in one forward pass of sampling and scoring; lower it to save memory."""
    rollout_url: str | None = None
    """OpenAI-compatible server that samples in place of the local model; log-probabilities are
    always computed here."""
    num_ppo_epochs: Count = 4
    """Passes of the update over one iteration's completions."""
    num_mini_batches: Count = 1
    """Optimizer steps in each of those passes."""
    per_device_train_batch_size: Count = 8
    """Completions in one forward pass of the update; lower it to save memory."""
    learning_rate: Positive = 1e-5
    """Peak step size of the policy's adapter."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate goes down over the iterations."""
    warmup_steps: CountOrNone = 0
    """Iterations over which the learning rate rises from 0 to its peak."""
    max_grad_norm: NotNegative = 1.0
    """Gradients longer than this are scaled down to it; 0 leaves them alone."""
    cliprange: Positive = 0.2
    """How far from 1 the probability ratio of new to old policy still counts."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Upper limit of the ratio for bad completions (dual-clip PPO); without it there is none."""
    kl_coef: NotNegative = 0.05
    """Weight of the KL penalty in the reward: small lets the policy go far from the reference."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the per-token KL in the penalty; k1 is the log-ratio itself, unbiased."""
    kl_target: Positive | None = None
    """KL per completion that kl_coef is steered to; without it kl_coef stays as it is."""
    kl_horizon: Positive = 10_000.0
    """Episodes over which the steering of kl_coef acts."""
    kl_limit: Positive | None = None
    """KL per completion beyond which the run fails, naming the last checkpoint before it."""
    early_stop_kl: Positive | None = None
    """Approximate KL of one iteration's update at which its remaining passes are skipped."""
    entropy_coef: NotNegative = 0.0
    """Weight of an entropy bonus in the policy's loss."""
    alarm_judge: Annotated[str | None, Refers(("reward",), by="scorer", functions=True)] = None
    """Who judges whether the policy exploits its reward: a reward stage or run, a Python function
    `module:function`, or gold. Training stops when its win rate on the held-out prompts falls while
    the score rises. Without it gold judges the embedded task, and elsewhere the reward itself."""
    max_ratio: Positive = 10.0
    """Mean probability ratio at which a mini-batch is given up and training stops."""
    logging_steps: Annotated[Count, Cosmetic()] = 1
    """Iterations between two lines of metrics.jsonl."""
    eval_steps: Count | None = None
    """Iterations between evaluations on the held-out prompts; without it, ten in all."""
    save_steps: Annotated[Count, Cosmetic()] = 10
    """Iterations between checkpoints: what at most is lost when the machine dies."""
    save_total_limit: Annotated[int, Field(ge=2), Cosmetic()] = 2
    """Checkpoints kept; an older one goes only after a newer one is sealed."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: about 30 % slower, far less memory."""
    report_to: Annotated[Texts, Cosmetic()] = ("none",)
    """Trackers to send metrics to, such as wandb or tensorboard; none sends nothing."""

    @property
    def iterations(self) -> int:
        """How often completions are sampled and learned from."""
        return self.total_episodes // self.rollout_batch_size

    @model_validator(mode="after")
    def _rewards_and_batches_fit(self) -> OnlineConfig:
        rewards = len(self.reward_model) + len(self.reward) + len(self.reward_url)
        if not rewards:
            raise _wrong(
                "reward_model", "nothing to learn from: set reward_model, reward or reward_url"
            )
        if self.reward_weights is not None and len(self.reward_weights) != rewards:
            raise _wrong(
                "reward_weights",
                f"reward_weights has {len(self.reward_weights)} values but there are "
                f"{rewards} rewards",
            )
        for name in self.reward:
            if not is_function(name):
                raise _wrong("reward", f"reward {name!r} is not of the form module:function")
        for name, urls in (("reward_url", self.reward_url), ("rollout_url", (self.rollout_url,))):
            if not all(url is None or HTTP.match(url) for url in urls):
                raise _wrong(name, f"{name} starts with http:// or https://")
        self._alarm_judge_is_independent()
        if self.total_episodes < self.rollout_batch_size:
            raise _wrong(
                "total_episodes",
                f"total_episodes {self.total_episodes} is less than one iteration of "
                f"rollout_batch_size {self.rollout_batch_size}",
            )
        if self.rollout_batch_size % self.num_mini_batches:
            raise _wrong(
                "num_mini_batches",
                f"num_mini_batches {self.num_mini_batches} does not divide rollout_batch_size "
                f"{self.rollout_batch_size}",
            )
        if self.response_length >= self.max_length:
            raise _wrong(
                "response_length",
                f"response_length {self.response_length} leaves no room for a prompt in "
                f"max_length {self.max_length}",
            )
        return self

    def _alarm_judge_is_independent(self) -> None:
        judge = self.alarm_judge
        if judge is None:
            return
        if judge in (*self.reward_model, *self.reward, *self.reward_url):
            raise _wrong("alarm_judge", f"alarm_judge {judge} is what the policy is trained on")
        if not self.eval_prompts and not self.eval_fraction:
            raise _wrong(
                "alarm_judge",
                "alarm_judge has nothing to judge: set eval_prompts or eval_fraction",
            )


class PpoConfig(OnlineConfig):
    """PPO: the policy learns from a reward model, held near its start by a KL penalty."""

    kind: ClassVar[str] = "ppo"

    value: Literal["head", "adapter"] = "head"
    """What learns the value: a head with a small network on the frozen states of the reward model
    (one forward scores and values), or an adapter of its own, as dear as the policy's update."""
    value_learning_rate: Positive | None = None
    """Peak step size of the value; without it 0.64 / hidden size for a head, learning_rate for an
    adapter."""
    value_warmup: CountOrNone = 0
    """First iterations in which only the value is trained and the policy stays as it is."""
    cliprange_value: Positive = 0.2
    """How far a value may move from the rollout's in one iteration's loss."""
    vf_coef: NotNegative = 0.1
    """Weight of the value loss."""
    gamma: Share = 1.0
    """Discount of later rewards; 1 for completions that end."""
    lam: Share = 0.95
    """GAE's lambda: 1 is unbiased and noisy, less trusts the value head."""
    whiten_rewards: bool = False
    """Scale rewards of a batch to variance 1 before advantages are computed."""

    @model_validator(mode="after")
    def _the_policy_has_a_turn(self) -> PpoConfig:
        if self.value_warmup >= self.iterations:
            raise _wrong(
                "value_warmup",
                f"value_warmup {self.value_warmup} leaves none of {self.iterations} iterations "
                "(total_episodes / rollout_batch_size) to the policy",
            )
        return self


class RlooConfig(OnlineConfig):
    """RLOO: like PPO without a value model; a completion is compared to others of its prompt."""

    kind: ClassVar[str] = "rloo"

    rloo_k: Annotated[int, Field(ge=2)] = 2
    """Completions for each prompt; the mean of the others is each one's baseline."""
    normalize_advantage: bool = False
    """Whiten advantages over the whole batch."""

    @model_validator(mode="after")
    def _groups_are_whole(self) -> RlooConfig:
        if self.rollout_batch_size % self.rloo_k:
            raise _wrong(
                "rloo_k",
                f"rloo_k {self.rloo_k} does not divide rollout_batch_size "
                f"{self.rollout_batch_size}",
            )
        return self


@dataclass(frozen=True)
class Stage:
    """One step of a recipe: its name, and its settings."""

    name: str
    config: StageConfig

    @property
    def kind(self) -> str:
        return self.config.kind


class RecipeHead(Config):
    """What a recipe says besides its stages."""

    name: str
    """Name of the run: its directory under runs/."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of every stage that has none of its own."""
    backbone: BackboneConfig = Field(default_factory=BackboneConfig)
    """The base model and the shape of its adapters."""

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, name: str) -> str:
        if not STAGE_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a name: use a-z, 0-9, - and _, at most 64")
        return name


@dataclass(frozen=True)
class Recipe:
    """A whole plan: one backbone, and stages in the order they run.

    Relative paths start at `directory`; `document` knows the line of every setting.
    """

    name: str
    seed: int
    backbone: BackboneConfig
    stages: tuple[Stage, ...]
    directory: Path = Path()
    document: Document = field(default_factory=lambda: Document("recipe"))

    def stage(self, name: str) -> Stage:
        """The stage of this name, or a RecipeError with the nearest one."""
        return pick({stage.name: stage for stage in self.stages}, name, what="stage")


def config_class(kind: str) -> type[StageConfig]:
    """Settings class of a stage kind, or a RecipeError with the nearest one."""
    return pick(CONFIGS, kind, what="stage kind")


def json_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a recipe file, for editors that complete and check as one types."""
    head = RecipeHead.model_json_schema()
    definitions: dict[str, Any] = head.pop("$defs", {})
    stages = []
    for kind, config in CONFIGS.items():
        schema = config.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= schema.pop("$defs", {})
        definitions[config.__name__] = schema
        stages.append(_stage_schema(kind, config))
    head["properties"]["stages"] = {
        "type": "array",
        "minItems": 1,
        "items": {"oneOf": stages},
        "description": "Stages in the order they run; a value may name an earlier stage.",
    }
    head["required"] = sorted({*head.get("required", ()), "stages"})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "alignkit recipe",
        "description": "Stages on one backbone, run by `alignkit run`.",
        **{key: value for key, value in head.items() if key not in ("title", "description")},
        "$defs": definitions,
    }


def _stage_schema(kind: str, config: type[StageConfig]) -> Mapping[str, Any]:
    return {
        "type": "object",
        "properties": {kind: {"$ref": f"#/$defs/{config.__name__}"}},
        "required": [kind],
        "additionalProperties": False,
        "description": (config.__doc__ or "").strip(),
    }


# Files that stages leave for others to read as data, by part; the part "" is the stage itself.
OUTPUTS: dict[str, dict[str, str]] = {
    "split": {"": "train.jsonl", "held_out": "held_out.jsonl"},
    "generate": {"": "candidates.jsonl"},
    "rank": {"": "rankings.jsonl"},
}


def output_of(value: str, kinds: Mapping[str, str]) -> tuple[str, str] | None:
    """The stage and its file that a data value names: `rank`, or `split.held_out`; else None.

    `kinds`: kind of every stage by name. Names hold no dot, so a file's name is never taken.
    """
    name, _, part = value.partition(".")
    file = OUTPUTS.get(kinds.get(name, ""), {}).get(part)
    return None if file is None else (name, file)


CONFIGS: dict[str, type[StageConfig]] = {
    config.kind: config
    for config in (
        SftConfig,
        RewardConfig,
        DpoConfig,
        PpoConfig,
        RlooConfig,
        SplitConfig,
        GenerateConfig,
        RankConfig,
        EvaluateConfig,
    )
}
