"""Count what a stage costs before it runs: bytes at the peak, operations in all, optimizer steps.

A stage's `cost(config, base)` picks one of these counts. Rows are counted in the data files; what a
step costs comes from the usual counts of multiplications and of activations kept for the backward
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.files.shards import parts_of
from alignkit.recipe.settings import OnlineConfig, StageConfig, TrainingConfig
from alignkit.store.artifacts import readable

# A trained weight in fp32: itself, its gradient, two moments of AdamW.
TRAINED_BYTES = 16
# Activations kept for the backward pass, in numbers per token, layer and hidden unit: inputs and
# outputs of the seven projections with their adapters, norms and attention.
KEPT_PER_UNIT = 34
PROCESS_BYTES = 700 << 20
CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True)
class ModelShape:
    """What decides cost: sizes read from config.json, and numbers of weights from headers.

    `half` of the `other` weights are those of embedding and head, if they are stored in 16 bits.
    """

    hidden: int
    layers: int
    intermediate: int
    vocabulary: int
    quantizable: int
    other: int
    half: int

    @property
    def parameters(self) -> int:
        return self.quantizable + self.other


@dataclass(frozen=True)
class Base:
    """The model under a stage: its shape, bytes of its frozen weights, weights of one adapter.

    `file_of` gives the file that a data value of the settings stands for.
    """

    shape: ModelShape
    frozen_bytes: float
    adapter_weights: int
    file_of: Callable[[str], Path]

    def lines(self, sources: Sequence[str]) -> int:
        """Lines of these data files; 0 for one that an earlier stage has still to write."""
        return sum(1 for source in sources for _ in _lines(self.file_of(source)))


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak, seconds in all, optimizer steps, and how they were found."""

    memory: float
    seconds: float
    steps: int
    how: str = "counted"

    def as_row(self) -> dict[str, Any]:
        """Numbers for the plan, and a line for people."""
        parts = [f"memory {readable(self.memory)}"]
        if self.steps:
            parts.append(f"{self.steps:,} steps")
        if self.seconds:
            parts.append(f"time {_duration(self.seconds)}")
        line = f"estimate: {', '.join(parts)}; {self.how}" if self.memory else "nothing to do"
        return {
            "memory_bytes": round(self.memory),
            "seconds": round(self.seconds, 3),
            "steps": self.steps,
            "how": self.how,
            "estimate": line,
        }


@dataclass(frozen=True)
class Count:
    """Bytes at the peak, operations in all, optimizer steps.

    `units` are what the operations are spread over: steps, iterations or batches.
    """

    memory: float
    operations: float
    steps: int
    units: float = 1

    def at(self, rate: float) -> Estimate:
        """The estimate at `rate` operations per second."""
        return Estimate(self.memory, self.operations / rate, self.steps)


def loading_cost(config: StageConfig, base: Base) -> Count:
    """Count a stage that trains and samples nothing: the process and the frozen weights."""
    del config
    return Count(PROCESS_BYTES + base.frozen_bytes, 0, 0)


def training_cost(config: TrainingConfig, base: Base) -> Count:
    """Count training on a data set."""
    rows, longest, tokens = _rows(config, base)
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    steps = config.max_steps
    if steps <= 0:
        steps = max(1, round(rows * config.num_train_epochs / per_step)) if rows else 0
    in_batch = config.per_device_train_batch_size * min(longest, config.max_length)
    memory = (
        PROCESS_BYTES
        + base.frozen_bytes
        + base.adapter_weights * TRAINED_BYTES
        + _activations(in_batch, base.shape, config.gradient_checkpointing)
    )
    # Forward 2 operations a weight and token, backward to the adapters 2 more and the recompute.
    passes = 6 if config.gradient_checkpointing else 4
    operations = passes * base.shape.parameters * tokens * steps * per_step / max(rows, 1)
    return Count(memory, operations, steps, max(steps, 1))


def online_cost(config: OnlineConfig, base: Base) -> Count:
    """Count iterations of sampling, scoring and updating."""
    length = min(config.max_length, 2 * config.response_length)
    in_batch = config.per_device_train_batch_size * length
    memory = (
        PROCESS_BYTES
        + base.frozen_bytes
        + 2 * base.adapter_weights * TRAINED_BYTES
        + _activations(in_batch, base.shape, config.gradient_checkpointing)
    )
    iterations = config.iterations
    steps = iterations * config.num_ppo_epochs * config.num_mini_batches
    # Sampling and four scoring passes at 2, each update at 4 for the policy and as much for values.
    per_token = 10 + 8 * config.num_ppo_epochs
    operations = per_token * base.shape.parameters * config.total_episodes * length
    return Count(memory, float(operations), steps, iterations)


def sampling_cost(completions: int, max_new_tokens: int, batch_size: int, base: Base) -> Count:
    """Count sampling this many completions."""
    # As many tokens are read as are written, and those that are written are read again by judges.
    operations = 2 * base.shape.parameters * completions * 3 * max_new_tokens
    memory = PROCESS_BYTES + base.frozen_bytes + 4 * batch_size * base.shape.vocabulary
    return Count(memory, float(operations), 0, max(completions / batch_size, 1))


def prompts_sampled(sources: Sequence[str], limit: int | None, base: Base) -> int:
    """The prompts of these files, at most `limit`; the limit where no file is there yet."""
    rows = base.lines(sources)
    return min(rows, limit) if rows and limit else rows or limit or 0


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, or of the files of a folder that make up one set."""
    for name in parts_of(str(path)) or [str(path)]:
        part = Path(name)
        if part.is_file():  # an earlier stage or a generator may have still to write it
            with part.open("rb") as stream:
                yield from stream


def _activations(tokens: float, shape: ModelShape, checkpointing: bool) -> float:
    """Bytes kept for the backward pass, in fp32, logits of the completion among them."""
    kept = 2 if checkpointing else KEPT_PER_UNIT
    layers = tokens * shape.layers * shape.hidden * kept * 4
    one_layer = tokens * shape.hidden * KEPT_PER_UNIT * 4 if checkpointing else 0
    return layers + one_layer + tokens * shape.vocabulary * 4


def _rows(config: TrainingConfig, base: Base) -> tuple[int, float, float]:
    """Rows, tokens of the longest and tokens in all, at four bytes per token."""
    rows, longest, total = 0, 0.0, 0.0
    for source in config.data:
        for line in _lines(base.file_of(source)):
            rows += 1
            longest = max(longest, len(line) / CHARACTERS_PER_TOKEN)
            total += min(len(line) / CHARACTERS_PER_TOKEN, config.max_length)
    return rows, longest or config.max_length, total


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(seconds, 1):.0f} s"
