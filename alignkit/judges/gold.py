"""The embedded task's own scoring as a judge: the truth that a real project never has."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.data.records import Message
from alignkit.tiny import gold


def gold_score(prompt: Sequence[Message], reply: str) -> float:
    """The worth of a reply to the last turn. Raises DataError for prompts of another task."""
    return gold.score(prompt[-1].content, reply)
