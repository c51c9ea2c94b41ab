"""PPO's losses as sums over tokens, to be divided by the global count of real tokens.

Flat tensors (tokens,), real tokens only. Sums, not means: micro-batches, mini-batches and ranks
then add up to exactly what one large batch would give.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EXPONENT_LIMIT = 20.0  # e^20 is already absurd as a ratio; beyond it gradients overflow


@dataclass(frozen=True)
class PolicyTerms:
    """Summed policy loss (scalar, with gradient) and what is logged, one value a token."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor
    approx_kl: Tensor


@dataclass(frozen=True)
class ValueTerms:
    """Summed value loss (scalar, with gradient) and which tokens the clip decided."""

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
    """Clipped surrogate, eq. 7 of arXiv:1707.06347: −min(ρA, clip(ρ, 1−ε, 1+ε)A).

    `dual_clip` c bounds the loss of bad tokens with a large ratio: max(min(…), cA) where A < 0
    (eq. 5 of arXiv:1912.09729).
    """
    log_ratio = (logps - old_logps).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT)
    ratio = log_ratio.exp()
    free = -ratio * advantages
    held = -ratio.clamp(1 - cliprange, 1 + cliprange) * advantages
    losses = torch.maximum(free, held)
    if dual_clip is not None:
        losses = torch.where(advantages < 0, losses.minimum(-dual_clip * advantages), losses)
    loss = losses.sum()
    if entropy_coef:
        loss = loss - entropy_coef * entropy_surrogate(logps, ratio).sum()
    return PolicyTerms(
        loss=loss,
        ratio=ratio.detach(),
        clipped=(held > free).float().detach(),
        approx_kl=(log_ratio.detach().square() / 2),
    )


def entropy_surrogate(logps: Tensor, ratio: Tensor) -> Tensor:
    """A number per token whose gradient is, on average over samples, that of the entropy.

    ∇H = −E[log π ∇log π]: the sampled token's log-prob is enough, no pass over the vocabulary.
    """
    return -(ratio * logps).detach() * logps


def value_terms(
    values: Tensor, old_values: Tensor, returns: Tensor, *, cliprange_value: float
) -> ValueTerms:
    """½ max((V−R)², (V_c−R)²) with V_c = V_old + clip(V − V_old, ±ε)."""
    held = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    free_error = (values - returns).square()
    held_error = (held - returns).square()
    return ValueTerms(
        loss=torch.maximum(free_error, held_error).sum() / 2,
        clipped=(held_error > free_error).float().detach(),
    )
