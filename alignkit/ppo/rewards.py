"""Rewards of PPO and RLOO: scorers whose scores are normalised, clipped, weighted and summed.

Normalisation shifts and scales by a mean and deviation fixed on samples of the starting policy. A
failure names the prompt it happened on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignkit.data.chat import Encoder
from alignkit.errors import RecipeError
from alignkit.forward.logps import Group
from alignkit.model.backbone import REWARD, Backbone
from alignkit.model.heads import Scale
from alignkit.recipe.settings import OnlineConfig
from alignkit.scorers import Resources, Scorer, finite_scores, open_scorer
from alignkit.scorers.backbones import Backbones
from alignkit.scorers.gold import GoldScorer, gold_applies, last_turn
from alignkit.scorers.reward_model import RewardModel
from alignkit.scorers.reward_run import RewardRun
from alignkit.training.context import StageContext

JUDGE = "judge"  # the adapter of the alarm's judge


@dataclass(frozen=True)
class RolloutPrompt:
    """A prompt to sample completions of: its messages, its token ids, and where it came from.

    `columns`: what else its row held, for Python functions that ask for it by name.
    """

    where: str
    messages: tuple[Mapping[str, Any], ...]
    ids: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What the user said last."""
        return last_turn(self.messages)


@dataclass(frozen=True)
class Sample:
    """A prompt with one sampled completion; `ids` end in the stop token if it `stopped`.

    Scorers take it as `alignkit.scorers.Completed`.
    """

    prompt: RolloutPrompt
    ids: tuple[int, ...]
    text: str
    stopped: bool

    @property
    def where(self) -> str:
        return self.prompt.where

    @property
    def messages(self) -> Sequence[Mapping[str, Any]]:
        return self.prompt.messages

    @property
    def columns(self) -> Mapping[str, Any]:
        return self.prompt.columns

    def group(self, encoder: Encoder) -> Group:
        """The tokens as sampled, ended."""
        return self.ended(encoder.end_token_id)

    def ended(self, stop_token_id: int) -> Group:
        """Prompt, completion and stop token, as a reward model was trained to read them.

        A completion that was cut off gets the stop token here, and pays by missing_eos_penalty.
        """
        return Group(self.prompt.ids, [self.ids if self.stopped else (*self.ids, stop_token_id)])


class ModelReward:
    """A reward model on the training backbone, which can give its hidden states away."""

    def __init__(self, name: str, model: RewardModel, stop_token_id: int, batch_size: int) -> None:
        self.name, self.model = name, model
        self.stop_token_id, self.batch_size = stop_token_id, batch_size
        self.keeps_states = False  # whether a value learner asks for them after the scores
        self._kept: tuple[Sequence[Sample], Tensor] | None = None

    def scores(self, samples: Sequence[Any]) -> list[float]:
        if not self.keeps_states:
            return self.model.scores(self._groups(samples), self.batch_size)
        scores, states = self._read(samples)
        self._kept = samples, states
        return scores

    def states(self, samples: Sequence[Sample]) -> Tensor:
        """States before each token, (tokens, hidden); free where scores were just asked for."""
        if self._kept is None or self._kept[0] is not samples:
            return self._read(samples)[1]
        states, self._kept = self._kept[1], None
        return states

    def _groups(self, samples: Sequence[Sample]) -> list[Group]:
        return [sample.ended(self.stop_token_id) for sample in samples]

    def _read(self, samples: Sequence[Sample]) -> tuple[list[float], Tensor]:
        """Scores, and the states before each real token, of one forward."""
        states = self.model.states(self._groups(samples), self.batch_size)
        sizes = [len(s.ids) + (1 if s.stopped else 2) for s in samples]
        rows = torch.split(states, sizes)
        before = [row[: len(s.ids)] for row, s in zip(rows, samples, strict=True)]
        scores: Tensor = self.model.head(torch.stack([row[-1] for row in rows]))
        return scores.tolist(), torch.cat(before)


class Rewards:
    """All sources of a run; their scores become one number per completion.

    total = Σ weight · clip(normalise(score)); `scales` is fixed before the first step.
    """

    def __init__(
        self, sources: Sequence[Scorer], weights: Sequence[float], clip: float | None
    ) -> None:
        self.sources, self.weights, self.clip = sources, weights, clip
        self.scales = [Scale() for _ in sources]

    def raw(self, samples: Sequence[Sample]) -> Tensor:
        """Scores as the sources give them, (sources, samples); all finite."""
        return torch.tensor([finite_scores(source, samples) for source in self.sources])

    def combine(self, raw: Tensor) -> Tensor:
        """Normalise, clip, weight and sum them: (samples,)."""
        total = torch.zeros(raw.shape[1])
        for scores, scale, weight in zip(raw, self.scales, self.weights, strict=True):
            normal = scale.normalise(scores)
            if self.clip is not None:
                normal = normal.clamp(-self.clip, self.clip)
            total += weight * normal
        return total

    def fix_scales(self, raw: Tensor) -> None:
        """Normalise so that these samples, of the starting policy, have mean 0 and deviation 1."""
        self.scales = [
            Scale(float(scores.mean()), float(scores.std(unbiased=False)) or 1.0) for scores in raw
        ]


def open_rewards(
    config: OnlineConfig, context: StageContext, backbone: Backbone, stop_token_id: int
) -> Rewards:
    """Open the scorers that the settings name, reward models on the backbone."""
    named = [
        *(("reward_model", name) for name in config.reward_model),
        *(("reward", name) for name in config.reward),
        *(("reward_url", name) for name in config.reward_url),
    ]
    sources = [
        _opened(name, config, context, backbone, stop_token_id, what, _adapter(number))
        for number, (what, name) in enumerate(named)
    ]
    weights = config.reward_weights or (1.0,) * len(sources)
    return Rewards(sources, weights, config.reward_clip)


def _adapter(number: int) -> str:
    return f"{REWARD}_{number}" if number else REWARD


def open_judge(
    config: OnlineConfig,
    context: StageContext,
    backbone: Backbone,
    stop_token_id: int,
    prompts: Sequence[RolloutPrompt],
) -> Scorer | None:
    """Open the judge of the alarm of reward hacking: `alarm_judge`, else gold where it is known.

    None where gold is not known, or is what trains: the training reward is then asked alone.
    """
    name = config.alarm_judge
    known = gold_applies([prompt.messages for prompt in prompts])
    if name is None:
        return GoldScorer() if known and "gold" not in config.reward_model else None
    if name == "gold" and not known:
        raise RecipeError("alarm_judge gold knows the prompts of the embedded task only")
    return _opened(name, config, context, backbone, stop_token_id, "alarm_judge", JUDGE)


def _opened(
    name: str,
    config: OnlineConfig,
    context: StageContext,
    backbone: Backbone,
    stop_token_id: int,
    what: str,
    adapter: str,
) -> Scorer:
    size = config.rollout_forward_batch_size
    scorer = open_scorer(
        name,
        Resources(
            backbones=Backbones.sharing(backbone),
            run=context.artifact,
            run_name=str,
            what=what if what == "reward_url" else "reward",
            adapter=adapter,
            batch_size=size,
            timeout=config.reward_timeout,
        ),
    )
    if isinstance(scorer, RewardRun):
        return ModelReward(name, scorer.model(), stop_token_id, size)
    return scorer
