"""What can go wrong while a policy learns from a reward, noticed early and by its likely cause.

Each guard looks at the numbers of one iteration, or of the evaluations so far, and raises
TrainingFailed with what probably happened and what to change. Non-finite losses and runaway
ratios are stopped where they arise, in learners.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignkit.errors import TrainingFailed
from alignkit.recipe import OnlineConfig

EOS_FLOOR = 0.3  # share of the starting EOS rate below which the policy has forgotten to stop
USUAL_EOS = 0.5  # a policy that stopped less often than this never had the habit
FULL_LENGTH = 0.95  # of response_length: completions that long were cut, not finished


@dataclass(frozen=True)
class Start:
    """How the starting policy speaks: what later iterations are compared to."""

    length: float
    eos_rate: float


def check_iteration(row: Mapping[str, float], start: Start, config: OnlineConfig) -> None:
    """Raise TrainingFailed when an iteration's numbers say that training has gone wrong."""
    for guard in (_kl_within_limit, _kl_is_a_number, _still_stops, _length_holds):
        guard(row, start, config)


def _kl_is_a_number(row: Mapping[str, float], _start: Start, _config: OnlineConfig) -> None:
    for name in ("objective/kl", "objective/scores"):
        if not math.isfinite(row[name]):
            raise TrainingFailed(f"{name} is {row[name]}", hint="lower learning_rate")


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
