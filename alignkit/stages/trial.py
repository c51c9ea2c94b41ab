"""A stage in little, for the plan to try it out: which settings, on which rows, how often.

A stage's `trial(config, rows)` gives the run that is tried: two optimizer steps, one iteration or
one batch, on the longest rows that the stage will meet. `alignkit.run.rehearsal` runs and times it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, lcm
from pathlib import Path
from typing import Any, Protocol

from alignkit.data.read import load_prompts
from alignkit.recipe.settings import OnlineConfig, StageConfig, TrainingConfig

STEPS = 2
PASSES_OF_EVALUATION = 1 / 3  # a forward alone, of the passes that a training step takes
CHOSEN = "chosen"  # the value that names the longest rows in a trial's settings
NEVER = 1 << 30


@dataclass(frozen=True)
class Trial:
    """A stage in little: its settings, and the files it reads by the values that name them.

    `units` of what its progress counts it will do in full, or whole trials if `as_a_whole`; the
    first `warm_up` of the trial do not count. `share` is a usual row's part of the longest.
    """

    config: StageConfig
    files: Mapping[str, Path]
    units: float
    steps: int = 0
    share: float = 1.0
    warm_up: int = 0
    as_a_whole: bool = False


class TrialRows(Protocol):
    """The rows that a stage will read, as far as they are there yet."""

    def records(
        self, values: Sequence[str], load: Callable[[Path], Any]
    ) -> tuple[list[Any], float]:
        """Records of these data values, and how many the stage will read for each of them."""

    def longest(self, records: Sequence[Any], number: int) -> tuple[Path, float]:
        """A file of the longest records, and the mean length of all over that of those."""

    def leaves(self, rows: int, here: int) -> None:
        """Note that the stage will leave what comes of `rows`, and its trial of `here` of them."""


def whole_trial(config: StageConfig, rows: TrialRows) -> Trial:
    """The stage itself: it costs next to nothing."""
    del rows
    return Trial(config, {}, 1, as_a_whole=True)


def training_trial(
    load: Callable[..., Any], *options: str
) -> Callable[[TrainingConfig, TrialRows], Trial]:
    """Make the trial of a stage whose data `load` reads, given these settings too."""

    def trial(config: TrainingConfig, rows: TrialRows) -> Trial:
        given = {name: getattr(config, name) for name in ("format", "on_bad_row", *options)}
        return _training(config, rows, partial(load, **given))

    return trial


def _training(config: TrainingConfig, rows: TrialRows, load: Callable[[Path], Any]) -> Trial:
    """Two optimizer steps of one forward each, on the longest rows."""
    records, times = rows.records(config.data, load)
    kept = 1 - config.eval_fraction if not config.eval_data else 1
    trained = len(records) * times * kept
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    steps = config.max_steps
    if steps <= 0:
        steps = max(1, round(ceil(trained / per_step) * config.num_train_epochs))
    path, share = rows.longest(records, STEPS * config.per_device_train_batch_size)
    evaluated = _rows_evaluated(config, len(records) * times - trained, steps)
    batches_evaluated = evaluated / config.per_device_train_batch_size
    forwards = steps * config.gradient_accumulation_steps + PASSES_OF_EVALUATION * batches_evaluated
    little = _without_extras(config, {**LITTLE_TRAINING, "data": (CHOSEN,)})
    return Trial(little, {CHOSEN: path}, forwards, steps, share, warm_up=STEPS - 1)


# What a trial leaves out: evaluations, saves, trackers, gates, caches.
LITTLE: dict[str, Any] = {
    "eval_fraction": 0.0,
    "eval_steps": None,
    "warmup_steps": 0,
    "save_steps": NEVER,
    "report_to": ("none",),
    "gate": {},
}
LITTLE_TRAINING = LITTLE | {
    "eval_data": None,
    "eval_strategy": "no",
    "early_stopping_patience": None,
    "max_steps": STEPS,
    "gradient_accumulation_steps": 1,
    "cache_reference": "never",
}


def _without_extras(config: StageConfig, changes: Mapping[str, Any]) -> StageConfig:
    """The settings with those of the changes that they have."""
    known = type(config).model_fields
    return config.model_copy(update={k: value for k, value in changes.items() if k in known})


def _rows_evaluated(config: TrainingConfig, held_out: float, steps: int) -> float:
    """Rows that all evaluations together go through."""
    if config.eval_strategy == "steps" and config.eval_steps:
        return held_out * (steps // config.eval_steps + 1)
    return held_out * (config.num_train_epochs if config.eval_strategy == "epoch" else 1)


def online_trial(config: OnlineConfig, rows: TrialRows) -> Trial:
    """One iteration over a part of its completions, on the longest prompts."""
    prompts, times = rows.records(config.prompts, load_prompts)
    part = _part_of_a_rollout(config)
    path, share = rows.longest(prompts, part // config.completions_per_prompt)
    iterations = config.iterations
    changes = {
        "prompts": (CHOSEN,),
        "eval_prompts": None,
        "alarm_judge": None,
        "total_episodes": part,
        "rollout_batch_size": part,
        "normalize_rewards": False,
        "value_warmup": 0,
    }
    validated = _prompts_validated(config, rows, len(prompts) * times)
    # Sampling and scoring, of which a validation consists, are about half of an iteration.
    units = (iterations * config.rollout_batch_size + 0.5 * validated) / part
    updates = iterations * config.num_ppo_epochs * config.num_mini_batches
    little = _without_extras(config, LITTLE | changes)
    return Trial(little, {CHOSEN: path}, units, updates, (1 + share) / 2)


def _part_of_a_rollout(config: OnlineConfig) -> int:
    """Completions that make two forwards of the update, in whole groups and mini-batches."""
    unit = lcm(config.num_mini_batches, config.completions_per_prompt)
    wanted = min(STEPS * config.per_device_train_batch_size, config.rollout_batch_size)
    return min(config.rollout_batch_size, unit * ceil(wanted / unit))


def _prompts_validated(config: OnlineConfig, rows: TrialRows, prompts: float) -> float:
    """Prompts that all validations together go through."""
    held_out = prompts * config.eval_fraction
    if config.eval_prompts:
        found, times = rows.records(config.eval_prompts, load_prompts)
        held_out = len(found) * times
    iterations, every = config.iterations, config.eval_steps
    return held_out * ((iterations // every if every else min(10, iterations)) + 1)
