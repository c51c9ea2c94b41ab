"""The reward model: scores that depend on nothing but their text, and learn what was ranked."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from alignkit.data.chat import Encoder
from alignkit.data.read import load_rankings
from alignkit.errors import DataError, ModelError
from alignkit.forward.logps import Group
from alignkit.model.backbone import REWARD
from alignkit.model.heads import Scale
from alignkit.recipe.settings import RewardConfig
from alignkit.scorers.reward_model import RewardModel
from alignkit.stages.reward import drop_uninformative, new_head, pairs_of, ranking_loss
from alignkit.training.rows import RankingRow, ranking_row
from alignkit.training.token_rows import TokenRows
from tests.workshop import WORDS, Workshop


def config(**settings: Any) -> RewardConfig:
    return RewardConfig(data=("unused",), **settings)


def row(ranks: list[int], margin: float = 0.0) -> RankingRow:
    return RankingRow("x:1", [1], [[2]] * len(ranks), ranks, margin)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_pairs_of_a_ranking_with_ties() -> None:
    pairs = pairs_of([2, 1, 2])
    assert pairs.strict == [(1, 0), (1, 2)]
    assert pairs.ties == [(0, 2)]


def test_a_ranking_counts_once_however_many_pairs_it_has() -> None:
    scores = torch.tensor([1.0, 0.0, -1.0])
    loss, weight = ranking_loss(scores, row([1, 2, 3]), config())
    assert weight == 1.0
    expected = (softplus(-1) + softplus(-2) + softplus(-1)) / 3
    assert loss.item() == pytest.approx(expected)
    loss, weight = ranking_loss(scores, row([1, 2, 3]), config(weight="pair"))
    assert (loss.item(), weight) == (pytest.approx(3 * expected), 3.0)


def test_a_preference_counts_as_its_share_of_the_ranking_it_was_cut_from() -> None:
    scores = torch.tensor([1.0, 0.0])
    third = dataclasses.replace(row([1, 2]), weight=1 / 3)
    loss, weight = ranking_loss(scores, third, config())
    assert (loss.item(), weight) == (pytest.approx(softplus(-1) / 3), 1 / 3)
    loss, weight = ranking_loss(scores, third, config(weight="pair"))
    assert (loss.item(), weight) == (pytest.approx(softplus(-1)), 1.0)


def test_weights_of_preferences_reach_the_rows(workshop: Workshop) -> None:
    data = workshop.write(
        "p.jsonl",
        [
            {
                "kind": "preference",
                "prompt": [{"role": "user", "content": "Where?"}],
                "chosen": [{"role": "assistant", "content": "Here."}],
                "rejected": [{"role": "assistant", "content": "No."}],
                "weight": 0.25,
            }
        ],
    )
    encoder = Encoder(workshop.backbone.tokenizer)
    made = [ranking_row(record, encoder) for record in load_rankings(data).records]
    assert [r.weight for r in made if r is not None] == [0.25]


def test_ties_margin_and_centring_by_hand() -> None:
    scores = torch.tensor([1.0, 1.5])
    loss, _ = ranking_loss(scores, row([1, 1]), config(ties="half"))
    assert loss.item() == pytest.approx(0.5 * (softplus(0.5) + softplus(-0.5)))
    loss, _ = ranking_loss(scores, row([2, 1], margin=2.0), config())
    assert loss.item() == pytest.approx(softplus(1.5))
    loss, _ = ranking_loss(scores, row([2, 1], margin=2.0), config(margin=False))
    assert loss.item() == pytest.approx(softplus(-0.5))
    loss, _ = ranking_loss(scores, row([2, 1]), config(center_rewards_coefficient=0.1))
    assert loss.item() == pytest.approx(softplus(-0.5) + 0.1 * 2.5**2)


@pytest.fixture
def model(workshop: Workshop) -> RewardModel:
    workshop.backbone.new_adapter(REWARD, seed=0)
    for p in workshop.backbone.parameters_of(REWARD).values():
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    return RewardModel(workshop.backbone, new_head(workshop.backbone, seed=2))


def test_a_score_does_not_depend_on_its_batch(model: RewardModel) -> None:
    groups = [
        Group([5, 9, 40], [[7, 2], [8, 30, 31, 2]]),
        Group([6], [[11, 12, 13, 14, 15, 16, 2]]),
        Group([5, 9, 40, 41, 42], [[7, 0, 2], [7, 2, 0]]),  # the pad token inside a completion
    ]
    together = model.scores(groups, batch_size=3)
    alone = [model.scores([Group(g.prompt, [c])])[0] for g in groups for c in g.completions]
    assert together == pytest.approx(alone, abs=1e-4)
    assert len(set(alone)) == len(alone)


def test_the_score_is_read_at_the_last_token(model: RewardModel) -> None:
    ids = [5, 9, 40, 7, 8, 2]
    with model.backbone.role(REWARD), torch.no_grad():
        states = model.backbone.base.base_model(input_ids=torch.tensor([ids])).last_hidden_state
        expected = model.head(states[0, -1]).item()
    assert model.scores([Group(ids[:3], [ids[3:]])])[0] == pytest.approx(expected, abs=1e-5)


def rankings(n: int) -> list[dict[str, Any]]:
    return [
        {
            "kind": "ranking",
            "prompt": [{"role": "user", "content": f"Order {i}: where is my {WORDS[i % 6]}?"}],
            "candidates": [
                {"cid": "a", "messages": [{"role": "assistant", "content": "No idea"}]},
                {"cid": "b", "messages": [{"role": "assistant", "content": "Sorry! It comes."}]},
                {"cid": "c", "messages": [{"role": "assistant", "content": "It comes."}]},
            ],
            "ranks": {"a": 3, "b": 1, "c": 2},
        }
        for i in range(n)
    ]


@pytest.mark.parametrize("objective", ["pairs", "plackett_luce"])
def test_it_learns_a_ranking_and_comes_back_the_same(workshop: Workshop, objective: str) -> None:
    data = workshop.write("rankings.jsonl", rankings(24))
    metrics = workshop.run(
        "reward",
        data=data,
        objective=objective,
        max_steps=25,
        learning_rate=5e-3,
        eval_fraction=0.25,
        eval_strategy="steps",
        eval_steps=5,
        early_stopping_patience=4,
    )
    assert metrics["accuracy"] == 1.0
    assert metrics["pairs"] == 6 * 3
    assert metrics["accuracy_ci"]["low"] > 0.5
    assert metrics["moved_share"] > 0.99
    model = RewardModel.load(workshop.backbone, workshop.root / "reward")
    assert model.head.scale != Scale()
    ids = [Group([5, 9], [[7, 2], [8, 2]])]
    first = model.scores(ids)
    workshop.backbone.clear()
    assert RewardModel.load(workshop.backbone, workshop.root / "reward").scores(ids) == first


def test_a_reward_model_without_its_head_is_refused(workshop: Workshop) -> None:
    data = workshop.write("rankings.jsonl", rankings(12))
    workshop.run("reward", data=data, max_steps=1)
    (workshop.root / "reward/adapter/head.safetensors").unlink()
    with pytest.raises(ModelError, match="the scalar head is missing"):
        RewardModel.load(workshop.backbone, workshop.root / "reward")


def test_a_ranking_that_ties_everything_is_left_out_and_told(workshop: Workshop) -> None:
    """Averaged over its pairs, of which there are none, its loss would not be a number."""
    rows = rankings(12)
    rows[2]["ranks"] = {"a": 1, "b": 1, "c": 1}
    data = workshop.write("rankings.jsonl", rows)
    metrics = workshop.run("reward", data=data, eval_fraction=0.0, num_train_epochs=1)
    assert metrics["rankings"] == 11
    assert math.isfinite(metrics["train_loss"])
    assert any(
        "1 of 12 rankings tie all their completions" in line and "rankings.jsonl:3" in line
        for line in workshop.said
    )
    half = [row([1, 1]), row([1, 2])]
    written = TokenRows.write(RankingRow, half, workshop.root)
    assert list(drop_uninformative(written, config(ties="half"), workshop.said.append)) == half
    assert list(drop_uninformative(written, config(), workshop.said.append)) == half[1:]


def test_rankings_that_only_tie_are_refused(workshop: Workshop) -> None:
    rows = rankings(4)
    for r in rows:
        r["ranks"] = {"a": 1, "b": 1, "c": 1}
    data = workshop.write("rankings.jsonl", rows)
    with pytest.raises(DataError, match="ties all its completions"):
        workshop.run("reward", data=data, max_steps=1)


def test_preferences_with_a_margin_train_it_too(workshop: Workshop) -> None:
    rows = [
        {"prompt": f"{i}?", "chosen": "Yes, soon.", "rejected": "No.", "margin": 1.5}
        for i in range(12)
    ]
    metrics = workshop.run("reward", data=workshop.write("p.jsonl", rows), max_steps=2)
    assert metrics["rankings"] == 11  # a tenth of the prompts is held out
