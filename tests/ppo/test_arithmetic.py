"""PPO's arithmetic against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from alignkit.ppo.advantages import (
    explained_variance,
    gae,
    k1,
    k2,
    k3,
    kl_per_token,
    leave_one_out,
    masked_moments,
    next_kl_coef,
    penalize_missing_stop,
    token_rewards,
    whiten,
)
from alignkit.ppo.objective import (
    entropy_surrogate,
    policy_terms,
    value_terms,
)

YES, NO = True, False


def test_three_token_gae_by_hand():
    # delta_2 = 1 - 0.3 = 0.7;             A_2 = 0.7
    # delta_1 = 0 + 0.9*0.3 - 0.2 = 0.07;  A_1 = 0.07 + 0.72*0.7   = 0.574
    # delta_0 = -0.1 + 0.9*0.2 - 0.5 = -0.42; A_0 = -0.42 + 0.72*0.574 = -0.00672
    rewards, values = tensor([[-0.1, 0.0, 1.0]]), tensor([[0.5, 0.2, 0.3]])
    mask = tensor([[YES, YES, YES]])
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    assert advantages[0].tolist() == pytest.approx([-0.00672, 0.574, 0.7], abs=1e-6)
    assert returns[0].tolist() == pytest.approx([0.49328, 0.774, 1.0], abs=1e-6)


def test_gae_of_a_shorter_completion_ignores_what_lies_behind_its_end():
    rewards = tensor([[-0.1, 1.0, 99.0], [-0.1, 1.0, 0.0]])
    values = tensor([[0.5, 0.2, 77.0], [0.5, 0.2, 0.0]])
    mask = tensor([[YES, YES, NO], [YES, YES, NO]])
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.95)
    assert torch.equal(advantages[0], advantages[1])
    assert torch.equal(returns[0], returns[1])
    assert advantages[0].tolist() == pytest.approx([-0.4 + 0.95 * 0.8, 0.8, 0.0])


def test_gae_with_lambda_one_and_no_values_is_the_reward_to_go():
    rewards = tensor([[1.0, 2.0, 4.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, _ = gae(rewards, torch.zeros(1, 3), mask, gamma=1.0, lam=1.0)
    assert advantages[0].tolist() == [7.0, 6.0, 4.0]


def test_kl_estimators_by_hand():
    d = tensor([0.5, -0.5, 0.0])
    assert k1(d).tolist() == [0.5, -0.5, 0.0]
    assert k2(d).tolist() == [0.125, 0.125, 0.0]
    expected = [math.exp(-0.5) - 1 + 0.5, math.exp(0.5) - 1 - 0.5, 0.0]
    assert k3(d).tolist() == pytest.approx(expected, abs=1e-7)


def test_k1_and_k3_estimate_the_exact_kl_and_k3_is_never_negative():
    policy, reference = tensor([0.5, 0.3, 0.2]), tensor([0.2, 0.3, 0.5])
    exact = (policy * (policy / reference).log()).sum()
    d = (policy / reference).log()
    assert (policy * k1(d)).sum().item() == pytest.approx(exact.item())
    assert (policy * k3(d)).sum().item() == pytest.approx(exact.item())
    assert bool((k3(torch.linspace(-10, 10, 201)) >= 0).all())


def test_kl_is_zero_where_masked_and_held_within_ten():
    logps, reference = tensor([[-1.0, -30.0, 5.0]]), tensor([[-2.0, -1.0, -9.0]])
    kl = kl_per_token(logps, reference, tensor([[YES, YES, NO]]))
    assert kl.tolist() == [[1.0, -10.0, 0.0]]


def test_score_lands_on_the_last_real_token():
    kl = tensor([[0.2, 0.4, 0.0], [0.1, 0.1, 0.1]])
    mask = tensor([[YES, YES, NO], [YES, YES, YES]])
    rewards = token_rewards(kl, tensor([2.0, -1.0]), mask, kl_coef=0.5)
    assert rewards[0].tolist() == pytest.approx([-0.1, 1.8, 0.0])
    assert rewards[1].tolist() == pytest.approx([-0.05, -0.05, -1.05])


def test_a_missing_stop_costs_its_penalty_and_nothing_else_changes():
    scores, stopped = tensor([1.0, 1.0]), tensor([YES, NO])
    assert penalize_missing_stop(scores, stopped, 1.5).tolist() == [1.0, -0.5]
    assert penalize_missing_stop(scores, stopped, None).tolist() == [1.0, 1.0]


def test_whitening_by_hand():
    # Real tokens 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5.
    numbers = tensor([[1.0, 2.0, 500.0], [3.0, 6.0, -7.0]])
    mask = tensor([[YES, YES, NO], [YES, YES, NO]])
    mean, variance = masked_moments(numbers, mask)
    assert (mean.item(), variance.item()) == (3.0, 3.5)
    deviation = math.sqrt(3.5)
    expected = [[-2 / deviation, -1 / deviation, 0], [0, 3 / deviation, 0]]
    for row, wanted in zip(whiten(numbers, mask).tolist(), expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-6)
    kept = whiten(numbers, mask, shift_mean=False)
    assert kept[0].tolist() == pytest.approx([3 - 2 / deviation, 3 - 1 / deviation, 0], abs=1e-6)


def test_leave_one_out_by_hand():
    # Group (1, 2, 6): the others' means are 4, 3.5, 1.5.
    advantages = leave_one_out(tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0]), k=3)
    assert advantages.tolist() == pytest.approx([-3.0, -1.5, 4.5, 0, 0, 0])


@given(st.lists(st.floats(-50, 50), min_size=6, max_size=6))
def test_leave_one_out_sums_to_zero_in_each_group(rewards):
    sums = leave_one_out(tensor(rewards, dtype=torch.float64), k=3).view(-1, 3).sum(1)
    assert sums.abs().max().item() < 1e-9


def test_kl_coef_is_steered_and_a_step_is_bounded():
    steer = {"target": 6.0, "horizon": 10_000, "episodes": 100}
    assert next_kl_coef(0.1, 6.0, **steer) == pytest.approx(0.1)
    assert next_kl_coef(0.1, 6.6, **steer) == pytest.approx(0.1 * (1 + 0.1 * 0.01))
    assert next_kl_coef(0.1, 600.0, **steer) == pytest.approx(0.1 * (1 + 0.2 * 0.01))
    assert next_kl_coef(0.1, -5.0, **steer) == pytest.approx(0.1 * (1 - 0.2 * 0.01))
    assert next_kl_coef(0.1, 600.0, target=None, horizon=1, episodes=1) == 0.1


def test_clipped_policy_loss_by_hand():
    # ratios 1.5, 1.5, 0.5, 0.5 with advantages +1, -1, +1, -1 and epsilon 0.2:
    # -min(1.5, 1.2) = -1.2 (clipped); -min(-1.5, -1.2) = 1.5;
    # -min(0.5, 0.8) = -0.5;           -min(-0.5, -0.8) = 0.8 (clipped)
    ratios = tensor([1.5, 1.5, 0.5, 0.5])
    logps = ratios.log().requires_grad_()
    terms = policy_terms(logps, torch.zeros(4), tensor([1.0, -1.0, 1.0, -1.0]), cliprange=0.2)
    assert terms.loss.item() == pytest.approx(-1.2 + 1.5 - 0.5 + 0.8)
    assert terms.clipped.tolist() == [1, 0, 0, 1]
    terms.loss.backward()
    assert logps.grad.tolist() == pytest.approx([0.0, 1.5, -0.5, 0.0])


def test_dual_clip_bounds_only_bad_tokens():
    logps = tensor([8.0, 8.0]).log()
    terms = policy_terms(logps, torch.zeros(2), tensor([-1.0, 1.0]), cliprange=0.2, dual_clip=3.0)
    assert terms.loss.item() == pytest.approx(3.0 - 1.2)


def test_policy_loss_of_an_absurd_log_ratio_is_finite():
    logps = tensor([500.0]).requires_grad_()
    terms = policy_terms(logps, torch.zeros(1), tensor([-1.0]), cliprange=0.2)
    terms.loss.backward()
    assert math.isfinite(terms.loss.item()) and math.isfinite(logps.grad.item())


def test_first_update_has_ratio_one_and_the_plain_policy_gradient():
    logps = tensor([-1.0, -2.0]).requires_grad_()
    terms = policy_terms(logps, logps.detach(), tensor([0.7, -0.4]), cliprange=0.2)
    terms.loss.backward()
    assert terms.ratio.tolist() == [1.0, 1.0]
    assert logps.grad.tolist() == pytest.approx([-0.7, 0.4])


def test_entropy_surrogate_has_the_gradient_of_the_entropy():
    logits = tensor([0.3, -1.0, 0.8], dtype=torch.float64).requires_grad_()
    logps = logits.log_softmax(0)
    probabilities = logps.exp().detach()
    entropy = -(logps.exp() * logps).sum()
    (exact,) = torch.autograd.grad(entropy, logits, retain_graph=True)
    expected = (probabilities * entropy_surrogate(logps, torch.ones(3))).sum()
    (estimated,) = torch.autograd.grad(expected, logits)
    assert estimated.tolist() == pytest.approx(exact.tolist(), abs=1e-12)


def test_clipped_value_loss_by_hand():
    # V 1.0, V_old 0.0, clip 0.2 -> V_c 0.2. R 1.0: max(0, 0.64)/2 = 0.32 (the clip decides).
    # V 0.1, V_old 0.0 -> V_c 0.1. R 1.0: 0.81/2 = 0.405.
    terms = value_terms(
        tensor([1.0, 0.1]), tensor([0.0, 0.0]), tensor([1.0, 1.0]), cliprange_value=0.2
    )
    assert terms.loss.item() == pytest.approx(0.32 + 0.405)
    assert terms.clipped.tolist() == [1, 0]


def test_explained_variance_of_a_perfect_a_constant_and_a_wrong_value():
    returns = tensor([[1.0, 2.0, 3.0, 7.0]])
    real = tensor([[True, True, True, False]])
    assert explained_variance(returns, returns, real) == 1.0
    assert explained_variance(tensor([[2.0, 2.0, 2.0, 9.0]]), returns, real) == pytest.approx(0.0)
    assert explained_variance(-returns, returns, real) == pytest.approx(-3.0)
