"""Losses, worked by hand, and against TRL's own on the same log-probs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit.training.losses import (
    PAIR_LOSSES,
    PairLogps,
    PairSettings,
    bradley_terry,
    hinge,
    ipo,
    plackett_luce,
    robust,
    sigmoid,
    tie,
)


def pair(chosen: float, rejected: float, ref_chosen: float, ref_rejected: float) -> PairLogps:
    values = [torch.tensor([v]) for v in (chosen, rejected, ref_chosen, ref_rejected)]
    return PairLogps(*values, torch.tensor([4]), torch.tensor([2]))


def test_sigmoid_is_log_two_when_policy_equals_reference() -> None:
    loss = sigmoid(pair(-3.0, -5.0, -3.0, -5.0), PairSettings())
    assert loss.item() == pytest.approx(math.log(2))


def test_sigmoid_by_hand() -> None:
    # margin = (-2 + 3) - (-7 + 5) = 3; beta 0.5: -log sigmoid(1.5)
    loss = sigmoid(pair(-2.0, -7.0, -3.0, -5.0), PairSettings(beta=0.5))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.5)))


def test_label_smoothing_mixes_the_two_directions() -> None:
    settings = PairSettings(beta=0.5, label_smoothing=0.1)
    loss = sigmoid(pair(-2.0, -7.0, -3.0, -5.0), settings)
    expected = 0.9 * math.log(1 + math.exp(-1.5)) + 0.1 * math.log(1 + math.exp(1.5))
    assert loss.item() == pytest.approx(expected)


def test_hinge_ipo_and_robust_by_hand() -> None:
    row = pair(-2.0, -7.0, -3.0, -5.0)
    assert hinge(row, PairSettings(beta=0.1)).item() == pytest.approx(1 - 0.3)
    # per-token means: 1/4 - (-2/2) = 1.25; target 1 / (2 * 0.5) = 1
    assert ipo(row, PairSettings(beta=0.5)).item() == pytest.approx(0.25**2)
    right, wrong = math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(1.5))
    smoothed = robust(row, PairSettings(beta=0.5, label_smoothing=0.2)).item()
    assert smoothed == pytest.approx((0.8 * right - 0.2 * wrong) / 0.6)


def test_bradley_terry_asks_for_its_margin() -> None:
    loss = bradley_terry(torch.tensor([2.0]), torch.tensor([0.5]), margin=1.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.5)))


def test_a_tie_pulls_scores_together() -> None:
    left = torch.tensor([1.0], requires_grad=True)
    tie(left, torch.tensor([0.0])).sum().backward()
    assert left.grad is not None
    assert left.grad.item() == pytest.approx(1 / (1 + math.exp(-1)) - 0.5)
    assert tie(torch.tensor([3.0]), torch.tensor([3.0])).item() == pytest.approx(math.log(2))


def test_plackett_luce_of_two_is_bradley_terry() -> None:
    scores = torch.tensor([0.3, 1.1])
    expected = bradley_terry(scores[1], scores[0])
    assert plackett_luce(scores, torch.tensor([2, 1])).item() == pytest.approx(expected.item())


def test_plackett_luce_of_three_by_hand() -> None:
    a, b, c = 1.0, 0.0, -1.0
    first = math.log(math.exp(a) + math.exp(b) + math.exp(c)) - a
    second = math.log(math.exp(b) + math.exp(c)) - b
    loss = plackett_luce(torch.tensor([a, b, c]), torch.tensor([1, 2, 3]))
    assert loss.item() == pytest.approx((first + second) / 2)


def test_plackett_luce_of_a_full_tie_says_nothing() -> None:
    assert plackett_luce(torch.tensor([1.0, 2.0]), torch.tensor([1, 1])).item() == 0.0


def test_every_loss_prefers_a_larger_margin() -> None:
    settings = PairSettings(beta=0.1, label_smoothing=0.05)
    # DiscoPOP is not monotone near a margin of zero, as its paper's figure 1 shows.
    for name in sorted(set(PAIR_LOSSES) - {"sft", "discopop"}):
        small = PAIR_LOSSES[name](pair(-3.0, -4.9, -3.0, -5.0), settings).item()
        large = PAIR_LOSSES[name](pair(-2.9, -5.1, -3.0, -5.0), settings).item()
        assert large < small, name


@pytest.mark.parametrize("name", sorted(set(PAIR_LOSSES)))
def test_equals_trl_on_the_same_log_probs(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    logps = [-20 * torch.rand(6, generator=generator) - 2 for _ in range(4)]
    lengths = [torch.randint(3, 12, (6,), generator=generator) for _ in range(2)]
    smoothing = 0.0 if name in {"sigmoid", "sft"} else 0.1
    ours = PAIR_LOSSES[name](
        PairLogps(*logps, *lengths), PairSettings(beta=0.2, label_smoothing=smoothing)
    ).mean()
    expected = trl_loss(name, logps, lengths, beta=0.2, label_smoothing=smoothing)
    assert ours.item() == pytest.approx(expected, rel=1e-5)


def trl_loss(
    name: str, logps: list[Tensor], lengths: list[Tensor], *, beta: float, label_smoothing: float
) -> float:
    """The loss TRL's own code computes from a model that answers with these log-probs.

    The summed log-probs are spread evenly over each completion's tokens, which is all that TRL's
    code can see of them.
    """
    from trl import DPOTrainer

    class Answer:
        def __init__(self, per_token: Tensor) -> None:
            self.log_probs = per_token
            self.entropy = self.mean_logits = torch.zeros_like(per_token)
            self.is_top1 = torch.zeros_like(per_token, dtype=torch.bool)

    both = torch.cat(lengths)
    width = int(both.max()) + 1
    mask = (torch.arange(width)[None] > 0) & (torch.arange(width)[None] <= both[:, None])

    def spread(chosen: Tensor, rejected: Tensor) -> Tensor:
        return torch.where(mask, (torch.cat([chosen, rejected]) / both)[:, None], 0.0)[:, 1:]

    model = TrlModel(Answer(spread(logps[0], logps[1])))
    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer.__dict__.update(trl_state(model, name, beta, label_smoothing))
    inputs = {
        "input_ids": torch.zeros(len(both), width, dtype=torch.long),
        "attention_mask": torch.ones(len(both), width, dtype=torch.long),
        "completion_mask": mask.long(),
        "ref_chosen_logps": logps[2],
        "ref_rejected_logps": logps[3],
    }
    return float(DPOTrainer._compute_loss(trainer, model, inputs, False))


class TrlModel(torch.nn.Module):
    """Answers TRL's request for log-probs with ones that are given."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, **_: Any) -> Any:
        return self.answer


def trl_state(model: TrlModel, name: str, beta: float, label_smoothing: float) -> dict[str, Any]:
    from collections import defaultdict
    from types import SimpleNamespace

    from accelerate import Accelerator

    return {
        "model": model,
        "ref_model": None,
        "accelerator": Accelerator(cpu=True),
        "precompute_ref_logps": True,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "loss_types": [name],
        "loss_weights": [1.0],
        "beta": beta,
        "label_smoothing": label_smoothing,
        "use_weighting": False,
        "aux_loss_enabled": False,
        "_tp_size": 1,
        "_total_train_tokens": 0,
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "args": SimpleNamespace(discopop_tau=0.05),
    }
