"""SFT: what is trained, what is reported, and that the right tokens are learned."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from alignkit.data.chat import Encoder
from alignkit.data.records import Demonstration, Message, Source
from alignkit.errors import DataError
from alignkit.model.backbone import POLICY
from alignkit.recipe.settings import SftConfig
from alignkit.stages import sft
from alignkit.training.rows import SftRow, sft_rows
from alignkit.training.token_rows import TokenRows
from tests.workshop import Workshop

Rows = list[dict[str, Any]]


def sft_trainer(workshop: Workshop, rows: list[SftRow], **settings: Any) -> Any:
    workshop.backbone.new_adapter(POLICY, seed=1)
    config = SftConfig(data=("unused",), **settings)
    parts = (TokenRows.write(SftRow, part, workshop.root) for part in (rows, []))
    return sft._trainer(config, workshop.context("trainer"), *parts)


def test_the_loss_is_the_mean_over_targets_only(workshop: Workshop) -> None:
    rows = [
        SftRow("x:1", [5, 9, 40, 77, 12], [False, False, True, True, False]),
        SftRow("x:2", [8, 30, 31], [False, False, True]),
    ]
    trainer = sft_trainer(workshop, rows)
    loss = trainer.compute_loss(trainer.model, sft.collate([vars(row) for row in rows]))
    expected = []
    with workshop.backbone.role(POLICY) as model, torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
            expected += [-logits[i - 1, row.ids[i]].item() for i, t in enumerate(row.trained) if t]
    assert len(expected) == 3
    assert loss.item() == pytest.approx(sum(expected) / 3, rel=1e-4)


def test_accumulating_gradients_is_a_larger_batch(workshop: Workshop) -> None:
    rows = [
        SftRow(
            "x", [5, 9, 40 + i, 77, 12][: 3 + i % 3], [False, False, True, True, True][: 3 + i % 3]
        )
        for i in range(8)
    ]
    ends = []
    for size, steps in ((8, 1), (2, 4)):
        trainer = sft_trainer(
            workshop,
            rows,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            learning_rate=1e-2,
        )
        trainer.train()
        weights = workshop.backbone.parameters_of(POLICY)
        ends.append(torch.cat([p.detach().flatten() for p in weights.values()]))
        workshop.backbone.clear()
    assert (ends[0] - ends[1]).abs().max() < 1e-4


def test_shares_of_trained_tokens_and_of_eos() -> None:
    rows = [
        SftRow("x", [1, 2, 3, 4], [False, False, True, True]),
        SftRow("x", [1, 2, 3, 9], [False, False, False, True]),
    ]
    assert sft.describe_targets(rows, frozenset({9})) == {
        "tokens": 8,
        "trained_share": 3 / 8,
        "eos_share": 1 / 2,
    }


def test_it_learns_to_say_what_it_was_shown(workshop: Workshop, demonstrations: Rows) -> None:
    data = workshop.write("demos.jsonl", demonstrations)
    metrics = workshop.run(
        "sft", data=data, max_steps=60, learning_rate=2e-2, per_device_train_batch_size=12
    )
    assert metrics["eos_share"] == 1.0
    assert 0 < metrics["trained_share"] < 0.5
    lines = (workshop.root / "sft/metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    assert losses[-1] < losses[0] - 0.4
    assert any("of targets end in EOS" in line for line in workshop.said)


def test_a_row_without_a_target_is_refused_by_name(workshop: Workshop) -> None:
    encoder = Encoder(workshop.backbone.tokenizer)
    row = Demonstration(
        messages=[
            Message(role="user", content="Hi"),
            Message(role="assistant", content="Hello", train=False),
        ],
        source=Source(format="messages", file="demos.jsonl", row=4),
    )
    with pytest.raises(DataError, match=r"no token to train\. each demonstration needs"):
        sft_rows(row, encoder, "completion")


def test_evaluation_rows_that_were_trained_on_are_told(
    workshop: Workshop, demonstrations: Rows
) -> None:
    data = workshop.write("demos.jsonl", demonstrations)
    held_out = workshop.write(
        "eval.jsonl", [{"prompt": "New?", "completion": "Yes."}, demonstrations[3]]
    )
    workshop.run("sft", data=data, eval_data=held_out, max_steps=1)
    told = [line for line in workshop.said if "evaluation rows" in line]
    assert len(told) == 1
    assert told[0].startswith("1 of 2 evaluation rows")
    assert "eval.jsonl:2" in told[0]


def test_it_is_evaluated_at_the_end_without_being_asked(
    workshop: Workshop, demonstrations: Rows
) -> None:
    data = workshop.write("demos.jsonl", demonstrations)
    metrics = workshop.run("sft", data=data, eval_fraction=0.3, max_steps=1)
    assert metrics["eval_loss"] == pytest.approx(-metrics["eval_mean_token_logp"], rel=0.05)
    last = (workshop.root / "sft/metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["eval_loss"] == pytest.approx(metrics["eval_loss"])


def test_packing_fills_forwards_with_tokens_in_place_of_rows(workshop: Workshop) -> None:
    """Twelve rows of four tokens: two a forward, or six where two of twelve tokens would fit."""
    rows = [SftRow("x", [5, 9, 40 + i, 12], [False, False, True, True]) for i in range(12)]
    settings = {"max_length": 12, "per_device_train_batch_size": 2}
    steps = []
    for packing in (False, True):
        trainer = sft_trainer(workshop, rows, packing=packing, **settings)
        loader = trainer.get_train_dataloader()
        sizes = [len(batch["ids"]) for batch in loader]
        assert sum(sizes) == 12
        assert max(sizes) == trainer.most_rows == (6 if packing else 2)
        trainer.train()
        steps.append(trainer.state.global_step)
        workshop.backbone.clear()
    assert steps == [6, 2]


def test_a_column_that_is_not_trained_on_is_told_by_name(
    workshop: Workshop, demonstrations: Rows
) -> None:
    rows = [row | {"rationale": "Because it is so."} for row in demonstrations]
    workshop.run("sft", data=workshop.write("demos.jsonl", rows), max_steps=1)
    (told,) = [line for line in workshop.said if "rationale" in line]
    assert f'column "rationale" holds text in {len(rows)} rows and is not read' in told
    assert "demos.jsonl" in told
