"""Settings of `rloo`."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from alignkit.recipe.settings.base import About
from alignkit.recipe.settings.online import OnlineConfig
from alignkit.recipe.settings.values import wrong


class RlooConfig(OnlineConfig):
    """RLOO: PPO without a value model; each completion is compared with the others of its
    prompt."""

    kind: ClassVar[str] = "rloo"
    about: ClassVar[About] = About(
        makes="policy", card="A policy aligned with a reward model by RLOO", colour=3
    )

    rloo_k: Annotated[int, Field(ge=2)] = 2
    """Completions per prompt; the baseline of each is the mean of the others."""
    normalize_advantage: bool = False
    """Whiten advantages over the whole batch."""

    @property
    def completions_per_prompt(self) -> int:
        """The completions that are compared with each other."""
        return self.rloo_k

    @model_validator(mode="after")
    def _groups_are_whole(self) -> RlooConfig:
        if self.rollout_batch_size % self.rloo_k:
            raise wrong(
                "rloo_k",
                f"rloo_k {self.rloo_k} does not divide rollout_batch_size "
                f"{self.rollout_batch_size}",
            )
        return self
