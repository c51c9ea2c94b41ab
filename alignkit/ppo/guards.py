"""What can go wrong while a policy learns from a reward, noticed early and by its likely cause.

Each guard looks at the numbers of one iteration, or of the evaluations so far, and raises
TrainingFailed with what probably happened and what to change. Non-finite losses and runaway
ratios are stopped where they arise, in learners.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alignkit.errors import TrainingFailed
from alignkit.ppo.rollout import Rollout
from alignkit.recipe.settings import OnlineConfig
from alignkit.training.finite import LOWER

FINER = (
    "give a reward that tells good completions from bad ones (one that is 0 until all is right "
    "needs prompts the policy sometimes gets right), or raise temperature"
)
EOS_FLOOR = 0.3  # share of the starting EOS rate below which the policy has forgotten to stop
USUAL_EOS = 0.5  # a policy that stopped less often than this never had the habit
FULL_LENGTH = 0.95  # of response_length: completions that long were cut, not finished


@dataclass(frozen=True)
class Start:
    """How the starting policy speaks: what later iterations are compared to."""

    length: float
    eos_rate: float


@dataclass
class Spread:
    """How far the reward told completions apart, iteration by iteration.

    `means` are those of an iteration's scores, the penalty for a missing stop included, and
    `errors` their standard errors, prompts taken as drawn. `flat` counts iterations in which all
    scores were equal, `flat_rewards` those in which the rewards were, whatever the penalty, and
    `idle_groups` prompts whose completions all scored alike, of `groups`.
    """

    means: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    flat: int = 0
    flat_rewards: int = 0
    groups: int = 0
    idle_groups: int = 0

    @property
    def idle_share(self) -> float:
        """Share of prompts whose completions all scored alike."""
        return self.idle_groups / self.groups if self.groups else 0.0

    def add(self, scores: Tensor, raw: Tensor, k: int) -> int:
        """Count an iteration in: scores (completions,), rewards (sources, completions), `k` to a
        prompt. How many of its prompts have completions that all scored alike (0 where k is 1)."""
        groups = scores.view(-1, k)
        self.means.append(float(scores.mean()))
        # Completions of one prompt are no independent draws, so the means of prompts are compared.
        deviation = groups.mean(1).std(unbiased=len(groups) > 1)
        self.errors.append(float(deviation) / math.sqrt(len(groups)))
        self.flat += is_flat(scores)
        self.flat_rewards += all(is_flat(source) for source in raw)
        if k == 1:
            return 0
        idle = int((groups == groups[:, :1]).all(1).sum())
        self.groups += len(groups)
        self.idle_groups += idle
        return idle

    def rise(self) -> tuple[float, float, float]:
        """Mean score of the first and of the last quarter of iterations, and the standard error of
        their difference."""
        part = max(1, len(self.means) // 4)
        first, last = (sum(means) / part for means in (self.means[:part], self.means[-part:]))
        squares = (error**2 for error in (*self.errors[:part], *self.errors[-part:]))
        return first, last, math.sqrt(sum(squares)) / part


def is_flat(scores: Tensor) -> bool:
    """Whether all of these scores are the same."""
    return bool((scores == scores.flatten()[0]).all())


def check_spread(spread: Spread, k: int) -> None:
    """Raise TrainingFailed where no score of the whole run told any two completions apart.

    One iteration alone says little: a reward that is rarely given may just not have been.
    """
    iterations = len(spread.means)
    if iterations > 1 and (spread.flat == iterations or (k > 1 and spread.idle_share == 1.0)):
        whose = "two completions" if spread.flat == iterations else "completions of one prompt"
        raise TrainingFailed(
            f"nothing was learned: in none of {iterations} iterations did the score tell {whose} "
            "apart",
            hint=FINER,
        )


def check_iteration(row: Mapping[str, float], start: Start, config: OnlineConfig) -> None:
    """Raise TrainingFailed when an iteration's numbers say that training has gone wrong."""
    for guard in (_numbers_are_finite, _kl_within_limit, _still_stops, _length_holds):
        guard(row, start, config)


def check_rollout(rollout: Rollout) -> None:
    """Raise TrainingFailed naming the prompt of a completion whose numbers are not finite."""
    measured = {
        "its log-probability": rollout.logps.sum(1),
        "its log-probability under the reference": rollout.ref_logps.sum(1),
        "its value": rollout.values.sum(1),
        "its score": rollout.scores,
    }
    finite = torch.stack([numbers.isfinite().cpu() for numbers in measured.values()]).tolist()
    for name, fine in zip(measured, finite, strict=True):
        if not all(fine):
            sample = rollout.samples[fine.index(False)]
            raise TrainingFailed(
                f"a completion was sampled, but {name} is not finite",
                where=sample.prompt.where,
                hint=f"{LOWER}; the completion was {sample.text[:80]!r}",
            )


def _numbers_are_finite(row: Mapping[str, float], _start: Start, _config: OnlineConfig) -> None:
    for name, value in row.items():
        if not math.isfinite(value):
            raise TrainingFailed(f"{name} is {value}", hint=LOWER)


def _kl_within_limit(row: Mapping[str, float], _start: Start, config: OnlineConfig) -> None:
    if config.kl_limit is not None and row["objective/kl"] > config.kl_limit:
        raise TrainingFailed(
            f"KL to the reference is {row['objective/kl']:.3g} nats a completion "
            f"(kl_limit {config.kl_limit:g})",
            hint="raise kl_coef, set kl_target, or lower learning_rate",
        )


def _still_stops(row: Mapping[str, float], start: Start, _config: OnlineConfig) -> None:
    if start.eos_rate >= USUAL_EOS and row["rollout/eos_rate"] < EOS_FLOOR * start.eos_rate:
        raise TrainingFailed(
            f"only {row['rollout/eos_rate']:.0%} of completions stop by themselves, "
            f"{start.eos_rate:.0%} did at the start",
            hint="raise missing_eos_penalty or kl_coef; the reward may favour long completions",
        )


def _length_holds(row: Mapping[str, float], start: Start, config: OnlineConfig) -> None:
    full = FULL_LENGTH * config.response_length
    if start.length <= full / 2 and row["rollout/length"] > full:
        raise TrainingFailed(
            f"completions grew from {start.length:.0f} to {row['rollout/length']:.0f} tokens, "
            f"the limit is {config.response_length}",
            hint="the reward pays for length: look at samples.jsonl, raise kl_coef, "
            "or train the reward model on pairs of equal length",
        )


@dataclass(frozen=True)
class Evaluation:
    """One look at the held-out prompts; the win rate is that of the alarm's judge."""

    iteration: int
    score: float
    win_rate: float
    prompts: int


def chance(prompts: int) -> float:
    """How far two win rates on these prompts may differ by chance: two standard errors."""
    return 2 * math.sqrt(0.5 / prompts)


def reward_hacking(history: Sequence[Evaluation], judge: str) -> str | None:
    """The alarm: the score still rises while `judge` prefers the policy less, beyond chance; or
    None. Where the reward judges itself, a few completions please it ever more and most get worse.
    """
    if len(history) < 2:
        return None
    now, best = history[-1], max(history[:-1], key=lambda seen: seen.win_rate)
    if now.score > best.score and now.win_rate < best.win_rate - chance(now.prompts):
        return (
            f"the score rose from {best.score:.3g} to {now.score:.3g} since iteration "
            f"{best.iteration} while the win rate by {judge} fell from {best.win_rate:.0%} to "
            f"{now.win_rate:.0%}: the policy probably exploits the reward"
        )
    return None
