"""Supervised fine-tuning: TRL's trainer, our rows and our forward.

rows <- conversations through the chat template once, targets marked
each step: negative log-prob of the targets, mean over all of the batch's; one AdamW step
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from alignkit.data.chat import Encoder
from alignkit.data.read import load_demonstrations, stream_demonstrations
from alignkit.data.records import Demonstration
from alignkit.forward.logps import sequence_logps
from alignkit.model.backbone import POLICY
from alignkit.recipe.settings import SftConfig
from alignkit.stages.cost import training_cost
from alignkit.stages.trial import training_trial
from alignkit.training.batching import FittingSteps, token_loader
from alignkit.training.checkpoints import SealedCheckpoints
from alignkit.training.context import StageContext
from alignkit.training.data import load_rows
from alignkit.training.rows import Answers, SftRow, sft_rows
from alignkit.training.token_rows import TokenRows
from alignkit.training.trainer import (
    callbacks,
    end_reports,
    finish,
    fit,
    prepare,
    start_adapter,
    trainer_arguments,
    undisturbed,
)
from alignkit.training.trl import SFTConfig, TokenSftTrainer


def run(config: SftConfig, context: StageContext) -> dict[str, Any]:
    """Train an adapter on demonstrations; save it and its metrics."""
    backbone = context.backbone
    encoder = Encoder(backbone.tokenizer)

    answers = Answers()

    def make(record: Demonstration) -> list[SftRow]:
        rows = sft_rows(record, encoder, config.train_on)
        answers.count(record, rows, config.train_on)
        return rows

    train, held_out = load_rows(
        SftRow, stream_demonstrations, make, config, context, encoder=encoder
    )
    for line in answers.lines():
        context.say(line)
    targets = describe_targets(train, encoder.stop_token_ids)
    context.say(
        f"{targets['trained_share']:.1%} of {targets['tokens']:,} tokens are trained, "
        f"{targets['eos_share']:.1%} of targets end in EOS"
    )
    start_adapter(backbone, POLICY, config, context)
    trainer = _trainer(config, context, train, held_out)
    metrics = fit(trainer, backbone.parameters_of(POLICY), context, POLICY)
    if held_out:
        metrics |= trainer.evaluate()
    end_reports(trainer)
    return finish(backbone, POLICY, context, targets | metrics | {"rows": len(train)})


trial, cost = training_trial(load_demonstrations), training_cost


def describe_targets(rows: Sequence[SftRow], stops: frozenset[int]) -> dict[str, float]:
    """Share of tokens that are trained, and of rows whose last target is a stop token."""
    tokens = trained = ended = 0
    for row in rows:
        tokens += len(row.ids)
        trained += sum(row.trained)
        ended += row.trained[-1] and row.ids[-1] in stops
    return {
        "tokens": tokens,
        "trained_share": trained / max(tokens, 1),
        "eos_share": ended / max(len(rows), 1),
    }


class DemonstrationTrainer(FittingSteps, SealedCheckpoints, TokenSftTrainer):
    """TRL's SFT trainer with its loss computed on targets only, rows packed without padding."""

    model: Any
    pad: int
    max_tokens: int | None = None

    def get_train_dataloader(self) -> Any:
        """Batches filled with rows up to `max_tokens`, if set."""
        if self.max_tokens is None:
            return super().get_train_dataloader()
        return token_loader(self, self.max_tokens)

    @property
    def most_rows(self) -> int:
        """Rows of the largest possible batch."""
        if self.max_tokens is None:
            return self.usual_rows
        return max(1, sum(total <= self.max_tokens for total in accumulate(sorted(self.sizes))))

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Summed negative log-prob over the targets of the whole optimizer step."""
        del model, return_outputs
        logps = sequence_logps(self.model, inputs["ids"], inputs["masks"], pad_token_id=self.pad)
        targets = num_items_in_batch if num_items_in_batch is not None else logps.per_token.numel()
        loss = -logps.per_token.sum() / torch.as_tensor(targets, device=logps.per_token.device)
        if num_items_in_batch is None:
            loss = loss * self.share
        if not self.is_measuring:
            self.note_rows(logps.sums, inputs["where"])
            self.note("mean_token_logp", logps.per_token.detach().mean())
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return loss


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as lists, and `labels` by which the trainer counts targets across accumulation."""
    width = max(len(row["ids"]) for row in rows)
    labels = torch.full((len(rows), width), -100)
    for i, row in enumerate(rows):
        ids, trained = torch.tensor(row["ids"]), torch.tensor(row["trained"])
        labels[i, : len(ids)] = torch.where(trained, ids, -100)
    return {
        "labels": labels,
        "where": [row["where"] for row in rows],
        "ids": [row["ids"] for row in rows],
        "masks": [row["trained"] for row in rows],
    }


def _trainer(
    config: SftConfig, context: StageContext, train: TokenRows[SftRow], held_out: TokenRows[SftRow]
) -> DemonstrationTrainer:
    backbone = context.backbone
    arguments = trainer_arguments(SFTConfig, config, context, max_length=None, packing=False)
    with warnings.catch_warnings(), undisturbed(backbone, POLICY):
        warnings.simplefilter("ignore")
        trainer = DemonstrationTrainer(
            model=backbone.model,
            args=arguments,
            train_dataset=train.dataset,
            eval_dataset=held_out.dataset if held_out else None,
            processing_class=backbone.tokenizer,
            data_collator=collate,
            callbacks=callbacks(config, context, "sft"),
        )
    trainer.sizes = train.lengths
    trainer.pad = Encoder(backbone.tokenizer).pad_token_id
    if config.packing:
        trainer.max_tokens = config.max_length * config.per_device_train_batch_size
    prepare(trainer, backbone, POLICY)
    return trainer
