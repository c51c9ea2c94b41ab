"""Turn scores into advantages: pure arithmetic on padded tensors, without a model.

Tensors are (completions, tokens), with a boolean mask that is True on real tokens; results are zero
elsewhere. The order of steps is that of arXiv:2403.17031: KL penalty per token, score on the last
real token, GAE, returns from advantages before whitening, then whitening over the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from alignkit.ppo.ranks import all_sum
from alignkit.recipe.settings import choices

LOG_RATIO_LIMIT = 10.0  # a larger log-ratio means that something is broken; keep its KL finite


# Estimators of KL(π‖π_ref) from samples of π, with d = log π − log π_ref per token; k1 to k3 of
# http://joschu.net/blog/kl-approx.html, whose r is e^(−d).


def k1(log_ratio: Tensor) -> Tensor:
    """Return d: unbiased, of either sign."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """Return d² / 2: biased, never negative."""
    return log_ratio.square() / 2


def k3(log_ratio: Tensor) -> Tensor:
    """Return e^(−d) − 1 + d: unbiased and never negative."""
    return torch.expm1(-log_ratio) + log_ratio


KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    name: globals()[name] for name in choices.KL_ESTIMATORS
}


def kl_per_token(logps: Tensor, ref_logps: Tensor, mask: Tensor, estimator: str = "k1") -> Tensor:
    """Return the estimated KL(π‖π_ref) per token, 0 where masked; log-ratios are clipped to ±10."""
    log_ratio = (logps - ref_logps).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return KL_ESTIMATORS[estimator](log_ratio) * mask


def penalize_missing_stop(scores: Tensor, stopped: Tensor, penalty: float | None) -> Tensor:
    """Subtract `penalty` from the scores (completions,) of completions that were cut off."""
    if penalty is None:
        return scores
    return torch.where(stopped, scores, scores - penalty)


def token_rewards(kl: Tensor, scores: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Return r_t = −kl_coef·KL_t, plus the score (completions,) on each last real token."""
    rewards = -kl_coef * kl * mask
    # The last *real* token (the stop token, if one came), not the last column: a score on padding
    # would be masked away, and the completion would earn nothing.
    last = mask.sum(1) - 1
    rows = torch.arange(len(scores), device=scores.device)
    rewards[rows, last] += scores
    return rewards


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns, (completions, tokens): eq. 11 and 12 of arXiv:1707.06347.

    δ_t = r_t + γ V_(t+1) − V_t and A_t = δ_t + γλ A_(t+1) (GAE: arXiv:1506.02438). `values[:, t]`
    is the value of the state *before* token t; the state after the last token is worth 0.
    """
    # Zero values on padding make V_(t+1) = 0 at each row's last real token, wherever that is.
    values = values * mask
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    next_values = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_values - values[:, t]
        # Masked at every step: a sum that starts on padding must not flow into real tokens.
        running = (delta + gamma * lam * running) * mask[:, t]
        advantages[:, t] = running
        next_values = values[:, t]
    # From the raw advantages: whitened ones would give the value a target of the wrong scale.
    return advantages, (advantages + values) * mask


def leave_one_out(rewards: Tensor, k: int) -> Tensor:
    """Return each reward less the mean of its k − 1 siblings: RLOO, eq. 7 of arXiv:2402.14740.

    `rewards`: (completions,), the k completions of a prompt next to each other.
    """
    groups = rewards.view(-1, k)
    others = (groups.sum(1, keepdim=True) - groups) / (k - 1)
    return (groups - others).flatten()


def whiten(numbers: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale to variance 1 over the real tokens of all ranks, and to mean 0 if `shift_mean`."""
    mean, variance = masked_moments(numbers, mask)
    whitened = (numbers - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return whitened * mask


def masked_moments(numbers: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and (biased) variance over the real tokens of all ranks."""
    # Two passes in fp64: E[x²] − E[x]² would cancel, and ranks hold different numbers of tokens, so
    # sums are added up, never means.
    count = all_sum(mask.sum().to(torch.float64)).clamp(min=1)
    mean = all_sum((numbers * mask).sum(dtype=torch.float64)) / count
    squares = all_sum(((numbers - mean).square() * mask).sum(dtype=torch.float64))
    return mean.to(numbers.dtype), (squares / count).to(numbers.dtype)


def masked_mean(numbers: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the real tokens of all ranks."""
    return masked_moments(numbers, mask)[0]


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Return 1 − Var(R − V) / Var(R) over the real tokens of all ranks.

    1 is a perfect value; 0 is no better than a constant.
    """
    variance = masked_moments(returns, mask)[1]
    if float(variance) < 1e-12:
        return 0.0
    return float(1 - masked_moments(returns - values, mask)[1] / variance)


def next_kl_coef(
    kl_coef: float, kl: float, *, target: float | None, horizon: float, episodes: int
) -> float:
    """Steer kl_coef toward `target`, in nats per completion (arXiv:1909.08593, section 2.2).

    kl_coef · (1 + clip(KL / target − 1, ±0.2) · episodes / horizon); unchanged without a target.
    """
    if target is None:
        return kl_coef
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * episodes / horizon)
