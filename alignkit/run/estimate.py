"""Estimate the memory and time of a stage before it runs, by counting.

Weights are counted from the headers of the model's files; each stage counts its own work
(`alignkit.stages.cost`). `alignkit.run.rehearsal` tries the stages out instead, where that does not
take long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from alignkit.errors import RecipeError
from alignkit.model.files import read_json, stored_tensors
from alignkit.run.plan import Plan, PlannedStage
from alignkit.stages import stage_module
from alignkit.stages.cost import TRAINED_BYTES, Base, Count, ModelShape
from alignkit.store.artifacts import readable

# Bytes per frozen weight; nf4 with double quantization stores 4.127 bits.
WEIGHT_BYTES = {"nf4": 0.516, "int8": 1.0}
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Types in which half_embedding.py keeps embedding and head as stored.
HALF_DTYPES = ("BF16", "F16")
MEASURE_SECONDS = 0.2
# Share of the rate of one large product that a training step with dequantization reaches.
EFFICIENCY = 0.35


def measured_rate(hidden: int, intermediate: int) -> float:
    """Measure the operations per second of this machine, training with matrices of these sizes."""
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
    """Count the peak memory and the arithmetic of a stage."""
    if planned.action == "reuse":
        return Count(0, 0, 0)
    shape = read_shape(plan.model.path)
    base = Base(
        shape,
        backbone_bytes(shape, plan),
        adapter_weights(shape, plan),
        lambda value: planned.inputs[value].path,
    )
    counted: Count = stage_module(planned.stage.kind).cost(planned.stage.config, base)
    return counted


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


def read_shape(model: Path) -> ModelShape:
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
    return ModelShape(
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


def backbone_bytes(shape: ModelShape, plan: Plan) -> float:
    """Bytes of the frozen weights: layers quantized, embedding and head as stored, rest full."""
    full = DTYPE_BYTES.get(plan.backbone.dtype, 4)
    stored = WEIGHT_BYTES.get(plan.backbone.quantization, full)
    ends = min(full, 2)
    return shape.quantizable * stored + (shape.other - shape.half) * full + shape.half * ends


def adapter_weights(shape: ModelShape, plan: Plan) -> int:
    """Weights of one adapter on all linear layers: r times the inputs and outputs of each."""
    sides = 8 * shape.hidden + 3 * (shape.hidden + shape.intermediate)
    return plan.backbone.lora_r * sides * shape.layers


def total_memory() -> int:
    """Bytes of the machine's memory, or of this process's limit if that is lower."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        return min(total, int(text))
    return total
