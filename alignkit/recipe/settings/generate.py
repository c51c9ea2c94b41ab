"""Settings of `generate`."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from alignkit.recipe.settings.base import (
    CANDIDATES,
    PROMPTS,
    About,
    Count,
    NotNegative,
    Refers,
    StageConfig,
    Texts,
)


class GenerateConfig(StageConfig):
    """Completions sampled from a policy, n for each prompt, as candidates for people to rank."""

    kind: ClassVar[str] = "generate"
    about: ClassVar[About] = About(outputs={"": "candidates.jsonl"}, records=("candidates",))

    policy: Annotated[str | None, Refers("policy")] = None
    """Stage or run directory to sample from; without it, the run named as the model, or the bare
    model."""
    prompts: Annotated[Texts, PROMPTS] = Field(min_length=1)
    """Files with prompts; of records with completions only the prompts are read."""
    n: Count = 4
    """Completions for each prompt."""
    temperature: NotNegative = 1.0
    """Above 1 is more varied, below 1 more certain, 0 always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    max_new_tokens: Count = 128
    """Longest completion, in tokens."""
    batch_size: Count = 32
    """Completions written at a time; lower it to save memory."""
    limit: Count | None = None
    """Only the first so many prompts."""
    merge: Annotated[Texts, CANDIDATES] = ()
    """Candidates files or generate stages whose completions of the same prompts are added."""
