"""Settings of `dpo`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from alignkit.recipe.settings.base import RANKED, About, TrainingConfig
from alignkit.recipe.settings.choices import PAIR_LOSSES, PairLoss, listed
from alignkit.recipe.settings.values import Count, Numbers, Positive, Texts, as_tuple, wrong


class DpoConfig(TrainingConfig):
    """DPO and its relatives: train the policy on preferences, without a reward model."""

    kind: ClassVar[str] = "dpo"
    about: ClassVar[About] = About(
        makes="policy",
        card="A policy aligned with preferences by DPO",
        colour=1,
        trainer=("trl", "DPOConfig"),
    )

    data: Annotated[Texts, RANKED] = Field(min_length=1)
    """Preferences or rankings: a file in any format that `data check` recognises, or a rank
    stage."""
    eval_data: Annotated[Texts | None, RANKED] = None
    """Preferences to evaluate on; never trained on."""
    learning_rate: Positive = 5e-6
    """Peak learning rate. The default suits adapters: about ten times a rate for full
    fine-tuning."""
    beta: Positive = 0.1
    """Strength of the pull toward the reference: lower lets the policy move further away."""
    loss_type: Annotated[
        tuple[PairLoss, ...],
        BeforeValidator(as_tuple, json_schema_input_type=PairLoss | list[PairLoss]),
    ] = Field(
        ("sigmoid",),
        description=f"Loss by TRL's name, or several to sum: {listed(PAIR_LOSSES)}.",
    )
    loss_weights: Numbers | None = None
    """Weight of each loss in loss_type. Default: 1 each."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed fraction of preferences that are the wrong way round."""
    reference: Literal["start", "backbone"] = "start"
    """What the policy is compared with: a frozen copy of its starting adapter (start), or the bare
    model (backbone)."""
    pairs: Literal["all", "adjacent", "best-worst", "best-vs-rest"] = "all"
    """Pairs to take from a ranking of more than two completions."""
    weight: Literal["group", "pair"] = "group"
    """Total weight of a prompt: 1 however many pairs it has (group), or 1 per pair (pair)."""
    discopop_tau: Positive = 0.05
    """Temperature of the discopop loss; the other losses ignore it."""
    max_tokens_per_batch: Count | None = None
    """Maximum number of tokens per forward pass: long rows form smaller batches. Default: only
    per_device_train_batch_size limits a batch."""
    exact_padded: bool = False
    """Use TRL's own padded forward instead of the shared-prefix one: slower, for comparison."""
    cache_reference: Literal["auto", "always", "never"] = "auto"
    """Cache the reference's log-probabilities on disk; auto does so if they are used more than
    once."""

    @model_validator(mode="after")
    def _weights_match_losses(self) -> DpoConfig:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise wrong(
                "loss_weights",
                f"loss_weights has {len(self.loss_weights)} values but loss_type has "
                f"{len(self.loss_type)}",
            )
        return self
