"""Batches hold a token budget, and running out of memory changes no gradient."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from alignkit.training.batching import (
    FittingSteps,
    MicroBatches,
    TokenBatches,
    batches_by_tokens,
    is_out_of_memory,
    largest_that_fits,
)


@given(
    st.lists(st.integers(1, 50), max_size=40), st.integers(1, 80), st.none() | st.integers(0, 99)
)
def test_a_token_budget_holds_and_loses_nothing(lengths, budget, seed):
    batches = batches_by_tokens(lengths, budget, seed=seed)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= budget


def test_a_budget_also_bounds_the_number_of_items():
    assert batches_by_tokens([1] * 5, 100, max_items=2) == [[0, 1], [2, 3], [4]]


def test_the_micro_batch_halves_until_it_fits():
    tried = []

    def step(items: int) -> None:
        tried.append(items)
        if items > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert largest_that_fits(step, 16) == 2
    assert tried == [16, 8, 4, 2]


def test_other_failures_are_not_taken_for_a_lack_of_memory():
    def step(items: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        largest_that_fits(step, 4)


def test_the_hosts_own_words_for_running_out_are_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)


def test_every_epoch_has_the_same_batches_in_another_order():
    sampler = TokenBatches([3, 4, 5, 6, 7, 8], 10, seed=1)
    first = list(sampler)
    assert len(first) == len(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    assert sorted(second) == sorted(first)


def half_finished(weight: nn.Parameter, limit: int):
    """A step that runs out of memory in its backward, after some gradient has arrived."""

    def step(part, share):
        loss = share * torch.stack([weight * x for x in part]).square().mean()
        if len(part) > limit:
            weight.grad = torch.full_like(weight, 1e9)
            raise torch.OutOfMemoryError("CUDA out of memory")
        loss.backward()
        return loss.detach()

    return step


def test_running_out_of_memory_changes_neither_loss_nor_gradient(caplog):
    items = [1.0, -2.0, 3.0, 0.5, 4.0]
    whole, parts = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(2.0))
    expected = MicroBatches(8).run(items, half_finished(whole, 8), [whole])
    micro = MicroBatches(8)
    with caplog.at_level(logging.WARNING):
        found = micro.run(items, half_finished(parts, 2), [parts])
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert parts.grad.item() == pytest.approx(whole.grad.item(), rel=1e-6)
    assert micro.size == 2
    assert [r.getMessage() for r in caplog.records] == [
        "out of memory with 5 rows in a forward; going on with 2"
    ]


def test_one_row_that_does_not_fit_is_an_error():
    weight = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(torch.OutOfMemoryError):
        MicroBatches(4).run([1.0, 2.0], half_finished(weight, 0), [weight])


class Rows(FittingSteps):
    """The part of a trainer that measuring needs."""

    args = SimpleNamespace(per_device_train_batch_size=4)
    sizes = (3, 9, 5, 7, 1)
    train_dataset = sizes
    data_collator = staticmethod(lambda rows: {"lengths": rows})


def test_the_longest_rows_are_tried_before_the_first_step(caplog):
    weight = nn.Parameter(torch.tensor(1.0))
    trainer, tried, state = Rows(), [], torch.get_rng_state()

    def step(batch):
        assert trainer.is_measuring
        tried.append(batch["lengths"])
        torch.rand(1)
        weight.grad = torch.ones_like(weight)
        if sum(batch["lengths"]) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with caplog.at_level(logging.WARNING):
        assert trainer.rows_that_fit(step, [weight]) == 2
    assert tried == [[9, 7, 5, 3], [9, 7]]
    assert weight.grad is None
    assert not trainer.is_measuring
    assert torch.equal(torch.get_rng_state(), state)
    assert caplog.messages == ["memory holds 2 of 4 rows in a forward"]
