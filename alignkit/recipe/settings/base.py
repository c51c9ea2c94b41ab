"""What the settings of all stages are made of: markers, types, the classes stages share.

Nothing here reads a file or imports torch: `alignkit.recipe.file` reads recipes, and
`alignkit.run.execute` runs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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
from alignkit.recipe.yaml_source import Document

STAGE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
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
class Source:
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

    def means(self, value: str) -> bool:
        """Whether the value has a meaning of its own and names nothing."""
        return value in self.words


@dataclass(frozen=True)
class Refers:
    """Marks a field whose values name an earlier stage that makes this, or a run's directory.

    `words` are values with a meaning of their own, such as the judge `gold`; with `functions`, so
    is `module:function`.
    """

    makes: Makes
    words: tuple[str, ...] = ()
    functions: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """Kinds of stages that make it."""
        return tuple(kind for kind, config in CONFIGS.items() if config.about.makes == self.makes)

    def means(self, value: str) -> bool:
        """Whether the value has a meaning of its own and names nothing."""
        return value in self.words or (self.functions and is_function(value))


def is_function(value: str) -> bool:
    """Whether the value is of the form module:function."""
    return FUNCTION.fullmatch(value) is not None


@dataclass(frozen=True)
class Calls:
    """Marks a field whose values may be `module:function`: its source enters the content key."""


@dataclass(frozen=True)
class Cosmetic:
    """Marks a field that changes no weight and no result: it is left out of the content key."""


def wrong(name: str, message: str) -> PydanticCustomError:
    """A problem of several settings together, shown at the place of the one named."""
    return PydanticCustomError("setting", "{message}", {"field": name, "message": message})


def as_tuple(value: object) -> object:
    """One value is a list of one; lists become tuples, so that a config cannot be edited."""
    if value is None or isinstance(value, tuple):
        return value
    return tuple(value) if isinstance(value, list) else (value,)


Texts = Annotated[
    tuple[str, ...], BeforeValidator(as_tuple, json_schema_input_type=str | list[str])
]
Numbers = Annotated[
    tuple[Annotated[float, Field(allow_inf_nan=False)], ...],
    BeforeValidator(as_tuple, json_schema_input_type=float | list[float]),
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


DEMONSTRATED = Source(records=("demonstration",))
RANKED = Source(records=("ranking", "preference"))
PROMPTS = Source(records=("prompt",))
CANDIDATES = Source(records=("candidates",))


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
    about: ClassVar[About] = About()

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
    policy: Annotated[str | None, Refers("policy")] = None
    """Stage or run directory whose adapter to start from; without it, that of the run named as the
    model, or a fresh one."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Any other argument of the trainer underneath, by its own name; checked before the run."""

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
