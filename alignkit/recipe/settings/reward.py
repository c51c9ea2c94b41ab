"""Settings of `reward`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from alignkit.recipe.settings.base import (
    RANKED,
    About,
    Count,
    NotNegative,
    Positive,
    Texts,
    TrainingConfig,
    wrong,
)
from alignkit.recipe.settings.choices import OBJECTIVES, Objective, listed


class RewardConfig(TrainingConfig):
    """Reward model: an adapter and a head that score completions as people ranked them."""

    kind: ClassVar[str] = "reward"
    about: ClassVar[About] = About(
        makes="reward",
        card="A reward model trained from rankings",
        colour=4,
        trainer=("transformers", "TrainingArguments"),
    )

    data: Annotated[Texts, RANKED] = Field(min_length=1)
    """Rankings or preferences: a file in any format `data check` knows, or a rank stage."""
    eval_data: Annotated[Texts | None, RANKED] = None
    """Rankings to evaluate on. They take no part in training."""
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the prompts held out of `data` for evaluation when there is no eval_data; all rows
    of one prompt stay on one side."""
    objective: Objective = Field(
        "pairs",
        description=f"What a ranking of more than two means: {listed(OBJECTIVES)}. Each completion "
        "is forwarded once either way.",
    )
    weight: Literal["group", "pair"] = "group"
    """Weight of a prompt: 1 in all however many pairs it has, or 1 for each pair."""
    ties: Literal["drop", "half"] = "drop"
    """Equal ranks: left out, or a pair that is half a win for each side."""
    margin: bool = True
    """Ask for a difference of at least a pair's recorded margin, where it has one."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels taken to be wrong; keeps scores of noisy rankings from running away."""
    center_rewards_coefficient: NotNegative | None = None
    """Weight of the square of a pair's summed scores: pulls the mean score to zero."""
    head_learning_rate: Positive | None = None
    """Step size of the scalar head; without it, learning_rate."""
    early_stopping_patience: Count | None = None
    """Evaluations without a better held-out accuracy before stopping at the best one seen."""

    @model_validator(mode="after")
    def _patience_needs_evaluations(self) -> RewardConfig:
        if self.early_stopping_patience and self.eval_strategy == "no":
            raise wrong(
                "early_stopping_patience",
                "early_stopping_patience needs eval_strategy 'steps' or 'epoch'",
            )
        return self
