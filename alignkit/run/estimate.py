"""Memory and time a stage will take, counted before it runs: an estimate, and said to be one.

Weights are counted from the headers of the model's files, rows from the data; what a step costs
comes from the usual counts of multiplications and of kept activations. `alignkit.run.rehearsal`
tries the stages out instead, where that does not take long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from alignkit.errors import RecipeError
from alignkit.model.files import read_json, stored_tensors
from alignkit.recipe.settings import EvaluateConfig, GenerateConfig, OnlineConfig, TrainingConfig
from alignkit.run.plan import Plan, PlannedStage
from alignkit.store.artifacts import readable

# Bytes a frozen weight takes; nf4 with double quantization stores 4.127 bits.
WEIGHT_BYTES = {"nf4": 0.516, "int8": 1.0}
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# How checkpoints store what half_embedding.py keeps as it is stored.
HALF_DTYPES = ("BF16", "F16")
# A trained weight in fp32: itself, its gradient, two moments of AdamW.
TRAINED_BYTES = 16
# Activations kept for the backward pass, in numbers per token, layer and hidden unit: inputs and
# outputs of the seven projections with their adapters, norms and attention.
KEPT_PER_UNIT = 34
PROCESS_BYTES = 700 << 20
CHARACTERS_PER_TOKEN = 4.0
MEASURE_SECONDS = 0.2
# Of the rate of one large product, what a training step with dequantization and adapters reaches.
EFFICIENCY = 0.35


@dataclass(frozen=True)
class Shape:
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
class Estimate:
    """Bytes at the peak, seconds in all, optimizer steps, and how all that was found."""

    memory: float
    seconds: float
    steps: int
    how: str = "counted"

    def as_row(self) -> dict[str, Any]:
        """For the plan: numbers, and a line for people."""
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
    """What a stage costs as counted: bytes at the peak, operations in all, optimizer steps.

    `units` are what its operations are spread over: steps, iterations or batches.
    """

    memory: float
    operations: float
    steps: int
    units: float = 1

    def at(self, rate: float) -> Estimate:
        """With `rate` operations a second."""
        return Estimate(self.memory, self.operations / rate, self.steps)


def measured_rate(hidden: int, intermediate: int) -> float:
    """Operations a second that this machine does in training with matrices of these sizes."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    left = torch.randn(512, hidden, device=device)
    right = torch.randn(hidden, intermediate, device=device)
    done, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < MEASURE_SECONDS:
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        done += 2 * 512 * hidden * intermediate
    return EFFICIENCY * done / spent


def count(planned: PlannedStage, plan: Plan) -> Count:
    """Peak memory and arithmetic of a stage."""
    shape = read_shape(plan.model.path)
    backbone = backbone_bytes(shape, plan)
    config = planned.stage.config
    if planned.action == "reuse":
        return Count(0, 0, 0)
    if isinstance(config, TrainingConfig):
        return _training(config, planned, shape, backbone, plan)
    if isinstance(config, OnlineConfig):
        return _online(config, shape, backbone, plan)
    if isinstance(config, GenerateConfig | EvaluateConfig):
        return _sampling(config, planned, shape, backbone)
    return Count(PROCESS_BYTES + backbone, 0, 0)


def refuse_what_cannot_fit(planned: PlannedStage, plan: Plan) -> None:
    """Raise RecipeError when even the weights alone are more than this machine has."""
    shape = read_shape(plan.model.path)
    needed = backbone_bytes(shape, plan) + adapter_weights(shape, plan) * TRAINED_BYTES
    there = total_memory()
    if needed > there:
        raise RecipeError(
            f"stage {planned.name!r} needs at least {readable(needed)} for weights alone, this "
            f"machine has {readable(there)}",
            hint="Take quantization nf4, a smaller lora_r, or a smaller model",
        )


def read_shape(model: Path) -> Shape:
    """Sizes of a model from its config and the headers of its weights, without loading any."""
    config = read_json(model / "config.json")
    config = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    quantizable = other = half = 0
    for name, tensor in stored_tensors(model).items():
        is_matrix, is_end = len(tensor.shape) == 2, "embed" in name or "lm_head" in name
        if is_matrix and not is_end:
            quantizable += prod(tensor.shape)
            continue
        other += prod(tensor.shape)
        half += prod(tensor.shape) if is_matrix and tensor.dtype in HALF_DTYPES else 0
    hidden = _size(config, "hidden_size", "n_embd")
    return Shape(
        hidden=hidden,
        layers=_size(config, "num_hidden_layers", "n_layer"),
        intermediate=_size(config, "intermediate_size") or 4 * hidden,
        vocabulary=_size(config, "vocab_size"),
        quantizable=quantizable,
        other=other,
        half=half,
    )


def _size(config: Mapping[str, Any], *names: str) -> int:
    """The first of these entries that is a whole number; 0 when none is."""
    return next((config[name] for name in names if type(config.get(name)) is int), 0)


def backbone_bytes(shape: Shape, plan: Plan) -> float:
    """What the frozen weights take: layers as quantized, ends perhaps in 16 bits, the rest full."""
    full = DTYPE_BYTES.get(plan.backbone.dtype, 4)
    stored = WEIGHT_BYTES.get(plan.backbone.quantization, full)
    ends = min(full, 2)
    return shape.quantizable * stored + (shape.other - shape.half) * full + shape.half * ends


def adapter_weights(shape: Shape, plan: Plan) -> int:
    """Weights of one adapter on all linear layers: r times inputs and outputs of each."""
    sides = 8 * shape.hidden + 3 * (shape.hidden + shape.intermediate)
    return plan.backbone.lora_r * sides * shape.layers


def total_memory() -> int:
    """Bytes of the machine's memory, or the limit this process is held to."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        return min(total, int(text))
    return total


def _training(
    config: TrainingConfig, planned: PlannedStage, shape: Shape, backbone: float, plan: Plan
) -> Count:
    rows, longest, tokens = _rows(config, planned)
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    steps = config.max_steps
    if steps <= 0:
        steps = max(1, round(rows * config.num_train_epochs / per_step)) if rows else 0
    in_batch = config.per_device_train_batch_size * min(longest, config.max_length)
    memory = (
        PROCESS_BYTES
        + backbone
        + adapter_weights(shape, plan) * TRAINED_BYTES
        + _activations(in_batch, shape, config.gradient_checkpointing)
    )
    # Forward 2 operations a weight and token, backward to the adapters 2 more and the recompute.
    passes = 6 if config.gradient_checkpointing else 4
    operations = passes * shape.parameters * tokens * steps * per_step / max(rows, 1)
    return Count(memory, operations, steps, max(steps, 1))


def _online(config: OnlineConfig, shape: Shape, backbone: float, plan: Plan) -> Count:
    length = min(config.max_length, 2 * config.response_length)
    in_batch = config.per_device_train_batch_size * length
    memory = (
        PROCESS_BYTES
        + backbone
        + 2 * adapter_weights(shape, plan) * TRAINED_BYTES
        + _activations(in_batch, shape, config.gradient_checkpointing)
    )
    iterations = config.iterations
    steps = iterations * config.num_ppo_epochs * config.num_mini_batches
    # Sampling and four scoring passes at 2, each update at 4 for the policy and as much for values.
    per_token = 10 + 8 * config.num_ppo_epochs
    operations = per_token * shape.parameters * config.total_episodes * length
    return Count(memory, float(operations), steps, iterations)


def _sampling(
    config: GenerateConfig | EvaluateConfig, planned: PlannedStage, shape: Shape, backbone: float
) -> Count:
    rows = sum(_lines(planned.inputs[source].path) for source in config.prompts)
    rows = min(rows, config.limit) if rows and config.limit else rows or config.limit or 0
    if isinstance(config, GenerateConfig):
        completions = rows * config.n
    else:
        sampled = sum(config.n_samples if warm > 0 else 1 for warm in config.temperatures)
        completions = rows * sampled * len({config.baseline, *config.policies})
    # As many tokens are read as are written, and those that are written are read again by judges.
    operations = 2 * shape.parameters * completions * 3 * config.max_new_tokens
    memory = PROCESS_BYTES + backbone + 4 * config.batch_size * shape.vocabulary
    return Count(memory, float(operations), 0, max(completions / config.batch_size, 1))


def _lines(path: Path) -> int:
    if not path.is_file():
        return 0  # an earlier stage or a generator has still to write it
    with path.open("rb") as stream:
        return sum(1 for _ in stream)


def _activations(tokens: float, shape: Shape, checkpointing: bool) -> float:
    """Bytes kept for the backward pass, in fp32, logits of the completion among them."""
    kept = 2 if checkpointing else KEPT_PER_UNIT
    layers = tokens * shape.layers * shape.hidden * kept * 4
    one_layer = tokens * shape.hidden * KEPT_PER_UNIT * 4 if checkpointing else 0
    return layers + one_layer + tokens * shape.vocabulary * 4


def _rows(config: TrainingConfig, planned: PlannedStage) -> tuple[int, float, float]:
    """Rows, tokens of the longest and tokens in all, taking four bytes for a token."""
    rows, longest, total = 0, 0.0, 0.0
    for source in config.data:
        path = planned.inputs[source].path
        if not path.is_file():
            continue  # an earlier stage or a generator has still to write it
        with path.open("rb") as stream:
            for line in stream:
                rows += 1
                longest = max(longest, len(line) / CHARACTERS_PER_TOKEN)
                total += min(len(line) / CHARACTERS_PER_TOKEN, config.max_length)
    return rows, longest or config.max_length, total


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(seconds, 1):.0f} s"
