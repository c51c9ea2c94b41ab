"""Settings of `rank`."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from alignkit.recipe.settings.base import CANDIDATES, About, Refers, StageConfig
from alignkit.recipe.settings.values import NotNegative, Texts


class RankConfig(StageConfig):
    """Rank candidates with a judge that stands in for people."""

    kind: ClassVar[str] = "rank"
    about: ClassVar[About] = About(outputs={"": "rankings.jsonl"}, records=("ranking",))

    candidates: Annotated[Texts, CANDIDATES] = Field(min_length=1)
    """Candidates files or generate stages to rank."""
    judge: Annotated[str, Refers("reward", by="scorer", functions=True)] = "gold"
    """Judge: gold (the embedded task's own score), a reward stage or run, a Python function
    `module:function`, or an HTTP service that scores."""
    noise: NotNegative = 0.0
    """Standard deviation of the normal noise added to every score, to imitate disagreement."""
