"""Try out the stages of a plan before they run, to estimate their memory and time.

Each stage runs its own function on a small scale in a scratch directory: two optimizer steps, one
iteration or one batch, on the longest rows of its data and on the results of earlier trials. Memory
is the peak of the trial; time is that of one step, times the number of steps, scaled from the
longest rows to the mean. It remains an estimate.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignkit.errors import AlignkitError, DataError, RecipeError
from alignkit.recipe.settings import output_of
from alignkit.run.estimate import EFFICIENCY, count, measured_rate, read_shape
from alignkit.run.execute import SharedBackbone
from alignkit.run.plan import Plan, PlannedStage
from alignkit.stages import stage_module
from alignkit.stages.cost import PROCESS_BYTES, Count, Estimate
from alignkit.stages.trial import CHOSEN, STEPS, Trial
from alignkit.store.artifacts import private_files
from alignkit.training.context import StageContext

MEASURED = "measured on the longest batch"
# A plan whose trials would take longer than this, by the count, is not tried out.
MOST_SECONDS = 15.0
LOADED_BYTES_A_SECOND = 200 << 20
LARGE = 1024  # side of a matrix large enough that its product is limited by arithmetic


def estimates(stages: Sequence[PlannedStage], plan: Plan) -> list[Estimate]:
    """Estimate each stage: try it out where that is quick, else count.

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
    """A lower bound of the time of all trials: loading, and the arithmetic at full speed."""
    weights = sum(file.stat().st_size for file in plan.model.path.glob("*.safetensors"))
    operations = sum(STEPS * each.operations / each.units for each in counts)
    rate = measured_rate(LARGE, LARGE) / EFFICIENCY
    return weights / LOADED_BYTES_A_SECOND + operations / rate


@dataclass
class Rehearsal:
    """The trials of one plan.

    `left`: the directory of each trial, by stage. `rows`: rows that a stage will go through, and
    rows that its trial went through.
    """

    plan: Plan
    scratch: Path
    left: dict[str, Path] = field(default_factory=dict)
    rows: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backbone = SharedBackbone(self.plan)

    def of(self, planned: PlannedStage, counted: Count, rate: float) -> Estimate:
        """Estimate a stage; if its trial fails, count it and give the reason."""
        if planned.action == "reuse":
            return counted.at(rate)
        from alignkit.training.batching import is_out_of_memory

        try:
            stage = stage_module(planned.stage.kind)
            return self._try(planned, stage.trial(planned.stage.config, StageRows(self, planned)))
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
        run = stage_module(planned.stage.kind).run
        peak = _forget_peak()
        began = time.perf_counter()
        run(trial.config, context)
        spent = time.perf_counter() - began
        self.left[planned.name] = directory
        each = spent if trial.as_a_whole else clock.seconds_a_unit(trial.warm_up)
        return Estimate(peak(), each * trial.units * trial.share, trial.steps, MEASURED)

    def inputs(self, planned: PlannedStage) -> dict[str, Path]:
        """Paths of the values of the settings, in scratch while the real ones do not exist."""
        return {value: self.path_of(value, planned) for value in planned.inputs}

    def path_of(self, value: str, planned: PlannedStage) -> Path:
        """The file or directory that a value names: of a trial, or generated, if it is missing."""
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


@dataclass(frozen=True)
class StageRows:
    """The rows of one stage, as `alignkit.stages.trial.TrialRows` asks for them."""

    rehearsal: Rehearsal
    planned: PlannedStage

    def records(
        self, values: Sequence[str], load: Callable[[Path], Any]
    ) -> tuple[list[Any], float]:
        """Records of data values, and how many there will be for each that is here."""
        rows = self.rehearsal.rows
        here: list[Any] = []
        expected = 0.0
        for value in values:
            found = load(self.rehearsal.path_of(value, self.planned)).records
            will_be, are = rows.get(value.partition(".")[0], (1, 1))
            expected += len(found) * will_be / are
            here += found
        if not here:
            raise DataError("no row that this stage can use", where=", ".join(values))
        return here, expected / len(here)

    def longest(self, records: Sequence[Any], number: int) -> tuple[Path, float]:
        """A file of the longest records, and the mean length of all over that of those."""
        from alignkit.files.write import write_records

        sizes = [len(record.model_dump_json()) for record in records]
        order = sorted(range(len(records)), key=sizes.__getitem__, reverse=True)[:number]
        path = self.rehearsal.scratch / f"{self.planned.name}-{CHOSEN}.jsonl"
        write_records(path, [records[index] for index in order])
        mean = sum(sizes) / len(sizes)
        return path, mean / (sum(sizes[index] for index in order) / len(order))

    def leaves(self, rows: int, here: int) -> None:
        """Note how many rows the stage will go through, and how many its trial goes through."""
        self.rehearsal.rows[self.planned.name] = (rows, here)


# --- measuring -----------------------------------------------------------------------------------


@dataclass
class Clock:
    """Reports of progress: (seconds, units done so far)."""

    told: list[tuple[float, int]] = field(default_factory=list)

    def advance(self, units: int) -> None:
        """Record that more units are done now."""
        done = self.told[-1][1] if self.told else 0
        self.told.append((time.perf_counter(), done + units))

    def seconds_a_unit(self, warm_up: int) -> float:
        """Mean time per unit after the first `warm_up` units."""
        began = next(told for told in self.told if told[1] >= warm_up)
        ended = self.told[-1]
        return (ended[0] - began[0]) / max(ended[1] - began[1], 1)


@dataclass(frozen=True)
class ClockedContext(StageContext):
    """A stage's context that records progress instead of showing it."""

    clock: Clock = field(default_factory=Clock)

    @contextmanager
    def progress(self, total: int, label: str) -> Iterator[Callable[[int], None]]:
        """Record the time of every unit."""
        del total, label
        self.clock.advance(0)
        yield self.clock.advance


def _forget_peak() -> Callable[[], float]:
    """Start measuring memory; the function returned gives the peak since."""
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
    """Silence progress bars."""
    before = os.environ.get("ALIGNKIT_QUIET")
    os.environ["ALIGNKIT_QUIET"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["ALIGNKIT_QUIET"]
        else:
            os.environ["ALIGNKIT_QUIET"] = before
