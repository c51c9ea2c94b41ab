"""Held-out prompts: how good the policy is now, and which iteration was the best.

Every look draws with the same seed, so two looks differ by the policy alone. What is compared is
score − kl_coef·KL, the objective itself on prompts it was not trained on.
"""

from __future__ import annotations

import json
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

SHOWN_SAMPLES = 12


@dataclass(frozen=True)
class Look:
    """Numbers of one evaluation, and the scores (prompts,) behind them, the judge's too."""

    metrics: dict[str, float]
    scores: Tensor
    samples: list[Sample]
    judged: Tensor | None = None

    @property
    def win_rate(self) -> float:
        """That of the judge of reward hacking, if there is one, else of the training reward."""
        return self.metrics.get("eval/judge_win_rate", self.metrics["eval/win_rate"])


class Validation:
    """Measures the policy on held-out prompts, against what it said at the start."""

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

    def look(self, kl_coef: float) -> Look:
        """Sample once per prompt and measure; the first look is what later ones must beat."""
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
        return Look(metrics, scores, samples, self._judge(samples, metrics))

    def _judge(self, samples: Sequence[Sample], metrics: dict[str, float]) -> Tensor | None:
        """The judge's scores (prompts,); nothing but logs and the alarm may depend on them."""
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
    """Share of prompts whose completion now scores above the one at the start, ties as half."""
    wins = (scores > start_scores).double() + (scores == start_scores).double() / 2
    return float(wins.mean())


def write_samples(path: Path, iteration: int, look: Look) -> None:
    """Append some completions of this look, for people to read."""
    with path.open("a", encoding="utf-8") as stream:
        for number, sample in enumerate(look.samples[:SHOWN_SAMPLES]):
            row = {
                "step": iteration,
                "prompt": sample.prompt.text,
                "completion": sample.text,
                "score": round(float(look.scores[number]), 4),
                "stopped": sample.stopped,
            }
            if look.judged is not None:
                row["judged"] = round(float(look.judged[number]), 4)
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def replies_over_time(samples_file: Path) -> list[dict[str, Any]]:
    """What was said to the same prompts at the start, half way and at the end, with its scores."""
    rows = [json.loads(line) for line in samples_file.read_text(encoding="utf-8").splitlines()]
    steps = sorted({row["step"] for row in rows})
    shown = {steps[0], steps[len(steps) // 2], steps[-1]}
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["step"] in shown:
            name = f"iteration {row['step']}"
            side = found.setdefault(row["prompt"], {"prompt": row["prompt"]})
            side.setdefault("replies", {})[name] = row["completion"]
            side.setdefault("scores", {})[name] = row["score"]
            if "judged" in row:
                side.setdefault("judged", {})[name] = row["judged"]
    return list(found.values())


def frontier(metrics_file: Path) -> list[dict[str, float]]:
    """What each evaluation found, for plots of reward and gold against KL."""
    names = {"step": "step", "kl": "eval/kl", "reward": "eval/reward", "gold": "eval/gold"}
    rows = [json.loads(line) for line in metrics_file.read_text(encoding="utf-8").splitlines()]
    return [
        {name: row[key] for name, key in names.items() if key in row}
        for row in rows
        if "eval/kl" in row
    ]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
