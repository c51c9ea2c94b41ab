"""Settings of `ppo`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from alignkit.recipe.settings.base import About, CountOrNone, NotNegative, Positive, Share, wrong
from alignkit.recipe.settings.online import OnlineConfig


class PpoConfig(OnlineConfig):
    """PPO: the policy learns from a reward model, held near its start by a KL penalty."""

    kind: ClassVar[str] = "ppo"
    about: ClassVar[About] = About(
        makes="policy", card="A policy aligned with a reward model by PPO", colour=2
    )

    value: Literal["head", "adapter"] = "head"
    """What learns the value: a head with a small network on the frozen states of the reward model
    (one forward scores and values), or an adapter of its own, as dear as the policy's update."""
    value_learning_rate: Positive | None = None
    """Peak step size of the value; without it 0.64 / hidden size for a head, learning_rate for an
    adapter."""
    value_warmup: CountOrNone = 0
    """First iterations in which only the value is trained and the policy stays as it is."""
    cliprange_value: Positive = 0.2
    """How far a value may move from the rollout's in one iteration's loss."""
    vf_coef: NotNegative = 0.1
    """Weight of the value loss."""
    gamma: Share = 1.0
    """Discount of later rewards; 1 for completions that end."""
    lam: Share = 0.95
    """GAE's lambda: 1 is unbiased and noisy, less trusts the value head."""
    whiten_rewards: bool = False
    """Scale rewards of a batch to variance 1 before advantages are computed."""

    @model_validator(mode="after")
    def _the_policy_has_a_turn(self) -> PpoConfig:
        if self.value_warmup >= self.iterations:
            raise wrong(
                "value_warmup",
                f"value_warmup {self.value_warmup} leaves none of {self.iterations} iterations "
                "(total_episodes / rollout_batch_size) to the policy",
            )
        return self
