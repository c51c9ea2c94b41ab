"""Settings of `sft`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from alignkit.recipe.settings.base import DEMONSTRATED, About, Positive, Texts, TrainingConfig


class SftConfig(TrainingConfig):
    """Supervised fine-tuning: the policy learns to say what demonstrations say."""

    kind: ClassVar[str] = "sft"
    about: ClassVar[About] = About(
        makes="policy",
        card="A policy fine-tuned on demonstrations",
        colour=0,
        trainer=("trl", "SFTConfig"),
    )

    data: Annotated[Texts, DEMONSTRATED] = Field(min_length=1)
    """Demonstrations: prompts with a good completion, in any format `data check` knows."""
    eval_data: Annotated[Texts | None, DEMONSTRATED] = None
    """Demonstrations to evaluate on. They take no part in training."""
    learning_rate: Positive = 2e-4
    """Peak step size. The default is meant for adapters, about ten times one for full weights."""
    train_on: Literal["completion", "all"] = "completion"
    """Which tokens are learned: those the assistant says, or all, prompts too."""
    packing: bool = False
    """Fill each forward pass with rows up to per_device_train_batch_size times max_length tokens,
    in place of that many rows: fewer steps where rows are short. Rows never see each other."""
