"""Settings of `split`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from alignkit.recipe.settings.base import About, Source, StageConfig, Texts


class SplitConfig(StageConfig):
    """Data in two parts by prompt: `NAME` is the training part, `NAME.held_out` the other."""

    kind: ClassVar[str] = "split"
    about: ClassVar[About] = About(
        outputs={"": "train.jsonl", "held_out": "held_out.jsonl"},
        records=("demonstration", "preference", "ranking", "prompt"),
    )

    data: Annotated[Texts, Source(records=("preference", "ranking"))] = Field(min_length=1)
    """Files to split, in any format `data check` knows."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the prompts in the held-out part; all rows of one prompt stay on one side."""
    format: str | None = None
    """Format of the files; without it, it is found and named."""
    on_bad_row: Literal["error", "drop"] = "error"
    """A row that cannot be read: stop, or leave it out and say which."""
