"""Settings of `dpo`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from alignkit.recipe.settings.base import (
    RANKED,
    About,
    Count,
    Numbers,
    Positive,
    Texts,
    TrainingConfig,
    as_tuple,
    wrong,
)
from alignkit.recipe.settings.choices import PAIR_LOSSES, PairLoss, listed


class DpoConfig(TrainingConfig):
    """DPO and its relatives: the policy learns from preferences without a reward model."""

    kind: ClassVar[str] = "dpo"
    about: ClassVar[About] = About(
        makes="policy",
        card="A policy aligned with preferences by DPO",
        colour=1,
        trainer=("trl", "DPOConfig"),
    )

    data: Annotated[Texts, RANKED] = Field(min_length=1)
    """Preferences or rankings: a file in any format `data check` knows, or a rank stage."""
    eval_data: Annotated[Texts | None, RANKED] = None
    """Preferences to evaluate on. They take no part in training."""
    learning_rate: Positive = 5e-6
    """Peak step size. The default is meant for adapters, about ten times one for full weights."""
    beta: Positive = 0.1
    """Pull toward the reference: small lets the policy go far, large keeps it near."""
    loss_type: Annotated[
        tuple[PairLoss, ...],
        BeforeValidator(as_tuple, json_schema_input_type=PairLoss | list[PairLoss]),
    ] = Field(
        ("sigmoid",),
        description=f"Loss by TRL's name, or several to sum: {listed(PAIR_LOSSES)}.",
    )
    loss_weights: Numbers | None = None
    """Weight of each loss in loss_type; without it, each counts 1."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of preferences taken to be the wrong way round; works for sigmoid (cDPO) too."""
    reference: Literal["start", "backbone"] = "start"
    """What the policy is held to: a frozen copy of its starting adapter, or the bare model."""
    pairs: Literal["all", "adjacent", "best-worst", "best-vs-rest"] = "all"
    """Which pairs of a ranking of more than two become preferences."""
    weight: Literal["group", "pair"] = "group"
    """Weight of a prompt: 1 in all however many pairs it has, or 1 for each pair."""
    discopop_tau: Positive = 0.05
    """Temperature of the loss discopop; the others do not read it."""
    max_tokens_per_batch: Count | None = None
    """Most tokens in one forward pass: long rows go in smaller batches. Without it, only
    per_device_train_batch_size counts."""
    exact_padded: bool = False
    """Use TRL's own padded forward in place of the shared-prefix one: slower, for comparison."""
    cache_reference: Literal["auto", "always", "never"] = "auto"
    """Keep the reference's log-probabilities on disk: auto does if they are used again."""

    @model_validator(mode="after")
    def _weights_match_losses(self) -> DpoConfig:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise wrong(
                "loss_weights",
                f"loss_weights has {len(self.loss_weights)} values but loss_type has "
                f"{len(self.loss_type)}",
            )
        return self
