"""DPO: TRL's numbers, weights that move, a reference that stays, rows that are not lost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.data.chat import Encoder
from alignkit.errors import DataError, RecipeError, TrainingFailed
from alignkit.model.backbone import POLICY, REFERENCE
from alignkit.recipe.settings import DpoConfig
from alignkit.stages import dpo
from alignkit.training.losses import PairLogps, PairSettings
from alignkit.training.rows import PairRow
from alignkit.training.token_rows import TokenRows
from tests.workshop import Workshop, make_workshop

Rows = list[dict[str, Any]]


def pair_trainer(workshop: Workshop, rows: list[PairRow], **settings: Any) -> Any:
    config = DpoConfig(data=("unused",), **settings)
    context = workshop.context("trainer")
    workshop.backbone.new_adapter(POLICY, seed=1)
    for parameter in workshop.backbone.parameters_of(POLICY).values():
        parameter.data += 0.05 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(len(parameter.shape))
        )
    empty = TokenRows.write(PairRow, [], workshop.root)
    return dpo._trainer(config, context, TokenRows.write(PairRow, rows, workshop.root), empty)


def token_rows(workshop: Workshop, preferences: Rows) -> list[PairRow]:
    encode = Encoder(workshop.backbone.tokenizer)
    return [
        PairRow(
            "x:1",
            encode._tokenize(row["prompt"]),
            encode._tokenize(row["chosen"]),
            encode._tokenize(row["rejected"]),
        )
        for row in preferences
    ]


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "robust", "apo_zero"])
def test_the_loss_and_its_gradient_are_trls(
    tiny_model: Callable[[str], Path], tmp_path: Path, preferences: Rows, loss_type: str
) -> None:
    """Same model, same batch: ours against TRL's own loss over its own padded forward."""
    from trl import DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.utils import add_fused_lm_head

    workshop = make_workshop(tiny_model("llama"), tmp_path, quantization="none")
    rows = token_rows(workshop, preferences[:4])
    smoothing = 0.1 if loss_type == "robust" else 0.0
    trainer = pair_trainer(workshop, rows, loss_type=loss_type, label_smoothing=smoothing)
    with torch.no_grad():  # the reference is another model than the policy, or the test is empty
        for p in workshop.backbone.parameters_of(REFERENCE).values():
            p.mul_(0.5)
    batch = [trainer.train_dataset[i] for i in range(4)]
    trainer.model.train()

    def outcome(loss: torch.Tensor) -> tuple[float, torch.Tensor]:
        trainer.model.zero_grad()
        loss.backward()
        grads = [p.grad.flatten() for p in workshop.backbone.parameters_of(POLICY).values()]
        return loss.item(), torch.cat(grads)

    ours, our_gradient = outcome(trainer._compute_loss(trainer.model, dpo.collate(batch), False))
    base = trainer.model.get_base_model()
    add_fused_lm_head(base, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    padded = DataCollatorForPreference(pad_token_id=0)(
        [{f"{k}_ids": row[k] for k in ("prompt", "chosen", "rejected")} for row in batch]
    )
    theirs, their_gradient = outcome(
        DPOTrainer._compute_loss(trainer, trainer.model, padded, False)
    )
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert abs(ours - math.log(2)) > 1e-4
    gap = (our_gradient - their_gradient).norm() / their_gradient.norm()
    assert gap < 1e-4


def test_a_tiny_learning_rate_moves_every_weight_on_nf4(
    workshop: Workshop, preferences: Rows
) -> None:
    """TRL as it ships rounds adapters on a quantized base to bfloat16: 0.15 % of A moves."""
    rows = token_rows(workshop, preferences)
    trainer = pair_trainer(workshop, rows, learning_rate=1e-6, max_steps=40, logging_steps=40)
    before = {n: p.clone() for n, p in workshop.backbone.parameters_of(POLICY).items()}
    trainer.train()
    moved = total = 0
    for name, after in workshop.backbone.parameters_of(POLICY).items():
        if "lora_A" in name:
            assert after.dtype == torch.float32
            moved += int((after != before[name]).sum())
            total += after.numel()
    assert moved / total >= 0.99


def test_the_reference_does_not_move_and_the_policy_does(
    workshop: Workshop, preferences: Rows
) -> None:
    trainer = pair_trainer(workshop, token_rows(workshop, preferences), learning_rate=1e-3)
    reference = workshop.backbone.adapter_hash(REFERENCE)
    policy = workshop.backbone.adapter_hash(POLICY)
    assert reference == policy
    trainer.train()
    assert workshop.backbone.adapter_hash(REFERENCE) == reference
    assert workshop.backbone.adapter_hash(POLICY) != policy


def test_a_reference_that_is_not_the_start_is_found_before_the_first_step(
    workshop: Workshop, preferences: Rows
) -> None:
    rows = token_rows(workshop, preferences)
    trainer = pair_trainer(workshop, rows)
    dpo._check_start(trainer, rows[:4], trainer.config, True)
    for p in workshop.backbone.parameters_of(REFERENCE).values():
        p.data *= 1.5
    with pytest.raises(TrainingFailed, match="differs from its reference"):
        dpo._check_start(trainer, rows[:4], trainer.config, True)


def test_training_learns_the_preference_and_leaves_an_adapter(
    workshop: Workshop, preferences: Rows
) -> None:
    data = workshop.write("prefs.jsonl", preferences)
    metrics = workshop.run(
        "dpo", data=data, max_steps=30, learning_rate=3e-3, logging_steps=5, eval_fraction=0.25
    )
    lines = (workshop.root / "dpo/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]
    assert math.log(2) > losses[0] > losses[-1]
    assert metrics["eval_rewards/accuracies"] == 1.0
    assert metrics["eval_loss"] < 0.2
    assert metrics["moved_share"] > 0.99
    assert (workshop.root / "dpo/adapter/adapter_model.safetensors").is_file()
    assert workshop.backbone.adapters == []


def test_pairs_of_a_ranking_share_its_weight(workshop: Workshop) -> None:
    rows = [
        PairRow("x", [3], [4], [5], 1 / 3),
        PairRow("x", [3], [4], [6], 1 / 3),
        PairRow("x", [3], [5], [6], 1 / 3),
        PairRow("y", [3], [7], [8], 1.0),
    ]
    collate = dpo.collator(TokenRows.write(PairRow, rows, workshop.root))
    weights = collate([vars(row) for row in rows])["weights"]
    assert weights.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])


def test_a_weighted_pair_counts_as_often_as_its_weight_says() -> None:
    values = [torch.tensor(v) for v in ([-1.0, -9.0], [-2.0, -3.0], [-1.5, -8.0], [-2.0, -3.5])]
    pair = PairLogps(*values, torch.tensor([2, 2]), torch.tensor([2, 2]))
    config, settings = DpoConfig(data=("x",)), PairSettings()
    both = dpo.combined_losses(pair, torch.tensor([2.0, 0.0]), config, settings).mean()
    alone = dpo.PAIR_LOSSES["sigmoid"](pair, settings)[0]
    assert both.item() == pytest.approx(alone.item())


def test_losses_that_sort_the_batch_refuse_weights() -> None:
    with pytest.raises(RecipeError, match="loss_type aot sorts the batch"):
        dpo.check_losses(DpoConfig(data=("x",), loss_type="aot"), weighted=True)
    with pytest.raises(RecipeError, match="exo_pair needs label_smoothing"):
        dpo.check_losses(DpoConfig(data=("x",), loss_type="exo_pair"), weighted=False)


def test_overlong_rows_stop_the_run_by_name(workshop: Workshop, preferences: Rows) -> None:
    preferences[5]["chosen"] = "long " * 60
    data = workshop.write("prefs.jsonl", preferences)
    with pytest.raises(DataError, match=r"prefs.jsonl:6: 1 of 24 rows are longer than max_length"):
        workshop.run("dpo", data=data, max_length=200)
    workshop.said.clear()
    workshop.run("dpo", data=data, max_length=200, on_overlong="drop", max_steps=1)
    assert any("dropped, the first at" in line for line in workshop.said)


@pytest.mark.parametrize("loss_type", [["sigmoid", "sft"], ["hinge"], ["discopop"]])
def test_lists_of_losses_train(workshop: Workshop, preferences: Rows, loss_type: list[str]) -> None:
    data = workshop.write("prefs.jsonl", preferences)
    metrics = workshop.run("dpo", data=data, max_steps=2, loss_type=loss_type)
    assert metrics["steps"] == 2
    assert metrics["moved_share"] > 0


def test_adapter_dropout_takes_no_part(
    tiny_model: Callable[[str], Path], tmp_path: Path, preferences: Rows
) -> None:
    """Noise in the policy alone would be a difference to the reference that nobody trained."""
    ends = []
    for dropout in (0.0, 0.5):
        root = tmp_path / f"dropout-{dropout}"
        root.mkdir()
        workshop = make_workshop(tiny_model("llama"), root, lora_dropout=dropout)
        data = workshop.write("prefs.jsonl", preferences)
        settings = {"max_steps": 4, "learning_rate": 1e-2, "logging_steps": 1}
        workshop.run("dpo", data=data, **settings)
        lines = (root / "dpo/metrics.jsonl").read_text().splitlines()
        ends.append([row["loss"] for row in map(json.loads, lines) if "loss" in row])
    assert len(ends[0]) == 4
    assert ends[0] == pytest.approx(ends[1], abs=1e-6)


def test_drift_from_the_reference_by_hand() -> None:
    values = [torch.tensor([v]) for v in (-2.0, -7.0, -3.0, -5.0)]
    pair = PairLogps(*values, torch.tensor([4]), torch.tensor([2]))
    assert dpo.squared_log_ratio(pair).tolist() == [0.5, 2.0]
