"""Evaluate the policy on held-out prompts, and find the best iteration.

Every evaluation samples with the same seed, so two of them differ by the policy alone. Iterations
are compared by score − kl_coef·KL: the objective itself, on prompts that are not trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.ppo.advantages import k3, kl_per_token, penalize_missing_stop
from alignkit.ppo.rewards import Rewards, RolloutPrompt, Sample
from alignkit.ppo.rollout import Sampler, mask_of, sampling_seed
from alignkit.recipe.settings import OnlineConfig
from alignkit.scorers import Scorer, finite_scores
from alignkit.scorers.gold import GoldScorer, gold_applies
from alignkit.store.row_log import append_rows, read_log

SHOWN_SAMPLES = 12


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of one evaluation, with the scores (prompts,) they come from and the judge's."""

    metrics: dict[str, float]
    scores: Tensor
    samples: list[Sample]
    judged: Tensor | None = None

    @property
    def win_rate(self) -> float:
        """The win rate by the alarm's judge if there is one, else by the training reward."""
        return self.metrics.get("eval/judge_win_rate", self.metrics["eval/win_rate"])


class Validation:
    """Measures the policy on held-out prompts, against its completions at the start."""

    def __init__(
        self,
        sampler: Sampler,
        rewards: Rewards,
        prompts: Sequence[RolloutPrompt],
        config: OnlineConfig,
        seed: int,
        judge: Scorer | None = None,
    ) -> None:
        self.judge = judge
        self.sampler, self.rewards, self.prompts = sampler, rewards, prompts
        self.config, self.seed = config, seed
        known = gold_applies([prompt.messages for prompt in prompts])
        self.gold = GoldScorer() if known else None
        self.start_scores: Tensor | None = None
        self.start_judged: Tensor | None = None

    def evaluate(self, kl_coef: float) -> EvaluationResult:
        """Sample one completion per prompt and measure; the first result sets the baseline."""
        seed = sampling_seed(self.seed, 2**31)
        samples, completions = self.sampler.sample(
            self.prompts, seed=seed, temperature=self.config.temperature
        )
        mask = mask_of(samples).to(self.sampler.backbone.device)
        logps = self.sampler.own_logps(samples, completions)
        ref_logps = self.sampler.logps(samples, self.sampler.reference)
        raw = self.rewards.raw(samples)
        scores = self._scores(samples, raw)
        kl = float(kl_per_token(logps, ref_logps, mask).sum(1).mean())
        if self.start_scores is None:
            self.start_scores = scores
        greedy, _ = self.sampler.sample(self.prompts, seed=seed, temperature=0.0)
        metrics = {
            "eval/score": float(scores.mean()),
            "eval/reward": float(raw[0].mean()),
            "eval/greedy_score": float(self._scores(greedy, self.rewards.raw(greedy)).mean()),
            "eval/kl": kl,
            "eval/kl_k3": float((k3((logps - ref_logps) * mask)).sum(1).mean()),
            "eval/objective": float(scores.mean()) - kl_coef * kl,
            "eval/win_rate": win_rate(scores, self.start_scores),
            "eval/length": float(mask.sum(1).double().mean()),
            "eval/eos_rate": sum(sample.stopped for sample in samples) / len(samples),
            "eval/distinct": len({sample.ids for sample in samples}) / len(samples),
        }
        if self.gold is not None:
            metrics["eval/gold"] = _mean(self.gold.scores(samples))
            metrics["eval/greedy_gold"] = _mean(self.gold.scores(greedy))
        return EvaluationResult(metrics, scores, samples, self._judge(samples, metrics))

    def _judge(self, samples: Sequence[Sample], metrics: dict[str, float]) -> Tensor | None:
        """Return the judge's scores (prompts,); only logs and the alarm may depend on them."""
        if self.judge is None:
            return None
        judged = torch.tensor(finite_scores(self.judge, samples))
        if self.start_judged is None:
            self.start_judged = judged
        metrics["eval/judge"] = float(judged.mean())
        metrics["eval/judge_win_rate"] = win_rate(judged, self.start_judged)
        return judged

    def _scores(self, samples: Sequence[Sample], raw: Tensor) -> Tensor:
        scores = self.rewards.combine(raw)
        stopped = torch.tensor([sample.stopped for sample in samples])
        return penalize_missing_stop(scores, stopped, self.config.missing_eos_penalty)


def win_rate(scores: Tensor, start_scores: Tensor) -> float:
    """Return the share of prompts whose completion beats the starting one's score, ties as half."""
    wins = (scores > start_scores).double() + (scores == start_scores).double() / 2
    return float(wins.mean())


def write_samples(path: Path, iteration: int, result: EvaluationResult) -> None:
    """Append some completions of this evaluation to a JSONL file, for people to read."""
    rows = []
    for number, sample in enumerate(result.samples[:SHOWN_SAMPLES]):
        row = {
            "step": iteration,
            "prompt": sample.prompt.text,
            "completion": sample.text,
            "score": round(float(result.scores[number]), 4),
            "stopped": sample.stopped,
        }
        if result.judged is not None:
            row["judged"] = round(float(result.judged[number]), 4)
        rows.append(row)
    append_rows(path, rows)


def samples_over_time(samples_file: Path) -> list[dict[str, Any]]:
    """Return completions of the same prompts at the start, half way and at the end, with scores."""
    rows = read_log(samples_file)
    steps = sorted({row["step"] for row in rows})
    shown = {steps[0], steps[len(steps) // 2], steps[-1]}
    by_prompt: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["step"] in shown:
            name = f"iteration {row['step']}"
            side = by_prompt.setdefault(row["prompt"], {"prompt": row["prompt"]})
            side.setdefault("replies", {})[name] = row["completion"]
            side.setdefault("scores", {})[name] = row["score"]
            if "judged" in row:
                side.setdefault("judged", {})[name] = row["judged"]
    return list(by_prompt.values())


def frontier(metrics_file: Path) -> list[dict[str, float]]:
    """Return each evaluation's reward, gold score and KL, for plots of the first two against KL."""
    names = {"step": "step", "kl": "eval/kl", "reward": "eval/reward", "gold": "eval/gold"}
    return [
        {name: row[key] for name, key in names.items() if key in row}
        for row in read_log(metrics_file)
        if "eval/kl" in row
    ]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
