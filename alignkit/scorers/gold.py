"""Score by the embedded task's own rule: the truth that a real project never has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alignkit.data.records import Message
from alignkit.errors import DataError
from alignkit.recipe.scorer_forms import Spec
from alignkit.scorers import Completed, Resources
from alignkit.tiny import gold


class GoldScorer:
    """Raises DataError for prompts of another task."""

    name = "gold"

    def scores(self, items: Sequence[Completed]) -> list[float]:
        return [gold.score(last_turn(item.messages), item.text) for item in items]


def last_turn(messages: Sequence[Mapping[str, Any]]) -> str:
    """What the user said last."""
    return str(messages[-1]["content"])


def gold_score(prompt: Sequence[Message], reply: str) -> float:
    """Score one completion. Raises DataError for prompts of another task."""
    return gold.score(prompt[-1].content, reply)


def gold_applies(prompts: Iterable[Sequence[Mapping[str, Any]]]) -> bool:
    """Whether there are prompts, and the true score of each is known."""
    asked = [last_turn(messages) for messages in prompts]
    try:
        for text in asked:
            gold.facts_of(text)
    except DataError:
        return False
    return bool(asked)


def open_scorer(_spec: Spec, _resources: Resources) -> GoldScorer:
    return GoldScorer()
