"""What settings choose from by name, each with the words that help shows.

A name here is that of a function: of `alignkit.training.losses` for a loss, of
`alignkit.ppo.advantages` for a KL estimator. Settings, help, schema and checks are made from these
tables before anything imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True)
class Loss:
    """A loss of DPO's kind, as settings know it.

    `whole_batch`: it is a number of all pairs together, so a batch cannot be computed in parts;
    `takes_weights`: whether pairs may weigh differently; `needs`: a setting that must be above 0,
    and what to set it to.
    """

    about: str
    whole_batch: bool = False
    takes_weights: bool = True
    needs: tuple[str, str] | None = None

    def __str__(self) -> str:
        return self.about


PAIR_LOSSES: dict[str, Loss] = {
    "sigmoid": Loss("DPO; with label_smoothing, conservative DPO"),
    "ipo": Loss("IPO: the margin is pulled to 1 / (2 beta)"),
    "hinge": Loss("SLiC's hinge on DPO's margin"),
    "robust": Loss("robust DPO: label_smoothing is the rate of wrong labels"),
    "sigmoid_norm": Loss("DPO on log-ratios per token"),
    "exo_pair": Loss("EXO", needs=("label_smoothing", "its paper uses 0.001")),
    "nca_pair": Loss("NCA"),
    "bco_pair": Loss("BCO: classifies chosen against rejected"),
    "sppo_hard": Loss("SPPO with hard labels"),
    "aot": Loss("AOT: sorts margins over the batch", whole_batch=True, takes_weights=False),
    "aot_unpaired": Loss(
        "AOT: sorts chosen and rejected apart", whole_batch=True, takes_weights=False
    ),
    "apo_zero": Loss("APO: chosen up, rejected down"),
    "apo_down": Loss("APO: both down, rejected further"),
    "discopop": Loss("DiscoPOP"),
    "sft": Loss("likelihood of the chosen completion", whole_batch=True),
}

# Losses of a whole ranking's scores; the other objective is the pairs of a ranking.
LIST_LOSSES: dict[str, str] = {
    "plackett_luce": "one Plackett-Luce likelihood of the whole order",
}
OBJECTIVES: dict[str, str] = {"pairs": "all its pairs", **LIST_LOSSES}

KL_ESTIMATORS: dict[str, str] = {
    "k1": "the log-ratio, unbiased",
    "k2": "half its square, never negative",
    "k3": "unbiased and never negative",
}


# The types of those settings: a checker of types knows only that they are text.
if TYPE_CHECKING:
    PairLoss = str
    Objective = str
    KlEstimator = str
else:
    PairLoss = Literal[tuple(PAIR_LOSSES)]
    Objective = Literal[tuple(OBJECTIVES)]
    KlEstimator = Literal[tuple(KL_ESTIMATORS)]


def listed(table: Mapping[str, object]) -> str:
    """`k1 (the log-ratio, unbiased), k2 (…)`: the names of a table, for help."""
    return ", ".join(f"{name} ({about})" for name, about in table.items())
