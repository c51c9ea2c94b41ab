"""Update the policy by clipped steps, and hold what the learners of policy and value share.

Policy and value share no trainable weight, so each makes all its passes in one go: the policy's
epochs, then the value's (alignkit/ppo/value.py). Losses are sums divided by the global count of
real tokens in the mini-batch, so micro-batches and ranks change nothing but rounding.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from alignkit.data.chat import Encoder
from alignkit.errors import TrainingFailed
from alignkit.forward.logps import completion_logps
from alignkit.model.backbone import POLICY, Backbone
from alignkit.ppo.objective import policy_terms
from alignkit.ppo.ranks import all_sum, sum_gradients
from alignkit.ppo.rollout import Rollout, grouped
from alignkit.recipe.settings import OnlineConfig
from alignkit.training.finite import LOWER

# Largest |ratio − 1| before the first step: the update must reproduce the rollout's log-probs.
RATIO_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.3, torch.float16: 0.1}


class Averages:
    """Means of logged numbers, each weighted by its number of tokens."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, float] = defaultdict(float)

    def add(self, name: str, total: float, count: float = 1.0) -> None:
        """Add a sum over `count` tokens."""
        self.sums[name] += total
        self.counts[name] += count

    def means(self) -> dict[str, float]:
        """Return the mean under each name."""
        return {name: self.sums[name] / max(self.counts[name], 1e-9) for name in self.sums}


class PolicyLearner:
    """Makes clipped updates of the policy's adapter."""

    def __init__(self, backbone: Backbone, config: OnlineConfig, seed: int, iterations: int):
        self.backbone, self.config, self.seed = backbone, config, seed
        self.pad = Encoder(backbone.tokenizer).pad_token_id
        self.parameters = list(backbone.parameters_of(POLICY).values())
        self.iterations = iterations
        self.optimizer = adamw(self.parameters)

    def update(self, rollout: Rollout, advantages: Tensor, iteration: int) -> dict[str, float]:
        """Make all passes over one rollout and return what is logged."""
        averages = Averages()
        rate = self.config.learning_rate * rate_factor(self.config, iteration, self.iterations)
        set_rate(self.optimizer, rate)
        averages.add("learning_rate", rate)
        with trainable(self.backbone, POLICY, self.config.gradient_checkpointing) as model:
            for epoch in range(self.config.num_ppo_epochs):
                for number, rows in enumerate(
                    mini_batches(rollout, self.config, (self.seed, iteration, epoch))
                ):
                    kl = self._step(model, rollout, rows, advantages, averages, (epoch, number))
                    if self.config.early_stop_kl is not None and kl > self.config.early_stop_kl:
                        averages.add("policy/stopped_early", 1.0)
                        return averages.means()
        return averages.means()

    def _step(
        self,
        model: Any,
        rollout: Rollout,
        rows: Sequence[int],
        advantages: Tensor,
        averages: Averages,
        place: tuple[int, int],
    ) -> float:
        """Make one optimizer step on some rows of the rollout and return their approximate KL."""
        count = float(all_sum(rollout.mask[rows].sum().double()))
        sums, entropy = torch.zeros(6, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for part in sorted_parts(rows, self.config.per_device_train_batch_size):
            mask = rollout.mask[part]
            scored = completion_logps(
                model,
                grouped([rollout.samples[row] for row in part]),
                pad_token_id=self.pad,
                temperature=self.config.temperature,
                entropy=place == (0, 0),
            )
            old = rollout.logps[part][mask]
            terms = policy_terms(
                scored.per_token,
                old,
                advantages[part][mask],
                cliprange=self.config.cliprange,
                dual_clip=self.config.dual_clip,
                entropy_coef=self.config.entropy_coef,
            )
            if place == (0, 0):
                self._check_first(terms.ratio)
                entropy += scored.entropy.sum().double().cpu()  # type: ignore[union-attr]
            (terms.loss / count).backward()  # type: ignore[no-untyped-call]
            ratio = terms.ratio.double()
            sums += torch.stack(
                [
                    terms.loss.detach().double(),
                    ratio.sum(),
                    ratio.square().sum(),
                    terms.clipped.double().sum(),
                    terms.approx_kl.double().sum(),
                    ratio.new_tensor(len(old)),
                ]
            ).cpu()
        if place == (0, 0):
            averages.add("policy/entropy_avg", float(all_sum(entropy)), count)
        return self._finish_step(all_sum(sums).tolist(), averages)

    def _finish_step(self, sums: list[float], averages: Averages) -> float:
        """Step, log the sums over the mini-batch, and return its mean approximate KL."""
        loss, ratio, squares, clipped, approx_kl, count = sums
        if not math.isfinite(loss):
            raise TrainingFailed(f"the policy's loss is {loss}", hint=LOWER)
        if ratio / count > self.config.max_ratio:
            raise TrainingFailed(
                f"the mean probability ratio is {ratio / count:.3g} "
                f"(max_ratio {self.config.max_ratio:g})",
                hint="lower learning_rate or num_ppo_epochs, or raise kl_coef",
            )
        norm = step(self.optimizer, self.parameters, self.config.max_grad_norm, loss)
        averages.add("loss/policy_avg", loss, count)
        averages.add("val/ratio", ratio, count)
        averages.add("val/ratio_var", squares - ratio * ratio / count, count)
        averages.add("policy/clipfrac_avg", clipped, count)
        averages.add("policy/approxkl_avg", approx_kl, count)
        averages.add("policy/grad_norm", norm)
        return approx_kl / count

    def _check_first(self, ratio: Tensor) -> None:
        """Raise TrainingFailed unless the first log-probs of the update are the rollout's."""
        gap = float((ratio - 1).abs().max())
        limit = RATIO_TOLERANCE[self.backbone.dtype]
        if not gap <= limit:
            raise TrainingFailed(
                f"log-probs changed between rollout and update: |ratio - 1| is {gap:.3g} "
                f"(at most {limit:g}) before any step",
                hint="the model that samples is not the one that is trained; "
                "alignkit doctor checks this machine's kernels",
            )


def adamw(parameters: Sequence[nn.Parameter]) -> torch.optim.AdamW:
    """Return PPO's AdamW: epsilon 1e-5 (arXiv:2403.17031, detail 22) and no weight decay."""
    return torch.optim.AdamW(parameters, eps=1e-5, weight_decay=0.0)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group of the optimizer."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def rate_factor(config: OnlineConfig, iteration: int, iterations: int) -> float:
    """Return an iteration's share of the peak learning rate: up in warmup_steps, then down to 0.

    It depends on the iteration alone, so a resumed run needs no scheduler state.
    """
    if iteration < config.warmup_steps:
        return iteration / config.warmup_steps
    rest = max(iterations - config.warmup_steps, 1)
    return DECAYS[config.lr_scheduler_type]((iteration - config.warmup_steps) / rest)


DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: (1.0 + math.cos(math.pi * done)) / 2,
    "constant": lambda _done: 1.0,
    "constant_with_warmup": lambda _done: 1.0,
}


def step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    max_grad_norm: float,
    loss: float,
) -> float:
    """Sum gradients over ranks, clip, step and clear; return the norm.

    Raise TrainingFailed when the norm or `loss` is not finite; then no step is taken.
    """
    sum_gradients(parameters)
    norm = float(nn.utils.clip_grad_norm_(parameters, max_grad_norm or math.inf))
    if not math.isfinite(norm) or not math.isfinite(loss):
        raise TrainingFailed(
            f"the loss is {loss:.3g} and the norm of its gradient {norm:.3g}",
            hint="lower learning_rate; on fp16 use dtype bfloat16 or float32",
        )
    optimizer.step()
    optimizer.zero_grad()
    return norm


def mini_batches(
    rollout: Rollout, config: OnlineConfig, seed: tuple[int, ...]
) -> Iterator[list[int]]:
    """Yield the rows of each optimizer step of an epoch: a fresh permutation in equal parts."""
    order = np.random.default_rng(seed).permutation(len(rollout.samples))
    size = len(rollout.samples) // config.num_mini_batches
    for start in range(0, len(order), size):
        yield order[start : start + size].tolist()


def sorted_parts(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield micro-batches with rows in order, so that completions of one prompt share a group."""
    ordered = sorted(rows)
    return (ordered[start : start + size] for start in range(0, len(ordered), size))


@contextmanager
def trainable(backbone: Backbone, adapter: str, checkpointing: bool) -> Iterator[Any]:
    """Yield the model with gradients for one adapter and no dropout anywhere.

    PPO's ratio is meaningful only when sampling, scoring and training compute the same function, so
    the model stays in evaluation mode. Only layers under gradient checkpointing are in training
    mode, because they read that flag to decide whether to checkpoint.
    """
    with backbone.training(adapter) as model:
        model.eval()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            for module in model.modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.training = True
        try:
            yield model
        finally:
            if checkpointing:
                model.gradient_checkpointing_disable()
