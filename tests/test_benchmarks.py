"""A benchmark whose sides disagree fails; its data and its arithmetic are what they claim."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import generate
from benchmarks.common import Measured, check_parity, compare, hh_lists, hh_pairs, spread


def test_a_benchmark_ends_when_a_gradient_differs():
    ours, other = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.001])
    found = Measured("toy")
    check_parity(found, {"ours": (3.0, ours), "TRL": (3.0, ours.clone())}, 1e-4, None)
    with pytest.raises(
        SystemExit, match="toy: ours and TRL disagree: loss 0.00e.00, gradient 4.47"
    ):
        check_parity(found, {"ours": (3.0, ours), "TRL": (3.0, other)}, 1e-4, None)
    with pytest.raises(SystemExit, match="loss 3.33e-02"):
        check_parity(found, {"ours": (3.1, ours), "TRL": (3.0, ours)}, 1e-4, None)


def test_every_side_sees_every_batch_and_the_order_alternates():
    model = nn.Linear(1, 1, bias=False)
    order: list[str] = []

    def side(name: str):
        def step(batch):
            order.append(f"{name}{batch[0]}")
            loss = model(torch.tensor([[float(batch[0])]])).sum()
            loss.backward()
            return loss.detach()

        return step

    found = compare("toy", model, {"ours": side("o"), "TRL": side("t")}, [[1.0], [2.0], [3.0]])
    assert order[2:] == ["o1.0", "t1.0", "t2.0", "o2.0", "o3.0", "t3.0"]
    assert len(found.ratios("TRL")) == 3
    assert model.weight.grad is None


def test_pairs_have_the_lengths_of_real_ones():
    pairs = hh_pairs(400, 100)
    means = [sum(len(p[k]) for p in pairs) / 400 for k in pairs[0]]
    assert means == pytest.approx([124.23, 40.97, 54.24], abs=0.01)
    assert min(i for p in pairs for k in p.values() for i in k) == 3
    assert [len(row["completions"]) for row in hh_lists(3, 100, 4)] == [4, 4, 4]


def test_the_spread_is_median_and_tenths():
    assert spread(list(range(11))) == "5.00 [1.00, 9.00]"


def test_a_generation_benchmark_ends_when_a_token_differs():
    def judge(ids):
        logits = torch.zeros(1, ids.shape[1], 10)
        logits[..., 6] = 0.5
        logits[..., 7] = 0.5 + 2e-5
        return SimpleNamespace(logits=logits)

    ours = [[5, 6], [7, 8]]
    generate.check_tokens(
        "toy", [[1], [2]], {"ours": ours, "transformers": [[5, 7], [7, 8]]}, judge
    )
    with pytest.raises(
        SystemExit, match="toy: transformers says another token, 0.5 nats from ours"
    ):
        generate.check_tokens(
            "toy", [[1], [2]], {"ours": ours, "transformers": [[5, 9], [7, 8]]}, judge
        )
