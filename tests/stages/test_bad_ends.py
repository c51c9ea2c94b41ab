"""Runs that end badly: exit with the step and the row, a whole checkpoint, and no result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alignkit.errors import TrainingFailed
from alignkit.model.backbone import POLICY
from alignkit.model.probe import check_outputs, write_probe
from alignkit.training.checkpoints import check_sealed, load_tree
from alignkit.training.outcome import outcome_lines
from tests.workshop import WORDS, Workshop

KINDS = ("sft", "reward", "dpo")
COMMON: dict[str, Any] = {"per_device_train_batch_size": 4, "logging_steps": 100}
POISON = "~"  # in the row that is bad, and nowhere else


def data(workshop: Workshop, kind: str, rows: int, poisoned: int | None = None) -> str:
    """A file of rows; one of them may hold the poison. Line numbers are those of the list."""
    texts = [f"{word} {n}" for n, word in zip(range(rows), WORDS * rows, strict=False)]
    if poisoned is not None:
        texts[poisoned] += POISON
    if kind == "sft":
        made = [{"prompt": f"Where is {t}?", "completion": f"{t} comes."} for t in texts]
    else:
        made = [{"prompt": f"Is {t} here?", "chosen": f"{t} is", "rejected": "No"} for t in texts]
    return workshop.write(f"{kind}-{rows}-{poisoned}.jsonl", made)


@contextmanager
def poisoned_embedding(workshop: Workshop, value: float) -> Iterator[None]:
    """The base computes `value` at each poisoned token, as an overflow inside it would."""
    (token,) = workshop.backbone.tokenizer(POISON, add_special_tokens=False)["input_ids"]

    def spoil(_module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill((inputs[0] == token)[..., None], value)

    hook = workshop.backbone.base.get_input_embeddings().register_forward_hook(spoil)
    try:
        yield
    finally:
        hook.remove()


def checkpoints(workshop: Workshop, name: str) -> list[Path]:
    return sorted((workshop.root / name / "checkpoints").glob("checkpoint-*"))


def is_whole(checkpoint: Path) -> bool:
    """Every byte as sealed, and every weight finite."""
    check_sealed(checkpoint)
    weights = load_tree(checkpoint / "trainable.safetensors")
    return all(bool(weight.isfinite().all()) for weight in weights.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_learning_rate_that_destroys_the_weights_is_no_success(
    workshop: Workshop, kind: str, steps: int
) -> None:
    """After one step weights are of 1e30: finite, and nobody has looked at a loss since."""
    source = data(workshop, kind, 12)
    settings = COMMON | {"max_steps": steps, "save_steps": 1, "learning_rate": 1e30}
    with pytest.raises(TrainingFailed, match=r"not finite after step 1. lower learning_rate"):
        workshop.run(kind, data=(source,), **settings)
    assert not (workshop.root / kind / "adapter").exists()
    assert checkpoints(workshop, kind) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_row_that_is_not_finite_is_named_with_its_step(
    workshop: Workshop, kind: str, value: float
) -> None:
    """Found in the step it arises in, whenever the next line of the log is due."""
    source = data(workshop, kind, 24, poisoned=17)
    settings = COMMON | {"save_steps": 1, "num_train_epochs": 1}
    if kind == "reward":
        settings["eval_fraction"] = 0.0
    with poisoned_embedding(workshop, value), pytest.raises(TrainingFailed) as caught:
        workshop.run(kind, data=(source,), **settings)
    error = caught.value
    assert error.where is not None and error.where.endswith(f"{Path(source).name}:18")
    assert error.exit_code == 1
    left = checkpoints(workshop, kind)
    step = int(error.message.rpartition(" ")[2])
    assert error.message == f"the loss of a row is not finite at step {step}"
    kept = f"checkpoint-{step - 1} is intact" if step > 1 else "no checkpoint was saved before it"
    assert kept in str(error)
    assert all(map(is_whole, left))
    assert [path.name for path in left] == [
        f"checkpoint-{n}" for n in range(max(1, step - 2), step)
    ]
    assert not (workshop.root / kind / "adapter").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_ends_badly_goes_on_from_its_last_good_checkpoint(
    workshop: Workshop, kind: str
) -> None:
    """And ends in the very weights of one that nothing ever happened to."""
    source = data(workshop, kind, 24, poisoned=17)
    settings = COMMON | {"save_steps": 1, "lr_scheduler_type": "constant", "data": (source,)}
    settings |= {"eval_fraction": 0.0}
    whole = workshop.run(kind, "whole", **settings)
    with poisoned_embedding(workshop, float("nan")), pytest.raises(TrainingFailed):
        workshop.run(kind, "broken", **settings)
    assert checkpoints(workshop, "broken")
    workshop.backbone.clear()  # as a new process has it
    resumed = workshop.run(kind, "broken", **settings)
    for name in ("loss_before", "loss_after", "train_loss", "weight_change"):
        assert resumed[name] == whole[name], name
    one, other = (
        (workshop.root / name / "adapter/adapter_model.safetensors").read_bytes()
        for name in ("whole", "broken")
    )
    assert one == other


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_that_is_not_finite_names_its_row(workshop: Workshop, kind: str) -> None:
    source, asked = data(workshop, kind, 8), data(workshop, kind, 6, poisoned=3)
    settings = COMMON | {"data": (source,), "eval_data": (asked,), "max_steps": 1}
    with poisoned_embedding(workshop, float("nan")), pytest.raises(TrainingFailed) as caught:
        workshop.run(kind, **settings)
    assert caught.value.where is not None
    assert caught.value.where.endswith(f"{Path(asked).name}:4")
    assert "is not finite" in caught.value.message
    assert not (workshop.root / kind / "adapter").exists()


def test_an_answer_that_is_not_finite_is_never_kept(workshop: Workshop) -> None:
    backbone = workshop.backbone
    backbone.new_adapter(POLICY, seed=1)
    check_outputs(backbone, POLICY)
    next(iter(backbone.parameters_of(POLICY).values())).data[0, 0] = float("nan")
    with pytest.raises(TrainingFailed, match="logits are not finite after step 7"):
        check_outputs(backbone, POLICY, after="step 7")


def test_a_run_that_hardly_moved_says_what_to_raise(workshop: Workshop) -> None:
    source = data(workshop, "sft", 12)
    workshop.run("sft", data=(source,), **COMMON, learning_rate=1e-9, max_steps=2)
    (told,) = [line for line in workshop.said if "hardly moved" in line]
    assert "in 2 steps: raise learning_rate" in told
    workshop.said.clear()
    metrics = workshop.run("sft", "more", data=(source,), **COMMON, learning_rate=0.01, max_steps=9)
    assert metrics["loss_after"] < 0.95 * metrics["loss_before"]
    assert metrics["weight_change"] > 0.01
    assert not any("hardly" in line for line in workshop.said)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (2.0, 1.99, "hardly moved"),
        (2.0, 2.01, "hardly moved"),
        (2.0, 2.1, "the loss rose: lower learning_rate"),
        (-0.5, -0.499, "hardly moved"),
        (-0.5, -0.6, None),
        (2.0, 1.9, None),
    ],
)
def test_what_is_said_of_a_loss(before: float, after: float, told: str | None) -> None:
    numbers = {"loss_before": before, "loss_after": after, "steps": 3}
    lines = outcome_lines(numbers | {"weight_change": 0.1, "moved_share": 1.0})
    assert [line.partition(" in 3")[0] for line in lines[1:]] == (
        [next(line for line in lines[1:] if told in line).partition(" in 3")[0]] if told else []
    )


def test_logged_numbers_are_json_that_anybody_reads(workshop: Workshop) -> None:
    source = data(workshop, "sft", 12)
    workshop.run("sft", data=(source,), **(COMMON | {"logging_steps": 1}))
    lines = (workshop.root / "sft" / "metrics.jsonl").read_text().splitlines()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert all(json.loads(line, parse_constant=refuse) for line in lines)


def test_a_probe_is_written_of_an_answer_alone(workshop: Workshop, tmp_path: Path) -> None:
    """An adapter that answers is probed as before."""
    workshop.backbone.new_adapter(POLICY, seed=1)
    write_probe(workshop.backbone, POLICY, tmp_path, None)
    assert json.loads((tmp_path / "probe.json").read_text())["score"] is None
