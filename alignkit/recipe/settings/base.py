"""What the settings of all stages are made of: markers, types, the classes stages share.

Nothing here reads a file or imports torch: `alignkit.recipe.file` reads recipes, and
`alignkit.run.execute` runs them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from alignkit.errors import pick
from alignkit.recipe.scorer_forms import By, mistake, parts, respelled
from alignkit.recipe.settings.values import Count, CountOrNone, NotNegative, Positive, Texts, wrong
from alignkit.recipe.yaml_source import Document

STAGE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
HTTP = re.compile(r"https?://[^/\s]", re.IGNORECASE)
GATE = re.compile(r"\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
EMBEDDED = ("demonstrations", "prompts", "candidates", "validation", "test")


# Every kind of stage with its settings, in the order of the table of kinds, which fills it.
CONFIGS: dict[str, type[StageConfig]] = {}

Makes = Literal["policy", "reward"]


@dataclass(frozen=True)
class About:
    """What is known of a kind of stage without running it.

    `version` is part of the content key: raise it when the arithmetic changes, so that no artifact
    of the old one is reused. `outputs`: the files it leaves for others to read as data, by part,
    the part "" being the stage itself; `records`: the kinds of records in them. `makes`: the kind
    of adapter it leaves. `card` opens that adapter's model card, `colour` is that of its curves
    (one of those in report.css). `trainer`: the module and the class that checks the arguments
    under `trainer:`.
    """

    version: int = 1
    outputs: Mapping[str, str] = field(default_factory=dict)
    records: tuple[str, ...] = ()
    makes: Makes | None = None
    card: str = "An adapter"
    colour: int | None = None
    trainer: tuple[str, str] | None = None


@dataclass(frozen=True)
class Reads:
    """Marks a field whose values are data: a file, `embedded:…`, or an earlier stage's output."""

    records: tuple[str, ...]
    words: tuple[str, ...] = ()

    @property
    def stages(self) -> tuple[str, ...]:
        """Kinds of stages that leave such records."""
        return tuple(
            kind
            for kind, config in CONFIGS.items()
            if set(config.about.records) & set(self.records)
        )

    def parts(self, value: str) -> list[tuple[str, Reads | Refers]]:
        """Return what the value names, each with the marker it counts by; nothing for a word."""
        return [] if value in self.words else [(value, self)]

    def respelled(self, value: str, replace: Callable[[str], str]) -> str:
        """Return the value with what it names replaced."""
        return value if value in self.words else replace(value)


@dataclass(frozen=True)
class Refers:
    """Marks a field whose values name an earlier stage that makes this, or a run's directory.

    `words` are values with a meaning of their own. With `by`, values are scorers or judges, written
    as `alignkit.recipe.scorer_forms` says; with `functions`, `module:function` is one of them.
    """

    makes: Makes
    words: tuple[str, ...] = ()
    by: By | None = None
    functions: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """Kinds of stages that make it."""
        return tuple(kind for kind, config in CONFIGS.items() if config.about.makes == self.makes)

    def parts(self, value: str) -> list[tuple[str, Reads | Refers]]:
        """Return what the value names, each with the marker it counts by; nothing for a word."""
        if self.by is None:
            return [] if value in self.words else [(value, self)]
        return [
            (part, self if kind == "run" else Reads(records=()))
            for kind, part in parts(value, functions=self.functions)
            if kind != "function"
        ]

    def code(self, value: str) -> list[str]:
        """Return the functions that the value names."""
        named = [] if self.by is None else parts(value, functions=self.functions)
        return [part for kind, part in named if kind == "function"]

    def respelled(self, value: str, replace: Callable[[str], str]) -> str:
        """Return the value with what it names replaced."""
        if self.by is None:
            return value if value in self.words else replace(value)
        return respelled(value, lambda _kind, part: replace(part), functions=self.functions)

    def mistake(self, value: str) -> tuple[str, str] | None:
        """Return what is wrong with the value as it is written, and the remedy."""
        return None if self.by is None else mistake(value, self.by, functions=self.functions)


@dataclass(frozen=True)
class Calls:
    """Marks a field whose values may be `module:function`: its source enters the content key."""


@dataclass(frozen=True)
class Cosmetic:
    """Marks a field that changes no weight and no result: it is left out of the content key."""


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


DEMONSTRATED = Reads(records=("demonstration",))
RANKED = Reads(records=("ranking", "preference"))
PROMPTS = Reads(records=("prompt",))
CANDIDATES = Reads(records=("candidates",))


class BackboneConfig(Config):
    """The frozen base model every adapter sits on, and the shape of those adapters."""

    model_name_or_path: str = "tiny"
    """Base model: a hub id, a directory, a run's directory (its base model, and its adapter to
    start from), or `tiny`, the model of 0.5 M parameters that ships with alignkit."""
    revision: str | None = None
    """Commit or tag of a hub model. Default: the newest commit, which is recorded."""
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    """Storage of the frozen weights: nf4 takes 0.55 bytes per weight, int8 1, none 2 or 4. Only the
    backbone is quantized; trained weights are always fp32."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute precision. auto is bfloat16 on a GPU that supports it, float32 on a CPU."""
    lora_r: Count = 16
    """Rank of each adapter. A higher rank can learn more, and costs memory and time in
    proportion."""
    lora_alpha: Count = 32
    """The adapter's output is scaled by lora_alpha / lora_r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on adapter inputs in sft and reward training; dpo, ppo and rloo use 0."""
    lora_target_modules: Texts = ("all-linear",)
    """Names of the layers that get adapters; all-linear means every linear layer except the output
    layer."""
    attn_implementation: str | None = None
    """Attention kernel: eager, sdpa or flash_attention_2. Default: chosen by transformers."""
    chat_template: str | None = None
    """File with a Jinja chat template that replaces the tokenizer's own."""


class StageConfig(Config):
    """What every stage has."""

    kind: ClassVar[str]
    about: ClassVar[About] = About()

    name: Annotated[str | None, Cosmetic()] = None
    """Name by which later stages refer to this one. Default: the stage's kind."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed of shuffling, dropout, sampling and new weights. Default: the recipe's seed."""
    gate: Annotated[dict[str, str], Cosmetic()] = Field(default_factory=dict)
    """Thresholds on this stage's metrics, such as `accuracy: ">= 0.7"`. A missed threshold stops
    the run with exit code 1 after everything is written."""

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
    """JSONL files to train on, in any format that `alignkit data check` recognises."""
    eval_data: Texts | None = None
    """Files to evaluate on; never trained on."""
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of the prompts in `data` to hold out for evaluation when eval_data is not set. All
    rows of a prompt stay on the same side."""
    format: str | None = None
    """Format of the data files. Default: detected, and reported."""
    on_bad_row: Literal["error", "drop"] = "error"
    """What to do with a row that cannot be read: stop before training, or drop it and report it."""
    on_overlong: Literal["error", "drop", "truncate_prompt"] = "error"
    """What to do with a row longer than max_length: stop, drop it, or cut the start of its prompt.
    Completions are never cut."""
    max_length: Count = 1024
    """Maximum length of prompt plus completion, in tokens. Memory grows with it."""
    learning_rate: Positive = 1e-4
    """Peak learning rate. The default suits adapters: about ten times a rate for full
    fine-tuning."""
    num_train_epochs: Positive = 1.0
    """Number of passes over the data."""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Total number of optimizer steps. Above 0 it overrides num_train_epochs."""
    per_device_train_batch_size: Count = 8
    """Rows per forward pass. Lower it to save memory."""
    per_device_eval_batch_size: Count = 16
    """Rows per forward pass in evaluation. It changes no result."""
    gradient_accumulation_steps: Count = 1
    """Forward passes per optimizer step: a larger batch without more memory."""
    warmup_steps: CountOrNone = 0
    """Steps over which the learning rate rises from 0 to its peak."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    ] = "linear"
    """Learning rate schedule after the warmup."""
    weight_decay: NotNegative = 0.0
    """AdamW's decoupled decay of the trained weights."""
    max_grad_norm: NotNegative = 1.0
    """Clip the gradient norm to this; 0 disables clipping."""
    logging_steps: Annotated[Count, Cosmetic()] = 10
    """Steps between lines of metrics.jsonl."""
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    """When to evaluate during training. The end of training is always evaluated if there is data
    for it."""
    eval_steps: Count | None = None
    """Steps between evaluations when eval_strategy is steps."""
    save_steps: Annotated[Count, Cosmetic()] = 100
    """Steps between checkpoints: the most that a crash can lose."""
    save_total_limit: Annotated[int, Field(ge=2), Cosmetic()] = 2
    """Number of checkpoints to keep. An old one is deleted only after a new one is sealed."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: about 30 % slower, far
    less memory."""
    report_to: Annotated[Texts, Cosmetic()] = ("none",)
    """Trackers to send metrics to, such as wandb or tensorboard; none sends nothing."""
    policy: Annotated[str | None, Refers("policy")] = None
    """Stage or run directory whose adapter to start from. Default: the adapter of the run named as
    the model, or a new one."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Other arguments of the underlying trainer, by their own names; checked before the run."""

    @model_validator(mode="after")
    def _evaluation_has_data(self) -> TrainingConfig:
        if self.eval_strategy != "no" and not self.eval_data and not self.eval_fraction:
            raise wrong(
                "eval_strategy",
                f"eval_strategy is {self.eval_strategy!r} but there is nothing to evaluate on: "
                "set eval_data or eval_fraction",
            )
        if self.eval_steps is not None and self.eval_strategy != "steps":
            raise wrong("eval_steps", "eval_steps does nothing unless eval_strategy is 'steps'")
        if self.eval_steps is None and self.eval_strategy == "steps":
            raise wrong("eval_strategy", "eval_strategy 'steps' needs eval_steps")
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
    """Seed of every stage that does not set its own."""
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
