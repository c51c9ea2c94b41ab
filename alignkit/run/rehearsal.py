"""The stages of a plan tried out before they run: what each takes on the longest rows it will meet.

Every stage is run by its own function in a scratch directory, in little: two optimizer steps, one
iteration, one batch, on the longest rows of its data and on what earlier stages left in their own
trial. Memory is the peak meanwhile; time is that of one step, times the steps there will be and the
length of a usual row over that of the longest. It stays an estimate.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil, lcm
from pathlib import Path
from typing import Any

from alignkit.errors import AlignkitError, RecipeError
from alignkit.recipe.settings import (
    DpoConfig,
    EvaluateConfig,
    GenerateConfig,
    OnlineConfig,
    RankConfig,
    RewardConfig,
    StageConfig,
    TrainingConfig,
    output_of,
)
from alignkit.run.estimate import (
    EFFICIENCY,
    PROCESS_BYTES,
    Count,
    Estimate,
    count,
    measured_rate,
    read_shape,
)
from alignkit.run.execute import SharedBackbone
from alignkit.run.plan import Plan, PlannedStage
from alignkit.stages import stage_function
from alignkit.store.artifacts import private_files
from alignkit.training.context import StageContext

MEASURED = "measured on the longest batch"
STEPS = 2
# A plan whose trial would take longer than this, by counting, is counted only.
MOST_SECONDS = 15.0
LOADED_BYTES_A_SECOND = 200 << 20
LARGE = 1024  # sides of a matrix whose product is arithmetic and nothing else
PASSES_OF_EVALUATION = 1 / 3
CHOSEN = "chosen"


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


def estimates(stages: Sequence[PlannedStage], plan: Plan) -> list[Estimate]:
    """What each stage will take: tried out where that is quick, else counted.

    Raises RecipeError when a trial runs out of memory.
    """
    shape = read_shape(plan.model.path)
    rate = measured_rate(shape.hidden, shape.intermediate)
    counts = [count(planned, plan) for planned in stages]
    if seconds_of_a_trial(counts, plan) > MOST_SECONDS:
        how = "counted, because trying it out would take a while"
        return [replace(each.at(rate), how=how) for each in counts]
    with tempfile.TemporaryDirectory() as scratch, private_files(), _quiet():
        rehearsal = Rehearsal(plan, Path(scratch))
        return [
            rehearsal.of(planned, each, rate) for planned, each in zip(stages, counts, strict=True)
        ]


def seconds_of_a_trial(counts: Sequence[Count], plan: Plan) -> float:
    """At least what trying these stages out takes: loading, and the arithmetic at full speed."""
    weights = sum(file.stat().st_size for file in plan.model.path.glob("*.safetensors"))
    operations = sum(STEPS * each.operations / each.units for each in counts)
    rate = measured_rate(LARGE, LARGE) / EFFICIENCY
    return weights / LOADED_BYTES_A_SECOND + operations / rate


@dataclass
class Rehearsal:
    """The trials of one plan: what each left for those after it, and rows it will really give."""

    plan: Plan
    scratch: Path
    left: dict[str, Path] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backbone = SharedBackbone(self.plan)

    def of(self, planned: PlannedStage, counted: Count, rate: float) -> Estimate:
        """What a stage will take; a stage that cannot be tried is counted, with the reason."""
        if planned.action == "reuse":
            return counted.at(rate)
        from alignkit.training.batching import is_out_of_memory

        try:
            trial = TRIALS[planned.stage.kind](planned, self)
            return self._try(planned, trial)
        except AlignkitError as error:
            reason = error.message.splitlines()[0]
            return replace(counted.at(rate), how=f"counted, for a trial failed: {reason:.120}")
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise RecipeError(
                f"stage {planned.name!r} does not fit: its longest batch ran out of memory",
                hint="Lower per_device_train_batch_size or max_length, or set "
                "gradient_checkpointing: true",
            ) from None

    def _try(self, planned: PlannedStage, trial: Trial) -> Estimate:
        directory = self.scratch / planned.name
        directory.mkdir()
        clock = Clock()
        context = ClockedContext(
            directory=directory,
            seed=planned.seed,
            inputs={**self.inputs(planned), **trial.files},
            load_backbone=self.backbone.load,
            say=lambda _: None,
            clock=clock,
        )
        run = stage_function(planned.stage.kind)
        peak = _forget_peak()
        began = time.perf_counter()
        run(trial.config, context)
        spent = time.perf_counter() - began
        self.left[planned.name] = directory
        each = spent if trial.as_a_whole else clock.seconds_a_unit(trial.warm_up)
        return Estimate(peak(), each * trial.units * trial.share, trial.steps, MEASURED)

    def inputs(self, planned: PlannedStage) -> dict[str, Path]:
        """Where the values of the settings lie, in scratch when the real thing is not there yet."""
        return {value: self.path_of(value, planned) for value in planned.inputs}

    def path_of(self, value: str, planned: PlannedStage) -> Path:
        """The file or directory that a value stands for, made or generated where it is missing."""
        entry = planned.inputs[value]
        kinds = {stage.name: stage.stage.kind for stage in self.plan.stages}
        output = output_of(value, kinds)
        if output and output[0] in self.left:
            return self.left[output[0]] / output[1]
        if entry.embedded and not entry.path.exists():
            from alignkit.tiny.data import write

            path = self.scratch / entry.path.name
            return path if path.exists() else write(entry.embedded, self.plan.recipe.seed, path)
        return self.left.get(value, entry.path)

    def records(
        self, values: Sequence[str], planned: PlannedStage, load: Callable[..., Any]
    ) -> tuple[list[Any], float]:
        """Records of data values, and how many there will be of each that is here."""
        here: list[Any] = []
        expected = 0.0
        for value in values:
            found = load(self.path_of(value, planned)).records
            stage = value.partition(".")[0]
            expected += len(found) * self.rows.get(stage, 1) / self.rows.get(f"{stage} here", 1)
            here += found
        return here, expected / max(len(here), 1)

    def longest(self, records: Sequence[Any], number: int, name: str) -> tuple[Path, float]:
        """A file of the longest records, and the mean length of all over that of those."""
        from alignkit.files.write import write_records

        sizes = [len(record.model_dump_json()) for record in records]
        order = sorted(range(len(records)), key=sizes.__getitem__, reverse=True)[:number]
        path = self.scratch / f"{name}-{CHOSEN}.jsonl"
        write_records(path, [records[index] for index in order])
        mean = sum(sizes) / len(sizes)
        return path, mean / (sum(sizes[index] for index in order) / len(order))


# --- trials by kind ------------------------------------------------------------------------------


def training_trial(planned: PlannedStage, rehearsal: Rehearsal) -> Trial:
    """Two optimizer steps of one forward each, on the longest rows."""
    config: Any = planned.stage.config
    records, times = rehearsal.records(config.data, planned, _loader(config))
    kept = 1 - config.eval_fraction if not config.eval_data else 1
    rows = len(records) * times * kept
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    steps = config.max_steps
    if steps <= 0:
        steps = max(1, round(ceil(rows / per_step) * config.num_train_epochs))
    number = STEPS * config.per_device_train_batch_size
    path, share = rehearsal.longest(records, number, planned.name)
    changes = {name: value for name, value in LITTLE.items() if name in type(config).model_fields}
    evaluated = _rows_evaluated(config, len(records) * times - rows, steps)
    forwards = steps * config.gradient_accumulation_steps
    forwards += PASSES_OF_EVALUATION * evaluated / config.per_device_train_batch_size
    little = config.model_copy(update={**changes, "data": (CHOSEN,)})
    return Trial(little, {CHOSEN: path}, forwards, steps, share, warm_up=STEPS - 1)


# What a trial leaves out: evaluations, saves, trackers, gates, caches.
LITTLE: dict[str, Any] = {
    "eval_data": None,
    "eval_fraction": 0.0,
    "eval_strategy": "no",
    "eval_steps": None,
    "early_stopping_patience": None,
    "max_steps": STEPS,
    "gradient_accumulation_steps": 1,
    "warmup_steps": 0,
    "save_steps": 1 << 30,
    "report_to": ("none",),
    "cache_reference": "never",
    "gate": {},
}


def _loader(config: TrainingConfig) -> Callable[..., Any]:
    from alignkit.data import read

    options: dict[str, Any] = {"format": config.format, "on_bad_row": config.on_bad_row}
    load: Callable[..., Any] = read.load_demonstrations
    if isinstance(config, RewardConfig):
        load = read.load_rankings
    if isinstance(config, DpoConfig):
        load = read.load_preferences
        options |= {"pairs": config.pairs, "weight": config.weight}
    return lambda path: load(path, **options)


def _rows_evaluated(config: TrainingConfig, held_out: float, steps: int) -> float:
    """Rows that all evaluations together go through."""
    if config.eval_strategy == "steps" and config.eval_steps:
        return held_out * (steps // config.eval_steps + 1)
    return held_out * (config.num_train_epochs if config.eval_strategy == "epoch" else 1)


def online_trial(planned: PlannedStage, rehearsal: Rehearsal) -> Trial:
    """One iteration over a part of its completions, on the longest prompts."""
    config: Any = planned.stage.config
    prompts, times = rehearsal.records(config.prompts, planned, _load_prompts)
    part = _part_of_a_rollout(config)
    path, share = rehearsal.longest(prompts, part // getattr(config, "rloo_k", 1), planned.name)
    iterations = config.iterations
    little = config.model_copy(
        update={
            "prompts": (CHOSEN,),
            "eval_prompts": None,
            "eval_fraction": 0.0,
            "eval_steps": None,
            "alarm_judge": None,
            "total_episodes": part,
            "rollout_batch_size": part,
            "normalize_rewards": False,
            "warmup_steps": 0,
            "save_steps": 1 << 30,
            "report_to": ("none",),
            "gate": {},
            **({"value_warmup": 0} if hasattr(config, "value_warmup") else {}),
        }
    )
    validated = _prompts_validated(config, planned, rehearsal, iterations, len(prompts) * times)
    # Sampling and scoring, of which a validation consists, are about half of an iteration.
    units = (iterations * config.rollout_batch_size + 0.5 * validated) / part
    updates = iterations * config.num_ppo_epochs * config.num_mini_batches
    return Trial(little, {CHOSEN: path}, units, updates, (1 + share) / 2)


def _part_of_a_rollout(config: Any) -> int:
    """Completions that make two forwards of the update, in whole groups and mini-batches."""
    unit = lcm(config.num_mini_batches, getattr(config, "rloo_k", 1))
    wanted = min(STEPS * config.per_device_train_batch_size, config.rollout_batch_size)
    return min(config.rollout_batch_size, unit * ceil(wanted / unit))


def _prompts_validated(
    config: OnlineConfig,
    planned: PlannedStage,
    rehearsal: Rehearsal,
    iterations: int,
    prompts: float,
) -> float:
    """Prompts that all validations together go through."""
    held_out = prompts * config.eval_fraction
    if config.eval_prompts:
        found, times = rehearsal.records(config.eval_prompts, planned, _load_prompts)
        held_out = len(found) * times
    validations = iterations // config.eval_steps if config.eval_steps else min(10, iterations)
    return held_out * (validations + 1)


def generate_trial(planned: PlannedStage, rehearsal: Rehearsal) -> Trial:
    """One batch of completions, of the longest prompts."""
    config = planned.stage.config
    if not isinstance(config, GenerateConfig):
        raise TypeError(planned.stage.kind)
    prompts, times = rehearsal.records(config.prompts, planned, _load_prompts)
    number = max(1, config.batch_size // config.n)
    path, _ = rehearsal.longest(prompts[: config.limit], number, planned.name)
    total = round(len(prompts) * times)
    total = min(total, config.limit or total)
    rehearsal.rows |= {planned.name: total, f"{planned.name} here": min(number, len(prompts))}
    little = config.model_copy(update={"prompts": (CHOSEN,), "limit": None, "gate": {}})
    return Trial(little, {CHOSEN: path}, total * config.n)


def rank_trial(planned: PlannedStage, rehearsal: Rehearsal) -> Trial:
    """All candidates that are here, ranked; what earlier stages will add costs in proportion."""
    from alignkit.data.read import load_candidates

    config = planned.stage.config
    if not isinstance(config, RankConfig):
        raise TypeError(planned.stage.kind)
    found, times = rehearsal.records(config.candidates, planned, load_candidates)
    rehearsal.rows |= {
        planned.name: round(len(found) * times),
        f"{planned.name} here": len(found),
    }
    return Trial(config.model_copy(update={"gate": {}}), {}, times, as_a_whole=True)


def split_trial(planned: PlannedStage, rehearsal: Rehearsal) -> Trial:
    """The split itself: it costs next to nothing."""
    del rehearsal
    return Trial(planned.stage.config, {}, 1, as_a_whole=True)


def evaluate_trial(planned: PlannedStage, rehearsal: Rehearsal) -> Trial:
    """One batch of the baseline's replies to the longest prompts, judged."""
    config = planned.stage.config
    if not isinstance(config, EvaluateConfig):
        raise TypeError(planned.stage.kind)
    prompts, times = rehearsal.records(config.prompts, planned, _load_prompts)
    path, _ = rehearsal.longest(prompts[: config.limit], config.batch_size, planned.name)
    total = len(prompts) * times
    total = min(total, config.limit or total)
    sampled = sum(config.n_samples if warm > 0 else 1 for warm in config.temperatures)
    policies = len({config.baseline, *config.policies})
    little = config.model_copy(
        update={
            "prompts": (CHOSEN,),
            "policies": (config.baseline,),
            "temperatures": config.temperatures[:1],
            "n_samples": 1,
            "limit": None,
            "gate": {},
        }
    )
    trials = total * sampled * policies / min(config.batch_size, len(prompts))
    return Trial(little, {CHOSEN: path}, trials, as_a_whole=True)


def _load_prompts(path: Path) -> Any:
    from alignkit.data.read import load_prompts

    return load_prompts(path)


TRIALS: dict[str, Callable[[PlannedStage, Rehearsal], Trial]] = {
    "sft": training_trial,
    "reward": training_trial,
    "dpo": training_trial,
    "ppo": online_trial,
    "rloo": online_trial,
    "generate": generate_trial,
    "rank": rank_trial,
    "split": split_trial,
    "evaluate": evaluate_trial,
}


# --- measuring -----------------------------------------------------------------------------------


@dataclass
class Clock:
    """When a stage told its progress: (moment, units done by then)."""

    told: list[tuple[float, int]] = field(default_factory=list)

    def advance(self, units: int) -> None:
        """So many units more are done now."""
        done = self.told[-1][1] if self.told else 0
        self.told.append((time.perf_counter(), done + units))

    def seconds_a_unit(self, warm_up: int) -> float:
        """From the moment so many units were done to the last one told."""
        began = next(told for told in self.told if told[1] >= warm_up)
        ended = self.told[-1]
        return (ended[0] - began[0]) / max(ended[1] - began[1], 1)


@dataclass(frozen=True)
class ClockedContext(StageContext):
    """A stage's surroundings that note its progress instead of showing it."""

    clock: Clock = field(default_factory=Clock)

    @contextmanager
    def progress(self, total: int, label: str) -> Iterator[Callable[[int], None]]:
        """Note the moment of every unit done."""
        del total, label
        self.clock.advance(0)
        yield self.clock.advance


def _forget_peak() -> Callable[[], float]:
    """Begin to measure memory; what comes back tells the peak since."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return lambda: float(torch.cuda.max_memory_reserved())
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return lambda: float(PROCESS_BYTES)
    return _peak_of_this_process


def _peak_of_this_process() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return float(int(peak.split()[1]) << 10)


@contextmanager
def _quiet() -> Iterator[None]:
    """A trial tells nothing."""
    before = os.environ.get("ALIGNKIT_QUIET")
    os.environ["ALIGNKIT_QUIET"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["ALIGNKIT_QUIET"]
        else:
            os.environ["ALIGNKIT_QUIET"] = before
