"""Settings of `ppo`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from alignkit.recipe.settings.base import About
from alignkit.recipe.settings.online import OnlineConfig
from alignkit.recipe.settings.values import CountOrNone, NotNegative, Positive, Share, wrong


class PpoConfig(OnlineConfig):
    """PPO: train the policy on a reward model's scores; a KL penalty keeps it near its start."""

    kind: ClassVar[str] = "ppo"
    about: ClassVar[About] = About(
        makes="policy", card="A policy aligned with a reward model by PPO", colour=2
    )

    value: Literal["head", "adapter"] = "head"
    """Value model: a head with a small network on the frozen states of the reward model (one
    forward pass gives score and value), or an adapter of its own, as expensive as the policy's
    update."""
    value_learning_rate: Positive | None = None
    """Peak learning rate of the value model. Default: 0.64 / hidden size for a head, learning_rate
    for an adapter."""
    value_warmup: CountOrNone = 0
    """Number of first iterations that train the value model alone and leave the policy as it is."""
    cliprange_value: Positive = 0.2
    """Clip range of the value loss: how far a value may move from the rollout's."""
    vf_coef: NotNegative = 0.1
    """Weight of the value loss."""
    gamma: Share = 1.0
    """Discount of later rewards; 1 suits completions that end."""
    lam: Share = 0.95
    """GAE's lambda: 1 is unbiased and noisy; less relies more on the value model."""
    whiten_rewards: bool = False
    """Scale the rewards of a batch to variance 1 before computing advantages."""

    @model_validator(mode="after")
    def _the_policy_has_a_turn(self) -> PpoConfig:
        if self.value_warmup >= self.iterations:
            raise wrong(
                "value_warmup",
                f"value_warmup {self.value_warmup} leaves none of {self.iterations} iterations "
                "(total_episodes / rollout_batch_size) to the policy",
            )
        return self
