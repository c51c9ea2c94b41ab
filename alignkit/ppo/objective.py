"""Compute PPO's losses as sums over tokens, to be divided by the global count of real tokens.

Tensors are flat, (tokens,), real tokens only. Sums and not means: then micro-batches, mini-batches
and ranks add up to exactly what one large batch would give.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EXPONENT_LIMIT = 20.0  # e^20 is absurd as a ratio already; beyond it gradients overflow


@dataclass(frozen=True)
class PolicyTerms:
    """Summed policy loss (scalar, with gradient), and what is logged, one value per token."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor
    approx_kl: Tensor


@dataclass(frozen=True)
class ValueTerms:
    """Summed value loss (scalar, with gradient), and on which tokens the clip decided."""

    loss: Tensor
    clipped: Tensor


def policy_terms(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    *,
    cliprange: float,
    dual_clip: float | None = None,
    entropy_coef: float = 0.0,
) -> PolicyTerms:
    """Return the clipped surrogate, eq. 7 of arXiv:1707.06347: −min(ρA, clip(ρ, 1−ε, 1+ε)A).

    ρ = π/π_old per token. `dual_clip` c bounds the loss of tokens with A < 0 and a large ratio: the
    objective becomes max(min(…), cA) (eq. 5 of arXiv:1912.09729). `entropy_coef` adds a bonus.
    """
    # A ratio of probabilities, computed as exp of a difference of logs: dividing the probabilities
    # would underflow.
    log_ratio = (logps - old_logps).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT)
    ratio = log_ratio.exp()
    # The paper maximises a minimum; a loss has the sign flipped, so it is the maximum here. Where
    # the clipped term decides, it is constant in the log-probs and the token has no gradient.
    free = -ratio * advantages
    clipped = -ratio.clamp(1 - cliprange, 1 + cliprange) * advantages
    losses = torch.maximum(free, clipped)
    # For A < 0 the maximum above has no bound as the ratio grows: one such token can ruin a step.
    if dual_clip is not None:
        losses = torch.where(advantages < 0, losses.minimum(-dual_clip * advantages), losses)
    loss = losses.sum()
    if entropy_coef:
        loss = loss - entropy_coef * entropy_surrogate(logps, ratio).sum()
    return PolicyTerms(
        loss=loss,
        ratio=ratio.detach(),
        clipped=(clipped > free).float().detach(),
        approx_kl=(log_ratio.detach().square() / 2),
    )


def entropy_surrogate(logps: Tensor, ratio: Tensor) -> Tensor:
    """Return a number per token whose gradient is, on average over samples, that of the entropy.

    ∇H = −E[log π ∇log π], since E[∇log π] = 0. So the sampled token's log-prob is enough, and no
    pass over the vocabulary is needed. `ratio` corrects for samples of an older policy.
    """
    # The factor is a weight, so it is detached: only the last `logps` carries the gradient.
    return -(ratio * logps).detach() * logps


def value_terms(
    values: Tensor, old_values: Tensor, returns: Tensor, *, cliprange_value: float
) -> ValueTerms:
    """Return ½ max((V−R)², (V_c−R)²) with V_c = V_old + clip(V − V_old, ±ε); all (tokens,)."""
    clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    # The larger error: a value that moved too far is stopped only when it moved toward its target.
    free_error = (values - returns).square()
    clipped_error = (clipped - returns).square()
    return ValueTerms(
        loss=torch.maximum(free_error, clipped_error).sum() / 2,
        clipped=(clipped_error > free_error).float().detach(),
    )
