"""Reward model: an adapter and a scalar head that score completions as people ranked them.

score(prompt, completion) <- head(hidden state at the completion's last token)
each step:  every completion of a batch of rankings is read once, the prompt shared
            loss over the pairs (Bradley-Terry) or the order (Plackett-Luce) of each ranking
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from alignkit.data.chat import Encoder
from alignkit.data.read import load_rankings, stream_rankings
from alignkit.errors import DataError, TrainingFailed
from alignkit.evaluation.reward_accuracy import reward_accuracy
from alignkit.forward.logps import Group
from alignkit.model.backbone import REWARD, Backbone
from alignkit.model.heads import ScalarHead, Scale
from alignkit.recipe.settings import RewardConfig
from alignkit.scorers.reward_model import RewardModel
from alignkit.stages.cost import training_cost
from alignkit.stages.trial import training_trial
from alignkit.store.whole_files import write_whole
from alignkit.training.batching import FittingSteps
from alignkit.training.checkpoints import SealedCheckpoints
from alignkit.training.context import StageContext
from alignkit.training.data import load_rows
from alignkit.training.losses import LIST_LOSSES, bradley_terry, tie
from alignkit.training.rows import RankingRow, ranking_row
from alignkit.training.token_rows import TokenRows
from alignkit.training.trainer import (
    callbacks,
    end_reports,
    finish,
    fit,
    prepare,
    start_adapter,
    trainer_arguments,
)

COIN = 0.5  # the accuracy of tossing one


def run(config: RewardConfig, context: StageContext) -> dict[str, Any]:
    """Train a reward model; save adapter, head and held-out accuracy."""
    backbone = context.backbone
    encoder = Encoder(backbone.tokenizer)
    make = partial(ranking_row, encoder=encoder)
    train, held_out = load_rows(RankingRow, stream_rankings, make, config, context, encoder=encoder)
    train = drop_uninformative(train, config, context.say)
    start_adapter(backbone, REWARD, config, context)
    model = RewardModel(backbone, new_head(backbone, context.seed))
    trainer = _trainer(config, context, model, train, held_out)
    metrics = fit(trainer, trainables(backbone, model), context, REWARD)
    trainer.restore_best()
    if held_out:
        metrics |= held_out_quality(model, held_out, config)
        tell_accuracy(metrics, context.say)
    end_reports(trainer)
    model.head.scale = score_scale(model, train[:256], config.per_device_eval_batch_size)
    return finish(backbone, REWARD, context, metrics | {"rankings": len(train)}, head=model.head)


trial, cost = training_trial(load_rankings), training_cost


def new_head(backbone: Backbone, seed: int) -> ScalarHead:
    """A fresh head for this backbone's hidden size."""
    return ScalarHead(backbone.base.config.get_text_config().hidden_size, seed=seed)


def trainables(backbone: Backbone, model: RewardModel) -> dict[str, nn.Parameter]:
    """Every weight that training moves, by name."""
    head = {f"head.{name}": weight for name, weight in model.head.named_parameters()}
    return backbone.parameters_of(REWARD) | head


def group_of(row: RankingRow) -> Group:
    """A ranking's prompt and completions, to be forwarded together."""
    return Group(row.prompt, row.completions)


# --- the loss --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Index pairs into the scores of one ranking: the better first, and ties."""

    strict: list[tuple[int, int]]
    ties: list[tuple[int, int]]


def pairs_of(ranks: Sequence[int]) -> Pairs:
    """All pairs of a ranking; rank 1 is best, equal ranks tie."""
    k = range(len(ranks))
    strict = [(i, j) for i in k for j in k if ranks[i] < ranks[j]]
    ties = [(i, j) for i in k for j in k if i < j and ranks[i] == ranks[j]]
    return Pairs(strict, ties)


def ranking_loss(scores: Tensor, row: RankingRow, config: RewardConfig) -> tuple[Tensor, float]:
    """Summed loss of one ranking's `scores` (k,), and its weight.

    `weight: group`: pairs average within the ranking, which counts 1, or its preference's share
    of the ranking it was cut from; `pair`: each pair counts 1.
    """
    weight = weight_of(row, config)
    if config.objective in LIST_LOSSES:
        ranks = torch.tensor(row.ranks, device=scores.device)
        return row.weight * LIST_LOSSES[config.objective](scores, ranks), weight
    pairs = pairs_of(row.ranks)
    terms = [_strict_terms(scores, pairs.strict, row, config)]
    if config.ties == "half" and pairs.ties:
        left, right = torch.tensor(pairs.ties, device=scores.device).unbind(1)
        terms.append(tie(scores[left], scores[right]))
    losses = torch.cat(terms)
    if config.weight == "pair":
        return losses.sum(), weight
    return row.weight * losses.mean(), weight


def weight_of(row: RankingRow, config: RewardConfig) -> float:
    """Weight of a ranking in the mean over a batch."""
    if config.objective in LIST_LOSSES or config.weight == "group":
        return row.weight
    pairs = pairs_of(row.ranks)
    return float(len(pairs.strict) + (len(pairs.ties) if config.ties == "half" else 0))


def _strict_terms(
    scores: Tensor, strict: list[tuple[int, int]], row: RankingRow, config: RewardConfig
) -> Tensor:
    if not strict:
        return scores.new_zeros(0)
    better, worse = torch.tensor(strict, device=scores.device).unbind(1)
    losses = bradley_terry(
        scores[better],
        scores[worse],
        margin=row.margin if config.margin else 0.0,
        label_smoothing=config.label_smoothing,
    )
    if config.center_rewards_coefficient:
        losses = losses + config.center_rewards_coefficient * (scores[better] + scores[worse]) ** 2
    return losses


class RankingTrainer(FittingSteps, SealedCheckpoints, Trainer):
    """transformers' loop over rankings."""

    model: Any
    eval_dataset: Any
    config: RewardConfig

    def training_step(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of the whole batch, in parts if memory is short; its loss."""
        self.whole_weight = sum(weight_of(row, self.config) for row in inputs["rows"])
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Sum of the rankings' losses over the weight of their batch."""
        del return_outputs, num_items_in_batch
        rows = inputs["rows"]
        scores = model([group_of(row) for row in rows])
        parts = scores.split([len(row.completions) for row in rows])
        losses = torch.stack(
            [ranking_loss(part, row, self.config)[0] for part, row in zip(parts, rows, strict=True)]
        )
        if self.is_measuring:
            return losses.sum() / sum(weight_of(row, self.config) for row in rows)
        self.note_rows(losses, [row.where for row in rows])
        return losses.sum() / self.whole_weight

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Accuracy and calibration on the held-out rankings."""
        metrics = {
            f"eval_{name}": value
            for name, value in held_out_quality(self.model, self.eval_dataset, self.config).items()
            if isinstance(value, float)
        }
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def restore_best(self) -> None:
        """Restore the weights of the best evaluation, if early stopping kept them."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, Best):
                callback.restore(self.model)


class Best(TrainerCallback, ExportableState):
    """Keep the weights with the best held-out accuracy; stop after `patience` without a better.

    The weights are in a file, the numbers in the trainer's state: a resumed run finds both.
    """

    def __init__(self, file: str, patience: int) -> None:
        self.file = Path(file)
        self.patience = patience
        self.accuracy = -math.inf
        self.loss = math.inf
        self.misses = 0

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,
        metrics: dict[str, float] | None = None,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Keep better weights; stop when there were none for `patience` evaluations."""
        del args, state
        found = metrics or {}
        if (found["eval_accuracy"], -found["eval_loss"]) > (self.accuracy, -self.loss):
            self.accuracy, self.loss = found["eval_accuracy"], found["eval_loss"]
            self.misses = 0
            self._keep(model)
            return
        self.misses += 1
        control.should_training_stop = control.should_training_stop or (
            self.misses >= self.patience
        )

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "args": {"file": str(self.file), "patience": self.patience},
            "attributes": {
                "accuracy": self.accuracy,
                "loss": self.loss,
                "misses": self.misses,
            },
        }

    def restore(self, model: nn.Module) -> None:
        """Put the kept weights back."""
        if not self.file.exists():
            return
        kept = load_file(str(self.file))
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter.data.copy_(kept[name])

    def _keep(self, model: nn.Module) -> None:
        weights = {
            n: p.detach().cpu().clone() for n, p in model.named_parameters() if p.requires_grad
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.file, save(weights))


# --- held-out quality ------------------------------------------------------------------------


def held_out_quality(
    model: RewardModel, rows: Sequence[RankingRow], config: RewardConfig
) -> dict[str, Any]:
    """Accuracy and calibration on rankings, and accuracy against the candidates' own scores.

    The second needs a `score` on every candidate: for rankings by a noisy judge it is the accuracy
    without the noise.
    """
    judged = list(zip(rows, scored(model, rows, config.per_device_eval_batch_size), strict=True))
    found = reward_accuracy([(row.ranks, given) for row, given in judged])
    clean = [([-own for own in row.own_scores], given) for row, given in judged if row.own_scores]
    if len(clean) == len(judged):
        found["clean_accuracy"] = reward_accuracy(clean)["accuracy"]
    return found


def tell_accuracy(quality: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Report the held-out accuracy, and whether chance alone could give it."""
    accuracy, interval = quality["accuracy"], quality.get("accuracy_ci")
    if accuracy is None:
        return
    told = f"held-out accuracy {accuracy:.1%} of {quality['pairs']} pairs"
    if interval is None or interval["low"] <= COIN:
        told += (
            ", which chance alone could give: train longer or with a larger learning_rate, on "
            "more rankings, or look whether people agree on them (alignkit agreement)"
        )
    say(told)


def score_scale(model: RewardModel, rows: Sequence[RankingRow], batch_size: int) -> Scale:
    """Mean and standard deviation of scores on completions of the rankings.

    Reward normalisation of arXiv:1909.08593, saved with the head for users of its scores. PPO
    measures its own on completions of the starting policy. Raises TrainingFailed where
    all scores are the same.
    """
    found = torch.tensor([score for scores in scored(model, rows, batch_size) for score in scores])
    deviation = float(found.std())
    if deviation == 0:
        raise TrainingFailed(
            f"the reward model gives all {len(found)} completions the same score, "
            f"{float(found[0]):g}: it learned nothing",
            hint="raise learning_rate, or the number of steps",
        )
    return Scale(float(found.mean()), deviation)


def scored(
    model: RewardModel, rows: Sequence[RankingRow], batch_size: int
) -> list[tuple[float, ...]]:
    """The scores of each ranking's completions. Raises TrainingFailed where one is not finite."""
    scores = iter(model.scores([group_of(row) for row in rows], batch_size))
    found = [tuple(islice(scores, len(row.completions))) for row in rows]
    for row, own in zip(rows, found, strict=True):
        if not all(map(math.isfinite, own)):
            raise TrainingFailed("a score of the reward model is not finite", where=row.where)
    return found


def drop_uninformative(
    rows: TokenRows[RankingRow], config: RewardConfig, say: Callable[[str], None]
) -> TokenRows[RankingRow]:
    """Drop rankings that the loss cannot learn from. Raises DataError when none is left.

    A ranking that ties everything has no pair to average over, unless ties are half a win.
    """
    ordered = [i for i, ranks in enumerate(rows.dataset["ranks"]) if len(set(ranks)) > 1]
    if not ordered:
        raise DataError(
            "every ranking ties all its completions: there is nothing to learn",
            where=rows[0].where if rows else None,
            hint="give the better completion the smaller rank",
        )
    if config.ties == "half" and config.objective not in LIST_LOSSES:
        return rows
    if len(ordered) < len(rows):
        first = next(row.where for row in rows if len(set(row.ranks)) == 1)
        say(
            f"{len(rows) - len(ordered)} of {len(rows)} rankings tie all their completions and "
            f"were left out, the first at {first}"
        )
    return rows.only(ordered)


def _trainer(
    config: RewardConfig,
    context: StageContext,
    model: RewardModel,
    train: TokenRows[RankingRow],
    held_out: TokenRows[RankingRow],
) -> RankingTrainer:
    arguments = trainer_arguments(TrainingArguments, config, context)
    hooks = callbacks(config, context, "reward")
    if config.early_stopping_patience and held_out:
        file = context.checkpoints / "best.safetensors"
        hooks.append(Best(str(file), config.early_stopping_patience))
    trainer = RankingTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=held_out or None,
        data_collator=lambda rows: {"rows": rows, "count": torch.ones(len(rows))},
        callbacks=hooks,
        optimizers=(_optimizer(model, context.backbone, config), None),
    )
    trainer.config = config
    trainer.sizes = train.sizes
    prepare(trainer, context.backbone, REWARD, model.head)
    for parameter in model.head.parameters():
        parameter.requires_grad_(True)
    return trainer


def _optimizer(model: RewardModel, backbone: Backbone, config: RewardConfig) -> torch.optim.AdamW:
    """AdamW with a learning rate of its own for the head."""
    return torch.optim.AdamW(
        [
            {"params": list(backbone.parameters_of(REWARD).values()), "lr": config.learning_rate},
            {
                "params": list(model.head.parameters()),
                "lr": config.head_learning_rate or config.learning_rate,
            },
        ],
        weight_decay=config.weight_decay,
    )
