"""Train a policy online from its settings: what PPO and RLOO do before and after their loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from alignkit.data.chat import Encoder
from alignkit.model.backbone import POLICY, REFERENCE, Backbone
from alignkit.model.probe import check_outputs
from alignkit.ppo.loop import Advantages, OnlineTrainer, check_ranks
from alignkit.ppo.prompts import read_prompts, stop_ids
from alignkit.ppo.ranks import join_ranks, rank, wait_for_all
from alignkit.ppo.rewards import Rewards, RolloutPrompt, open_judge, open_rewards
from alignkit.ppo.rollout import Sampler
from alignkit.ppo.validation import Validation, frontier, samples_over_time
from alignkit.ppo.value import ValueLearner
from alignkit.recipe.scorer_forms import parts
from alignkit.recipe.settings import OnlineConfig
from alignkit.scorers import Scorer
from alignkit.scorers.function import FunctionScorer, load_function
from alignkit.training.context import StageContext
from alignkit.training.trainer import (
    finish,
    moved_share,
    share_changed,
    snapshot,
    start_adapter,
    weight_change,
)

NewCritic = Callable[[Backbone, Rewards, int], ValueLearner]


def train_online(
    config: OnlineConfig,
    context: StageContext,
    advantages: Advantages,
    *,
    critic: NewCritic | None = None,
    completions_per_prompt: int = 1,
) -> dict[str, Any]:
    """Set the roles up, run the loop, and save the best policy in the stage's directory.

    `advantages` and `critic` are what tells PPO from RLOO. Return the stage's metrics.
    """
    for name in (*config.reward_model, *config.reward, config.alarm_judge or "gold"):
        for kind, part in parts(name):
            if kind == "function":
                load_function(part)  # fail before a model is loaded, not after
    join_ranks()
    check_ranks(config, completions_per_prompt)
    backbone = context.backbone
    encoder = Encoder(backbone.tokenizer)
    prompts, held_out = read_prompts(config, context, encoder)
    backbone.clear()
    start_adapter(backbone, POLICY, config, context)
    before = snapshot(backbone.parameters_of(POLICY))
    stops = stop_ids(config, encoder)
    sampler = Sampler(backbone, config, stops, start_reference(backbone, config))
    rewards = open_rewards(config, context, backbone, encoder.end_token_id)
    validation = None
    if held_out:
        judge = open_judge(config, context, backbone, encoder.end_token_id, held_out)
        validation = Validation(sampler, rewards, held_out, config, context.seed, judge)
        check_columns([judge] if judge else [], held_out)
    check_columns(rewards.sources, [*prompts, *held_out])
    episodes = config.iterations * config.rollout_batch_size
    if episodes != config.total_episodes:
        context.say(
            f"{config.iterations} iterations of {config.rollout_batch_size} completions: "
            f"{episodes} of total_episodes {config.total_episodes}"
        )
    trainer = OnlineTrainer(
        backbone,
        config,
        context,
        prompts,
        sampler,
        rewards,
        validation,
        critic(backbone, rewards, config.iterations) if critic is not None else None,
        advantages,
        completions_per_prompt,
    )
    metrics = trainer.run()
    if validation is not None and rank() == 0:
        metrics["frontier"] = frontier(context.metrics_file)
        metrics["samples"] = samples_over_time(trainer.samples_file)
    # Before the best policy is put back, which may be the untrained start.
    moved_share(before, backbone.parameters_of(POLICY))  # raises when no weight moved
    trainer.restore_best()
    metrics["moved_share"] = share_changed(before, backbone.parameters_of(POLICY))
    metrics["weight_change"] = weight_change(backbone.model, POLICY, before)
    if trainer.best and not trainer.state.best_iteration:
        context.say("no evaluation beat the starting policy, so that one is saved")
    return save_results(trainer, metrics)


def check_columns(rewards: Sequence[Scorer], prompts: Sequence[RolloutPrompt]) -> None:
    """Refuse a Python function that asks for a column the prompts' rows do not have."""
    for reward in rewards:
        if isinstance(reward, FunctionScorer):
            reward.check_columns(prompts)


def start_reference(backbone: Backbone, config: OnlineConfig) -> str | None:
    """Return the role that KL is measured to: a frozen copy of the policy, or the bare backbone."""
    if config.reference == "backbone":
        return None
    backbone.copy_adapter(POLICY, REFERENCE)
    return REFERENCE


def save_results(trainer: OnlineTrainer, metrics: dict[str, Any]) -> dict[str, Any]:
    """Save value, score scales and policy on rank 0, while the others wait; return the metrics."""
    backbone, context = trainer.backbone, trainer.context
    if rank() == 0:
        if trainer.critic is not None:
            critic = trainer.critic
            check_outputs(backbone, critic.adapter, critic.head)
            backbone.save_adapter(critic.adapter, context.directory / "value", head=critic.head)
        scales = orjson.dumps(metrics["score_scales"], option=orjson.OPT_APPEND_NEWLINE)
        (context.directory / "score_scales.json").write_bytes(scales)
        metrics = finish(backbone, POLICY, context, metrics)
    wait_for_all()
    return metrics
