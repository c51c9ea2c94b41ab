"""RLOO: PPO without a value model; each completion is compared with its siblings.

each iteration:  sample k completions per prompt with the policy; score them
                 R = score - kl_coef * KL;  advantage = R - mean R of the other k-1
                 some epochs of clipped updates of the policy
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from alignkit.ppo.advantages import leave_one_out, whiten
from alignkit.ppo.loop import Targets
from alignkit.ppo.rollout import Rollout
from alignkit.ppo.session import train_online
from alignkit.recipe.settings import RlooConfig
from alignkit.stages.cost import online_cost
from alignkit.stages.trial import online_trial
from alignkit.training.context import StageContext


def run(config: RlooConfig, context: StageContext) -> dict[str, Any]:
    """Train a policy with RLOO; save its adapter and metrics."""

    def advantages(rollout: Rollout, kl: Tensor, kl_coef: float) -> Targets:
        return rloo_targets(rollout, kl, kl_coef, config)

    return train_online(config, context, advantages, completions_per_prompt=config.rloo_k)


trial, cost = online_trial, online_cost


def rloo_targets(rollout: Rollout, kl: Tensor, kl_coef: float, config: RlooConfig) -> Targets:
    """The same advantage on every token of a completion; (completions, tokens)."""
    rewards = rollout.scores - kl_coef * kl.sum(1)
    advantages = leave_one_out(rewards, config.rloo_k)[:, None] * rollout.mask
    if config.normalize_advantage:
        advantages = whiten(advantages, rollout.mask)
    return Targets(advantages, None)
