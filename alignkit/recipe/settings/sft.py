"""Settings of `sft`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from alignkit.recipe.settings.base import DEMONSTRATED, About, TrainingConfig
from alignkit.recipe.settings.values import Positive, Texts


class SftConfig(TrainingConfig):
    """Supervised fine-tuning: train the policy to imitate demonstrations."""

    kind: ClassVar[str] = "sft"
    about: ClassVar[About] = About(
        makes="policy",
        card="A policy fine-tuned on demonstrations",
        colour=0,
        trainer=("trl", "SFTConfig"),
    )

    data: Annotated[Texts, DEMONSTRATED] = Field(min_length=1)
    """Demonstrations: prompts with a good completion, in any format that `data check`
    recognises."""
    eval_data: Annotated[Texts | None, DEMONSTRATED] = None
    """Demonstrations to evaluate on; never trained on."""
    learning_rate: Positive = 2e-4
    """Peak learning rate. The default suits adapters: about ten times a rate for full
    fine-tuning."""
    train_on: Literal["completion", "all"] = "completion"
    """Tokens to learn: those of the assistant, or all, prompts included."""
    packing: bool = False
    """Fill each forward pass with rows, up to per_device_train_batch_size times max_length tokens,
    instead of taking a fixed number of rows: fewer steps when rows are short. Rows never attend to
    each other."""
