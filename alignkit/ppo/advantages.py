"""From scores to advantages: pure arithmetic on padded tensors, no model in sight.

Everything is (completions, tokens) with a boolean mask that is True on real tokens; masked places
come back as zero. The order is that of arXiv:2403.17031: KL penalty per token, score on the last
real token, GAE, returns from unwhitened advantages, then whitening over the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from alignkit.ppo.ranks import all_sum
from alignkit.recipe.settings import choices

LOG_RATIO_LIMIT = 10.0  # a longer log-ratio says "broken", not "how far": keep it finite


def k1(log_ratio: Tensor) -> Tensor:
    """Unbiased, signed: log π − log π_ref (http://joschu.net/blog/kl-approx.html)."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """Half the squared log-ratio: biased, never negative."""
    return log_ratio.square() / 2


def k3(log_ratio: Tensor) -> Tensor:
    """e^(−d) − 1 + d: unbiased and never negative."""
    return torch.expm1(-log_ratio) + log_ratio


KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    name: globals()[name] for name in choices.KL_ESTIMATORS
}


def kl_per_token(logps: Tensor, ref_logps: Tensor, mask: Tensor, estimator: str = "k1") -> Tensor:
    """Estimated KL(π‖π_ref) of each token, 0 where masked; log-ratios are held within ±10."""
    log_ratio = (logps - ref_logps).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return KL_ESTIMATORS[estimator](log_ratio) * mask


def penalize_missing_stop(scores: Tensor, stopped: Tensor, penalty: float | None) -> Tensor:
    """Scores (completions,) less `penalty` where the completion did not end by itself."""
    if penalty is None:
        return scores
    return torch.where(stopped, scores, scores - penalty)


def token_rewards(kl: Tensor, scores: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """r_t = −kl_coef·KL_t, plus the score (completions,) on each last real token."""
    rewards = -kl_coef * kl * mask
    last = mask.sum(1) - 1
    rows = torch.arange(len(scores), device=scores.device)
    rewards[rows, last] += scores
    return rewards


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, eq. 11 and 12 of arXiv:1707.06347 (GAE: arXiv:1506.02438).

    `values[t]` is the value of the state before token t; after the last token it is 0.
    """
    values = values * mask
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = (delta + gamma * lam * running) * mask[:, t]
        advantages[:, t] = running
        following = values[:, t]
    return advantages, (advantages + values) * mask


def leave_one_out(rewards: Tensor, k: int) -> Tensor:
    """RLOO (arXiv:2402.14740, eq. 7): each reward less the mean of its k−1 siblings.

    `rewards`: (completions,), the k completions of one prompt side by side.
    """
    groups = rewards.view(-1, k)
    others = (groups.sum(1, keepdim=True) - groups) / (k - 1)
    return (groups - others).flatten()


def whiten(numbers: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale to variance 1 over every real token of every rank, and to mean 0 if `shift_mean`."""
    mean, variance = masked_moments(numbers, mask)
    whitened = (numbers - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return whitened * mask


def masked_moments(numbers: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance over the real tokens of every rank."""
    count = all_sum(mask.sum().to(torch.float64)).clamp(min=1)
    mean = all_sum((numbers * mask).sum(dtype=torch.float64)) / count
    squares = all_sum(((numbers - mean).square() * mask).sum(dtype=torch.float64))
    return mean.to(numbers.dtype), (squares / count).to(numbers.dtype)


def masked_mean(numbers: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens of every rank."""
    return masked_moments(numbers, mask)[0]


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 − Var(R − V) / Var(R) over the real tokens of every rank.

    1 is a perfect value, 0 no better than a constant.
    """
    variance = masked_moments(returns, mask)[1]
    if float(variance) < 1e-12:
        return 0.0
    return float(1 - masked_moments(returns - values, mask)[1] / variance)


def next_kl_coef(
    kl_coef: float, kl: float, *, target: float | None, horizon: float, episodes: int
) -> float:
    """Steer kl_coef toward a KL per completion of `target` (arXiv:1909.08593, section 2.2)."""
    if target is None:
        return kl_coef
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * episodes / horizon)
