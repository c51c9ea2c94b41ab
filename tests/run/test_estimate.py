"""Estimates: weights counted from headers, more of everything for more work, none when reused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.recipe.file import read_recipe
from alignkit.run.estimate import backbone_bytes, count, read_shape, total_memory
from alignkit.run.plan import Plan, make_plan
from alignkit.stages.cost import Count, Estimate


def plan_of(place: Path, model: Path, stage: str, quantization: str = "nf4") -> Plan:
    (place / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 64)
    (place / "r.yaml").write_text(
        f"name: x\nbackbone: {{model_name_or_path: {model}, quantization: {quantization}}}\n"
        f"stages:\n  - {stage}\n"
    )
    return make_plan(read_recipe(place / "r.yaml"), place / "runs")


def estimated(place: Path, model: Path, settings: str, quantization: str = "nf4") -> Count:
    plan = plan_of(place, model, f"sft: {{data: rows.jsonl, {settings}}}", quantization)
    return count(plan.stages[0], plan)


def test_weights_are_counted_from_the_files(tiny_model: Callable[[str], Path]) -> None:
    """Two layers of hidden 64, kv 32, intermediate 128: q, o, k, v, gate, up, down, two norms."""
    shape = read_shape(tiny_model("llama"))
    layer = 2 * 64 * 64 + 2 * 64 * 64 + 3 * 64 * 128
    assert shape.layers == 2
    assert shape.quantizable <= 2 * layer
    assert shape.quantizable >= 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert shape.other == 320 * 64 + 5 * 64


@pytest.mark.parametrize(("dtype", "ends"), [("bfloat16", 2), ("float32", 4)])
def test_an_embedding_stored_in_half_counts_half(
    tiny_model: Callable[[str], Path], tmp_path: Path, dtype: str, ends: int
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model("llama")).save_pretrained(tmp_path / "model")
    plan = plan_of(tmp_path, tmp_path / "model", "sft: {data: rows.jsonl}")
    shape = read_shape(tmp_path / "model")
    norms = 5 * 64
    counted = shape.quantizable * 0.516 + 320 * 64 * ends + norms * 4
    assert backbone_bytes(shape, plan) == pytest.approx(counted)


def test_a_folder_counts_the_rows_of_all_its_files(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(2):
        rows = '{"prompt": "a", "completion": "b"}\n' * 64
        (folder / f"train-{number:05d}-of-00002.jsonl").write_text(rows)
    plan = plan_of(
        tmp_path, tiny_model("llama"), "sft: {data: folder, per_device_train_batch_size: 8}"
    )
    assert count(plan.stages[0], plan).steps == 2 * 64 / 8


def test_steps_come_from_rows_batch_and_epochs(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    model = tiny_model("llama")
    assert estimated(tmp_path, model, "per_device_train_batch_size: 8").steps == 8
    assert estimated(tmp_path, model, "num_train_epochs: 3.0").steps == 24
    assert estimated(tmp_path, model, "gradient_accumulation_steps: 4").steps == 2
    assert estimated(tmp_path, model, "max_steps: 5").steps == 5


def test_what_costs_memory_is_estimated_to(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    model = tiny_model("llama")
    small = estimated(tmp_path, model, "per_device_train_batch_size: 2").memory
    large = estimated(tmp_path, model, "per_device_train_batch_size: 64").memory
    saving = estimated(
        tmp_path, model, "per_device_train_batch_size: 64, gradient_checkpointing: true"
    ).memory
    full = estimated(tmp_path, model, "per_device_train_batch_size: 2", "none").memory
    assert small < saving < large
    assert small < full


def test_a_line_for_people_says_that_it_is_an_estimate_and_how_it_was_made() -> None:
    row = Count(memory=2**30, operations=6e12, steps=10).at(rate=1e11).as_row()
    assert row["estimate"] == "estimate: memory 1.0 GiB, 10 steps, time 60 s; counted"
    assert row["seconds"] == 60
    assert row["how"] == "counted"
    assert Count(0, 0, 0).at(rate=1.0).as_row()["estimate"] == "nothing to do"


def test_sampling_is_counted_by_completions(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    model = tiny_model("llama")
    plan = plan_of(tmp_path, model, "generate: {prompts: rows.jsonl, n: 4, batch_size: 32}")
    counted = count(plan.stages[0], plan)
    assert counted.units == 64 * 4 / 32
    assert counted.operations == 2 * read_shape(model).parameters * 64 * 4 * 3 * 128


def test_the_memory_of_this_machine_is_known() -> None:
    assert total_memory() > 1 << 28


@pytest.mark.parametrize(("seconds", "shown"), [(0.1, "1 s"), (119, "119 s"), (600, "10.0 min")])
def test_times_are_told_in_fitting_units(seconds: float, shown: str) -> None:
    line = Estimate(1, seconds, 0).as_row()["estimate"]
    assert line.endswith(f"time {shown}; counted")
