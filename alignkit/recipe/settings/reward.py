"""Settings of `reward`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from alignkit.recipe.settings.base import RANKED, About, TrainingConfig
from alignkit.recipe.settings.choices import OBJECTIVES, Objective, listed
from alignkit.recipe.settings.values import Count, NotNegative, Positive, Texts, wrong


class RewardConfig(TrainingConfig):
    """Reward model: train an adapter and a scalar head to score completions as people ranked
    them."""

    kind: ClassVar[str] = "reward"
    about: ClassVar[About] = About(
        makes="reward",
        card="A reward model trained from rankings",
        colour=4,
        trainer=("transformers", "TrainingArguments"),
    )

    data: Annotated[Texts, RANKED] = Field(min_length=1)
    """Rankings or preferences: a file in any format that `data check` recognises, or a rank
    stage."""
    eval_data: Annotated[Texts | None, RANKED] = None
    """Rankings to evaluate on; never trained on."""
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Fraction of the prompts in `data` to hold out for evaluation when eval_data is not set. All
    rows of a prompt stay on the same side."""
    objective: Objective = Field(
        "pairs",
        description=f"Loss of a ranking of more than two completions: {listed(OBJECTIVES)}. Each "
        "completion is forwarded once either way.",
    )
    weight: Literal["group", "pair"] = "group"
    """Total weight of a prompt: 1 however many pairs it has (group), or 1 per pair (pair)."""
    ties: Literal["drop", "half"] = "drop"
    """Equal ranks: drop them, or count them as half a win for each side."""
    margin: bool = True
    """Require a score difference of at least the pair's recorded margin, where it has one."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed fraction of wrong labels. It keeps scores from diverging when rankings are noisy."""
    center_rewards_coefficient: NotNegative | None = None
    """Weight of the squared sum of a pair's scores, which pulls the mean score to zero."""
    head_learning_rate: Positive | None = None
    """Learning rate of the scalar head. Default: learning_rate."""
    early_stopping_patience: Count | None = None
    """Stop after this many evaluations without a better held-out accuracy; the best weights are
    restored."""

    @model_validator(mode="after")
    def _patience_needs_evaluations(self) -> RewardConfig:
        if self.early_stopping_patience and self.eval_strategy == "no":
            raise wrong(
                "early_stopping_patience",
                "early_stopping_patience needs eval_strategy 'steps' or 'epoch'",
            )
        return self
