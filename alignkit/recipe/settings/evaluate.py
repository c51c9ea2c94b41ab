"""Settings of `evaluate`."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from alignkit.recipe.settings.base import PROMPTS, About, Count, Numbers, Refers, StageConfig, Texts


class EvaluateConfig(StageConfig):
    """Policies compared on prompts they have not seen: scores, lengths, KL, win rates."""

    kind: ClassVar[str] = "evaluate"
    about: ClassVar[About] = About(version=2)

    policies: Annotated[Texts, Refers("policy", words=("base",))] = Field(min_length=1)
    """Stages or run directories to compare; base is the bare model."""
    baseline: Annotated[str, Refers("policy", words=("base",))]
    """The one the others must beat; KL is measured to it as well."""
    judge: Annotated[Texts, Refers("reward", words=("gold",))] = ("gold",)
    """Who decides: gold (the embedded task's own scoring), a reward stage, or a reward run; the
    first one decides the win rates of the table."""
    reward_model: Annotated[str | None, Refers("reward")] = None
    """Reward stage or run whose score is reported beside the verdicts."""
    prompts: Annotated[Texts, PROMPTS] = Field(min_length=1)
    """Files with prompts that took no part in training."""
    temperatures: Numbers = (1.0, 0.0)
    """Sampling temperatures to compare at: 0 is greedy. One alone can mislead."""
    max_new_tokens: Count = 128
    """Longest completion, in tokens."""
    batch_size: Count = 64
    """Completions written at a time; lower it to save memory."""
    limit: Count | None = None
    """Only the first so many prompts."""
    n_samples: Count = 1
    """Completions of each policy for each prompt at temperatures above 0."""

    @field_validator("temperatures")
    @classmethod
    def _temperatures_are_not_negative(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values or min(values) < 0:
            raise ValueError("temperatures must be 0 or more, and at least one")
        return values
