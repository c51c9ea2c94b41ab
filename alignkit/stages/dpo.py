"""DPO and its relatives: TRL's trainer, our forward, losses and reference.

policy    <- the starting adapter, in fp32
reference <- a frozen copy of it, or the bare backbone
each step:  log-probs of chosen and rejected under both, prompt read once
            loss of the pairs, weighted; one AdamW step on the policy
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alignkit.data.chat import Encoder
from alignkit.data.read import load_preferences, stream_preferences
from alignkit.errors import RecipeError, TrainingFailed
from alignkit.forward.logps import Group, Path, completion_logps
from alignkit.model.backbone import POLICY, REFERENCE, Backbone
from alignkit.recipe.settings import DpoConfig
from alignkit.recipe.settings.choices import PAIR_LOSSES as CHOICES
from alignkit.stages.cost import training_cost
from alignkit.stages.trial import training_trial
from alignkit.training.batching import FittingSteps, token_loader
from alignkit.training.checkpoints import SealedCheckpoints
from alignkit.training.context import StageContext
from alignkit.training.data import load_rows
from alignkit.training.losses import PAIR_LOSSES, PairLogps, PairSettings
from alignkit.training.reference_cache import ReferenceCache, ReferenceIdentity, open_cache
from alignkit.training.rows import PairRow, pair_row
from alignkit.training.token_rows import TokenRows
from alignkit.training.trainer import (
    batches,
    callbacks,
    end_reports,
    finish,
    fit,
    prepare,
    start_adapter,
    trainer_arguments,
    undisturbed,
    without_dropout,
)
from alignkit.training.trl import DPOConfig, TokenDpoTrainer

Batch = Mapping[str, Any]


def run(config: DpoConfig, context: StageContext) -> dict[str, Any]:
    """Train a policy on preferences; save its adapter and metrics."""
    train, held_out = _rows(config, context)
    backbone = context.backbone
    continued = start_adapter(backbone, POLICY, config, context)
    trainer = _trainer(config, context, train, held_out)
    _check_start(trainer, train[: config.per_device_eval_batch_size], config, continued)
    with trainer.cached_reference(train), without_dropout(backbone.model):
        budget = config.max_tokens_per_batch
        metrics = fit(trainer, backbone.parameters_of(POLICY), context, POLICY, budget)
        if held_out:
            metrics |= trainer.evaluate()
    end_reports(trainer)
    return finish(backbone, POLICY, context, metrics | {"pairs": len(train)})


trial, cost = training_trial(load_preferences, "pairs", "weight"), training_cost


class PairTrainer(FittingSteps, SealedCheckpoints, TokenDpoTrainer):
    """TRL's DPO trainer with our loss on the log-probs of whole groups."""

    model: Any

    def attach(self, backbone: Backbone, config: DpoConfig, pad_token_id: int) -> None:
        """Give the trainer what its loss needs."""
        self.backbone = backbone
        self.config = config
        self.pad = pad_token_id
        self.settings = PairSettings(config.beta, config.label_smoothing, config.discopop_tau)
        self.reference_role = REFERENCE if config.reference == "start" else None
        self.cache: ReferenceCache | None = None
        self.can_split = not any(CHOICES[name].whole_batch for name in config.loss_type)

    @contextmanager
    def cached_reference(self, rows: Sequence[PairRow]) -> Iterator[None]:
        """Read reference log-probs from disk inside, if `cache_reference` says so."""
        role, backbone = self.reference_role, self.backbone
        identity = ReferenceIdentity(
            backbone=backbone.fingerprint,
            adapter=None if role is None else backbone.adapter_hash(role),
            dtype=str(backbone.dtype),
            path="padded" if self.config.exact_padded else "auto",
        )
        sample = [Group(row.prompt, (row.chosen, row.rejected)) for row in rows[:64]]
        epochs = self.args.num_train_epochs
        self.cache = open_cache(self.config.cache_reference, identity, sample, epochs=epochs)
        try:
            yield
        finally:
            if self.cache is not None:
                self.cache.close()
                self.cache = None

    def get_train_dataloader(self) -> Any:
        """Batches of at most `max_tokens_per_batch` tokens, if set."""
        budget = self.config.max_tokens_per_batch
        if budget is None:
            return super().get_train_dataloader()
        return token_loader(self, budget, max_items=self.args.per_device_train_batch_size)

    def _compute_loss(self, model: Any, inputs: Batch, return_outputs: bool) -> Tensor:
        del model, return_outputs
        pair = self.pair_logps(inputs)
        weights = inputs["weights"].to(pair.chosen.device)
        losses = combined_losses(pair, weights, self.config, self.settings)
        if not self.is_measuring:
            # A loss of the whole batch is one number for all pairs: log-probs tell them apart.
            apart = losses if self.can_split else pair.chosen + pair.rejected
            self.note_rows(apart, inputs["where"])
            self._note(pair)
        return losses.mean() * self.share

    def pair_logps(self, inputs: Batch) -> PairLogps:
        """Log-probs under policy and reference; the reference's are cached or computed here."""
        reference_chosen, reference_rejected = self.reference_logps(inputs).unbind(1)
        policy = self._logps(self.model, inputs["groups"])
        chosen, rejected = policy.sums.view(-1, 2).unbind(1)
        chosen_lengths, rejected_lengths = policy.lengths.view(-1, 2).unbind(1)
        return PairLogps(
            chosen,
            rejected,
            reference_chosen,
            reference_rejected,
            chosen_lengths,
            rejected_lengths,
        )

    @torch.no_grad()
    def reference_logps(self, inputs: Batch) -> Tensor:
        """(pairs, 2): chosen and rejected under the reference."""
        if self.cache is None:
            return self._live_reference(inputs["groups"]).view(-1, 2)
        known = self.cache.sums(inputs["groups"], self._live_reference)
        return known.to(self.backbone.device).view(-1, 2)

    def _live_reference(self, groups: Sequence[Group]) -> Tensor:
        with self.backbone.role(self.reference_role) as model:
            sums: Tensor = self._logps(model, groups).sums
            return sums

    def _logps(self, model: Any, groups: Sequence[Group]) -> Any:
        path: Path = "padded" if self.config.exact_padded else "auto"
        return completion_logps(model, groups, pad_token_id=self.pad, path=path)

    def _note(self, pair: PairLogps) -> None:
        """Record metrics by TRL's names, as tensors until they are logged: no sync with the GPU."""
        beta = self.config.beta
        chosen, rejected = beta * pair.chosen_ratio.detach(), beta * pair.rejected_ratio.detach()
        for name, value in {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": (chosen > rejected).float(),
            "rewards/margins": chosen - rejected,
            "logps/chosen": pair.chosen.detach(),
            "logps/rejected": pair.rejected.detach(),
            "kl": squared_log_ratio(pair),
        }.items():
            self.note(name, self.accelerator.gather(value).mean())


def squared_log_ratio(pair: PairLogps) -> Tensor:
    """Half the squared log-ratio to the reference of both completions, (2 * pairs,), nats.

    The k2 estimate (Schulman, "Approximating KL divergence", 2020) of KL per completion, on the
    batch's completions rather than the policy's own: it shows drift, the evaluation shows KL.
    """
    ratios = torch.cat([pair.chosen_ratio, pair.rejected_ratio]).detach()
    return ratios**2 / 2


def combined_losses(
    pair: PairLogps, weights: Tensor, config: DpoConfig, settings: PairSettings
) -> Tensor:
    """Weighted sum of the losses in `loss_type`, one for each pair, (pairs,)."""
    shares = config.loss_weights or [1.0] * len(config.loss_type)
    total = torch.zeros_like(pair.chosen)
    for name, share in zip(config.loss_type, shares, strict=True):
        total = total + share * (PAIR_LOSSES[name](pair, settings) * weights)
    return total


def collate(rows: Sequence[Mapping[str, Any]], usual_weight: float = 1.0) -> dict[str, Any]:
    """Rows to groups of two completions; `weights` is (pairs,), those of `usual_weight` are 1."""
    return {
        "where": [row["where"] for row in rows],
        "weights": torch.tensor([row["weight"] / usual_weight for row in rows]),
        "groups": [Group(row["prompt"], (row["chosen"], row["rejected"])) for row in rows],
    }


def check_losses(config: DpoConfig, weighted: bool) -> None:
    """Raise RecipeError for a loss that these settings or these weights do not fit."""
    for name in config.loss_type:
        loss = CHOICES[name]
        if weighted and not loss.takes_weights:
            raise RecipeError(
                f"loss_type {name} sorts the batch, so a pair's weight has no place in it",
                hint="set weight: pair, or pairs: best-worst",
            )
        setting, hint = loss.needs or ("", "")
        if setting and not getattr(config, setting):
            raise RecipeError(f"loss_type {name} needs {setting} above 0", hint=hint)


def _rows(
    config: DpoConfig, context: StageContext
) -> tuple[TokenRows[PairRow], TokenRows[PairRow]]:
    encoder = Encoder(context.backbone.tokenizer)
    train, held_out = load_rows(
        PairRow,
        partial(stream_preferences, pairs=config.pairs, weight=config.weight),
        partial(pair_row, encoder=encoder),
        config,
        context,
        encoder=encoder,
    )
    check_losses(config, len(set(train.dataset["weight"][:])) > 1)
    return train, held_out


def collator(rows: TokenRows[PairRow]) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]:
    """Make a collator that scales weights to a mean of 1, so that they keep the step size."""
    weights = rows.dataset["weight"][:]
    return partial(collate, usual_weight=sum(weights) / len(weights))


def _trainer(
    config: DpoConfig,
    context: StageContext,
    train: TokenRows[PairRow],
    held_out: TokenRows[PairRow],
) -> PairTrainer:
    arguments = trainer_arguments(
        DPOConfig,
        config,
        context,
        beta=config.beta,
        loss_type=list(config.loss_type),
        loss_weights=list(config.loss_weights) if config.loss_weights else None,
        label_smoothing=config.label_smoothing,
        disable_dropout=False,
        max_length=None,
    )
    backbone = context.backbone
    with warnings.catch_warnings(), undisturbed(backbone, POLICY):
        warnings.simplefilter("ignore")
        trainer = PairTrainer(
            model=backbone.model,
            args=arguments,
            train_dataset=train.dataset,
            eval_dataset=held_out.dataset if held_out else None,
            processing_class=backbone.tokenizer,
            data_collator=collator(train),
            callbacks=callbacks(config, context, "dpo"),
        )
    trainer.sizes = train.sizes
    trainer.attach(backbone, config, Encoder(backbone.tokenizer).pad_token_id)
    prepare(trainer, backbone, POLICY)
    return trainer


@torch.no_grad()
def _check_start(
    trainer: PairTrainer, rows: Sequence[PairRow], config: DpoConfig, continued: bool
) -> None:
    """Raise TrainingFailed when policy and reference differ before the first step."""
    if config.reference == "backbone" and continued:
        return
    for part in batches(rows, config.per_device_train_batch_size):
        inputs = collate([vars(row) for row in part])
        with trainer.backbone.role(POLICY):
            pair = trainer.pair_logps(inputs)
        gap = torch.cat([pair.chosen_ratio, pair.rejected_ratio]).abs().max().item()
        if gap > (1e-3 if trainer.backbone.dtype == torch.float32 else 0.5):
            raise TrainingFailed(
                f"the policy differs from its reference by {gap:.3g} nats before the first step",
                hint="the reference must be a copy of the adapter the policy starts from",
            )
