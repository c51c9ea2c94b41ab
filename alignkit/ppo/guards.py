"""Stop a run early when learning from the reward goes wrong, and name the likely cause.

Each guard looks at the numbers of one iteration, or of the evaluations so far, and raises
TrainingFailed with the probable cause and a setting to change. Non-finite losses and runaway ratios
are caught where they arise, in learners.py.
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
    "give a reward that tells good completions from bad ones (a reward that is 0 unless everything "
    "is right needs prompts that the policy sometimes gets right), or raise temperature"
)
EOS_FLOOR = 0.3  # share of the starting EOS rate below which the policy has forgotten to stop
USUAL_EOS = 0.5  # a policy that stopped less often than this at the start never had the habit
FULL_LENGTH = 0.95  # share of response_length at which completions are cut rather than finished


@dataclass(frozen=True)
class Start:
    """Mean length (tokens) and EOS rate of the starting policy, to compare iterations with."""

    length: float
    eos_rate: float


@dataclass
class Spread:
    """How much scores differed between completions, iteration by iteration.

    `means` are the mean scores of the iterations, the penalty for a missing stop included, and
    `errors` their standard errors, with prompts as the independent draws. `flat` counts iterations
    in which all scores were equal, `flat_rewards` those in which all rewards were, whatever the
    penalty. `idle_groups` counts prompts whose completions all scored alike, out of `groups`.
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
        """Add an iteration; return how many of its prompts have completions that all scored alike.

        `scores`: (completions,). `raw`: (sources, completions), the rewards. `k`: completions per
        prompt; with k = 1 no prompt counts.
        """
        groups = scores.view(-1, k)
        self.means.append(float(scores.mean()))
        # Completions of one prompt are not independent draws, so the error is that of prompt means.
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
        """Return the mean score of the first and the last quarter of iterations, with an error.

        The third number is the standard error of the difference of the two.
        """
        part = max(1, len(self.means) // 4)
        first, last = (sum(means) / part for means in (self.means[:part], self.means[-part:]))
        squares = (error**2 for error in (*self.errors[:part], *self.errors[-part:]))
        return first, last, math.sqrt(sum(squares)) / part


def is_flat(scores: Tensor) -> bool:
    """Return whether all of these scores are equal."""
    return bool((scores == scores.flatten()[0]).all())


def check_spread(spread: Spread, k: int) -> None:
    """Raise TrainingFailed when no score of the whole run differed between any two completions.

    A single iteration proves little: a rare reward may just not have been given in it.
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
    """Raise TrainingFailed when an iteration's numbers show that training has gone wrong."""
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
            f"KL to the reference is {row['objective/kl']:.3g} nats per completion "
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
            f"completions grew from {start.length:.0f} to {row['rollout/length']:.0f} tokens; "
            f"the limit is {config.response_length}",
            hint="the reward pays for length: look at samples.jsonl, raise kl_coef, "
            "or train the reward model on pairs of equal length",
        )


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation on held-out prompts; `win_rate` is by the alarm's judge."""

    iteration: int
    score: float
    win_rate: float
    prompts: int


def chance(prompts: int) -> float:
    """Return how far two win rates on these prompts may differ by chance: two standard errors."""
    # The variance of a win rate is at most ¼ per prompt, that of a difference of two at most ½.
    return 2 * math.sqrt(0.5 / prompts)


def reward_hacking(history: Sequence[Evaluation], judge: str) -> str | None:
    """Return the alarm when the score rises while `judge` prefers the policy less, else None.

    The win rate must have fallen by more than chance. Where the reward judges itself, the sign is a
    mean that rises on a few completions while most get worse.
    """
    if len(history) < 2:
        return None
    now, best = history[-1], max(history[:-1], key=lambda past: past.win_rate)
    if now.score > best.score and now.win_rate < best.win_rate - chance(now.prompts):
        return (
            f"the score rose from {best.score:.3g} to {now.score:.3g} since iteration "
            f"{best.iteration} while the win rate by {judge} fell from {best.win_rate:.0%} to "
            f"{now.win_rate:.0%}: the policy probably exploits the reward"
        )
    return None
