"""PPO: the policy learns from a reward, held near its start, on one backbone with four roles.

policy <- the starting adapter     reference <- its frozen copy, or the bare backbone
reward <- a reward-model run       value     <- a head on the reward model's states, or a copy of
                                                the reward model, head and all
each iteration:  sample completions with the policy; score them
                 r_t = -kl_coef * KL_t, plus the score on the last token
                 advantages by GAE, whitened; some epochs of clipped updates, policy then value
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from alignkit.model.backbone import POLICY, VALUE, Backbone
from alignkit.model.heads import ScalarHead
from alignkit.ppo.advantages import gae, token_rewards, whiten
from alignkit.ppo.loop import Targets
from alignkit.ppo.rewards import ModelReward, Rewards
from alignkit.ppo.rollout import Rollout
from alignkit.ppo.session import train_online
from alignkit.ppo.value import FrozenTrunk, OwnAdapter, ValueLearner, trunk_states
from alignkit.recipe.scorer_forms import parse
from alignkit.recipe.settings import PpoConfig
from alignkit.stages.cost import online_cost
from alignkit.stages.trial import online_trial
from alignkit.training.context import StageContext


def run(config: PpoConfig, context: StageContext) -> dict[str, Any]:
    """Train a policy with PPO; save its adapter, value model and metrics."""

    def advantages(rollout: Rollout, kl: Tensor, kl_coef: float) -> Targets:
        return ppo_targets(rollout, kl, kl_coef, config)

    def critic(backbone: Backbone, rewards: Rewards, iterations: int) -> ValueLearner:
        return start_value(backbone, config, context, rewards, iterations)

    return train_online(config, context, advantages, critic=critic)


trial, cost = online_trial, online_cost


def ppo_targets(rollout: Rollout, kl: Tensor, kl_coef: float, config: PpoConfig) -> Targets:
    """Advantages (whitened) and returns (not) of a rollout, both (completions, tokens)."""
    rewards = token_rewards(kl, rollout.scores, rollout.mask, kl_coef)
    if config.whiten_rewards:
        rewards = whiten(rewards, rollout.mask, shift_mean=False)
    advantages, returns = gae(
        rewards, rollout.values, rollout.mask, gamma=config.gamma, lam=config.lam
    )
    return Targets(whiten(advantages, rollout.mask), returns)


def start_value(
    backbone: Backbone, config: PpoConfig, context: StageContext, rewards: Rewards, iterations: int
) -> ValueLearner:
    """Start the value model from the first reward model, or from the policy with a zero head.

    Never on the policy's own adapter: training the value must not move the policy.
    """
    backbone.delete_adapter(VALUE)
    source = rewards.sources[0]
    common = (context.seed, iterations)
    if not isinstance(source, ModelReward):
        backbone.copy_adapter(POLICY, VALUE)
        hidden = backbone.base.config.get_text_config().hidden_size
        head = ScalarHead(hidden, zero=True).to(backbone.device)
        if config.value == "adapter":
            return OwnAdapter(backbone, config, head, *common, VALUE)
        size = config.rollout_forward_batch_size
        return FrozenTrunk(
            backbone,
            config,
            head,
            *common,
            VALUE,
            lambda samples: trunk_states(backbone, VALUE, samples, size),
        )
    directory = context.artifact(parse(config.reward_model[0]).argument) / "adapter"
    head = ScalarHead.load(directory).to(backbone.device)
    if config.value == "adapter":
        backbone.load_adapter(VALUE, directory, head=head)
        return OwnAdapter(backbone, config, head, *common, VALUE)
    source.keeps_states = True
    return FrozenTrunk(backbone, config, head, *common, source.model.adapter, source.states)
