"""Settings of `evaluate`."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from alignkit.recipe.settings.base import PROMPTS, About, Refers, StageConfig
from alignkit.recipe.settings.values import Count, Numbers, Texts


class EvaluateConfig(StageConfig):
    """Compare policies on unseen prompts: scores, lengths, KL, win rates."""

    kind: ClassVar[str] = "evaluate"
    about: ClassVar[About] = About(version=3)

    policies: Annotated[Texts, Refers("policy", words=("base",))] = Field(min_length=1)
    """Stages or run directories to compare; base is the bare model."""
    baseline: Annotated[str, Refers("policy", words=("base",))]
    """Policy that the others are compared with; KL is measured to it too."""
    judge: Annotated[Texts, Refers("reward", by="judge", functions=True)] = ("gold",)
    """Judges, written as for `eval winrate --judge`: gold (the embedded task's own score), a reward
    stage or run, `module:function`, `llm:MODEL@URL`, `human:VOTES,CANDIDATES`, `bleu:FILE` (or
    chrf, rouge, exact, f1), `panel:A+B`, or an HTTP service that scores. The first one decides the
    win rates of the table."""
    reward_model: Annotated[str | None, Refers("reward")] = None
    """Reward stage or run whose score is reported next to the verdicts."""
    prompts: Annotated[Texts, PROMPTS] = Field(min_length=1)
    """Files with prompts that were not trained on."""
    temperatures: Numbers = (1.0, 0.0)
    """Sampling temperatures to compare at; 0 is greedy. One alone can mislead."""
    max_new_tokens: Count = 128
    """Maximum length of a completion, in tokens."""
    batch_size: Count = 64
    """Completions generated at a time. Lower it to save memory."""
    limit: Count | None = None
    """Use only the first N prompts."""
    n_samples: Count = 1
    """Completions per policy and prompt at temperatures above 0."""

    @field_validator("temperatures")
    @classmethod
    def _temperatures_are_not_negative(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values or min(values) < 0:
            raise ValueError("temperatures must be 0 or more, and at least one")
        return values
