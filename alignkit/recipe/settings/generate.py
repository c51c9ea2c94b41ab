"""Settings of `generate`."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from alignkit.recipe.settings.base import CANDIDATES, PROMPTS, About, Refers, StageConfig
from alignkit.recipe.settings.values import Count, NotNegative, Texts


class GenerateConfig(StageConfig):
    """Sample n completions per prompt from a policy, as candidates for people to rank."""

    kind: ClassVar[str] = "generate"
    about: ClassVar[About] = About(outputs={"": "candidates.jsonl"}, records=("candidates",))

    policy: Annotated[str | None, Refers("policy")] = None
    """Stage or run directory to sample from. Default: the run named as the model, or the bare
    model."""
    prompts: Annotated[Texts, PROMPTS] = Field(min_length=1)
    """Files with prompts. Only the prompts of rows with completions are read."""
    n: Count = 4
    """Completions per prompt."""
    temperature: NotNegative = 1.0
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the most likely tokens that together have this probability."""
    max_new_tokens: Count = 128
    """Maximum length of a completion, in tokens."""
    batch_size: Count = 32
    """Completions generated at a time. Lower it to save memory."""
    limit: Count | None = None
    """Use only the first N prompts."""
    merge: Annotated[Texts, CANDIDATES] = ()
    """Candidates files or generate stages whose completions of the same prompts are added."""
