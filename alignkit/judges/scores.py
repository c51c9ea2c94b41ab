"""Judges that score each completion by itself: no order, so each pair is judged once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.data.records import Message
from alignkit.errors import RecipeError
from alignkit.judges import Comparison, Verdict

Scorer = Callable[[Sequence[tuple[Sequence[Message], str]]], list[float]]


@dataclass(frozen=True)
class ScoreJudge:
    """The higher score wins, equal scores tie."""

    name: str
    score: Scorer
    has_order: bool = False

    def compare_many(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        sides = [(c.prompt, text) for c in comparisons for text in (c.left, c.right)]
        scores = self.score(sides)
        return [
            Verdict(_won(left, right), notes={"score_left": left, "score_right": right})
            for left, right in zip(scores[::2], scores[1::2], strict=True)
        ]


def _won(left: float, right: float) -> float:
    return 0.5 if left == right else float(left > right)


def gold_judge(rest: str = "", **_options: Any) -> ScoreJudge:
    """The embedded task's own truth."""
    from alignkit.judges.gold import gold_score

    if rest:
        raise RecipeError(f"the gold judge takes nothing after its name, not {rest!r}")
    return ScoreJudge("gold", lambda sides: [gold_score(prompt, text) for prompt, text in sides])


def reward_judge(
    rest: str, *, backbones: Any = None, batch_size: int = 16, **_options: Any
) -> ScoreJudge:
    """A reward run's model, on one of the backbones already loaded where its base is the same."""
    from alignkit.data.chat import Encoder
    from alignkit.judges.contest import Backbones
    from alignkit.logps import Group
    from alignkit.model_files import find_model
    from alignkit.recipe import BackboneConfig
    from alignkit.reward_model import RewardModel

    directory = Path(rest)
    if not (directory / "adapter" / "head.safetensors").is_file():
        raise RecipeError(f"{rest} is no finished reward run", hint="Name its directory")
    loaded = backbones or Backbones(BackboneConfig())
    backbone = loaded.of(find_model(rest))
    model = RewardModel.load(backbone, directory)
    encoder = Encoder(backbone.tokenizer)

    def score(sides: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        groups = []
        for prompt, text in sides:
            reply = [Message(role="assistant", content=text)]
            ids = encoder.completion_ids(list(prompt), reply)
            groups.append(Group(encoder.prompt_ids(list(prompt)), [ids]))
        return model.scores(groups, batch_size)

    return ScoreJudge(directory.name, score)
