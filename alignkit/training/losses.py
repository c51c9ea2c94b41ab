"""Compute losses on preferences and rankings: pure functions on tensors.

Pairwise losses take a `PairLogps` and return one loss per pair; their definitions and names are
TRL's, so that a number published with one is the same number with the other. To add a loss: a
function here, and a line of its name in `alignkit.recipe.settings.choices`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from alignkit.recipe.settings import choices


@dataclass(frozen=True)
class PairLogps:
    """Summed log-probs of chosen and rejected under policy and reference, each (pairs,).

    `chosen_lengths` and `rejected_lengths`: completion tokens, (pairs,).
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    @property
    def chosen_ratio(self) -> Tensor:
        """log pi/ref of the chosen completion, (pairs,)."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """log pi/ref of the rejected completion, (pairs,)."""
        return self.rejected - self.reference_rejected

    @property
    def margin(self) -> Tensor:
        """chosen_ratio - rejected_ratio, (pairs,)."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def mean_margin(self) -> Tensor:
        """The margin of per-token means, (pairs,)."""
        return self.chosen_ratio / self.chosen_lengths.clamp(
            min=1
        ) - self.rejected_ratio / self.rejected_lengths.clamp(min=1)


@dataclass(frozen=True)
class PairSettings:
    """What a pairwise loss may depend on beside the log-probs."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    discopop_tau: float = 0.05


PairLoss = Callable[[PairLogps, PairSettings], Tensor]
ListLoss = Callable[[Tensor, Tensor], Tensor]  # (k,) scores and (k,) ranks to a scalar


def sigmoid(pair: PairLogps, settings: PairSettings) -> Tensor:
    """DPO, eq. 7 of arXiv:2305.18290; with label smoothing conservative DPO (its section 3)."""
    return _smoothed(settings.beta * pair.margin, settings.label_smoothing)


def sigmoid_norm(pair: PairLogps, settings: PairSettings) -> Tensor:
    """DPO with every log-ratio divided by its completion's tokens."""
    return -F.logsigmoid(settings.beta * pair.mean_margin)


def hinge(pair: PairLogps, settings: PairSettings) -> Tensor:
    """SLiC's hinge on DPO's margin, arXiv:2309.06657."""
    return torch.relu(1 - settings.beta * pair.margin)


def ipo(pair: PairLogps, settings: PairSettings) -> Tensor:
    """IPO, eq. 17 of arXiv:2310.12036, on per-token means."""
    return (pair.mean_margin - 1 / (2 * settings.beta)) ** 2


def robust(pair: PairLogps, settings: PairSettings) -> Tensor:
    """Robust DPO, eq. 12 of arXiv:2403.00409: unbiased under label flips of the given rate."""
    logits, flip = settings.beta * pair.margin, settings.label_smoothing
    return (-(1 - flip) * F.logsigmoid(logits) + flip * F.logsigmoid(-logits)) / (1 - 2 * flip)


def exo_pair(pair: PairLogps, settings: PairSettings) -> Tensor:
    """EXO for pairs, eq. 16 of arXiv:2402.00856; needs label_smoothing > 0."""
    logits, flip = settings.beta * pair.margin, settings.label_smoothing
    chosen, rejected = F.logsigmoid(logits), F.logsigmoid(-logits)
    return chosen.exp() * (chosen - math.log1p(-flip)) + rejected.exp() * (
        rejected - math.log(flip)
    )


def nca_pair(pair: PairLogps, settings: PairSettings) -> Tensor:
    """NCA for pairs, arXiv:2402.05369."""
    chosen, rejected = settings.beta * pair.chosen_ratio, settings.beta * pair.rejected_ratio
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_pair(pair: PairLogps, settings: PairSettings) -> Tensor:
    """BCO for pairs without the running shift, arXiv:2404.04656."""
    chosen, rejected = settings.beta * pair.chosen_ratio, settings.beta * pair.rejected_ratio
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


def sppo_hard(pair: PairLogps, settings: PairSettings) -> Tensor:
    """SPPO with hard labels, eq. 4.7 of arXiv:2405.00675."""
    target = 0.5 / settings.beta
    return (pair.chosen_ratio - target) ** 2 + (pair.rejected_ratio + target) ** 2


def aot(pair: PairLogps, settings: PairSettings) -> Tensor:
    """AOT on pairs, arXiv:2406.05882: sorted over the batch, so weights do not apply."""
    policy = torch.sort(pair.chosen - pair.rejected).values
    reference = torch.sort(pair.reference_chosen - pair.reference_rejected).values
    return _smoothed(settings.beta * (policy - reference), settings.label_smoothing)


def aot_unpaired(pair: PairLogps, settings: PairSettings) -> Tensor:
    """AOT without pairing, arXiv:2406.05882: both sides sorted over the batch."""
    chosen, rejected = torch.sort(pair.chosen_ratio).values, torch.sort(pair.rejected_ratio).values
    return _smoothed(settings.beta * (chosen - rejected), settings.label_smoothing)


def apo_zero(pair: PairLogps, settings: PairSettings) -> Tensor:
    """APO-zero, eq. 7 of arXiv:2408.06266: chosen up, rejected down."""
    chosen, rejected = settings.beta * pair.chosen_ratio, settings.beta * pair.rejected_ratio
    return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)


def apo_down(pair: PairLogps, settings: PairSettings) -> Tensor:
    """APO-down, eq. 8 of arXiv:2408.06266: both down, rejected further."""
    chosen = settings.beta * pair.chosen_ratio
    return torch.sigmoid(chosen) + 1 - torch.sigmoid(settings.beta * pair.margin)


def discopop(pair: PairLogps, settings: PairSettings) -> Tensor:
    """DiscoPOP's log-ratio modulated loss, eq. 5 of arXiv:2406.08414."""
    logits = settings.beta * pair.margin
    blend = torch.sigmoid(logits / settings.discopop_tau)
    return -F.logsigmoid(logits) * (1 - blend) + torch.exp(-logits) * blend


def sft(pair: PairLogps, settings: PairSettings) -> Tensor:
    """Mean negative log-prob of the batch's chosen tokens, the same for every pair."""
    del settings
    return (-pair.chosen.sum() / pair.chosen_lengths.sum()).expand(len(pair.chosen))


def _smoothed(logits: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of a Bernoulli with logit `logits` against target 1 - label_smoothing."""
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


# --- reward models ---------------------------------------------------------------------------


def bradley_terry(
    better: Tensor, worse: Tensor, *, margin: Tensor | float = 0.0, label_smoothing: float = 0.0
) -> Tensor:
    """-log P(better beats worse) with P = sigmoid(better - worse - margin), (pairs,).

    Bradley and Terry 1952; the margin is that of Llama 2, eq. 2 of arXiv:2307.09288.
    """
    return _smoothed(better - worse - margin, label_smoothing)


def tie(left: Tensor, right: Tensor) -> Tensor:
    """Cross-entropy against one half: zero gradient where both score alike, (pairs,)."""
    return _smoothed(left - right, 0.5)


def plackett_luce(scores: Tensor, ranks: Tensor) -> Tensor:
    """-log P(the ranking) / (k - 1), scalar; `scores` and `ranks` are (k,), rank 1 is best.

    Plackett 1975 with Breslow's treatment of ties: members of a tied tier share the normaliser
    of all that is not ranked better. Divided by the number of choices that are not forced, so
    that k = 2 gives Bradley-Terry.
    """
    tiers = torch.unique(ranks)
    total = scores.new_zeros(())
    for rank in tiers[:-1]:
        left = torch.logsumexp(scores[ranks >= rank], dim=0)
        total = total + (left - scores[ranks == rank]).sum()
    choices = int((ranks < tiers[-1]).sum())
    return total / max(choices, 1)


# Settings name a loss by its function, so a name without a function fails here, on import.
PAIR_LOSSES: dict[str, PairLoss] = {name: globals()[name] for name in choices.PAIR_LOSSES}
LIST_LOSSES: dict[str, ListLoss] = {name: globals()[name] for name in choices.LIST_LOSSES}
