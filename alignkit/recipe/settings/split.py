"""Settings of `split`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from alignkit.recipe.settings.base import About, Reads, StageConfig
from alignkit.recipe.settings.values import Texts

# What is trained on comes out as it went in.
SPLIT = ("demonstration", "preference", "ranking", "prompt")


class SplitConfig(StageConfig):
    """Split data in two by prompt: `NAME` is the training part, `NAME.held_out` the other."""

    kind: ClassVar[str] = "split"
    about: ClassVar[About] = About(
        outputs={"": "train.jsonl", "held_out": "held_out.jsonl"},
        records=SPLIT,
    )

    data: Annotated[Texts, Reads(records=("any", *SPLIT))] = Field(min_length=1)
    """Files to split, in any format that `data check` recognises."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of the prompts in the held-out part. All rows of a prompt stay on the same side."""
    format: str | None = None
    """Format of the files. Default: detected, and reported."""
    on_bad_row: Literal["error", "drop"] = "error"
    """What to do with a row that cannot be read: stop, or drop it and report it."""
