"""People as judges: the votes of `alignkit rank`, looked up by the texts they were cast on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from alignkit.evaluation.ranked_items import SCORES, conversation, item_of, read_items
from alignkit.evaluation.votes import read_ballots
from alignkit.judges import Comparison, Verdict

Key = tuple[str, str, str]


@dataclass(frozen=True)
class HumanJudge:
    """Mean verdict of all who compared these two texts; a pair nobody compared is a failure."""

    name: str
    scores: Mapping[Key, float]
    has_order: bool = False

    def compare_many(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        return [self._one(comparison) for comparison in comparisons]

    def _one(self, comparison: Comparison) -> Verdict:
        prompt = conversation([{"role": m.role, "content": m.content} for m in comparison.prompt])
        score = self.scores.get((prompt, comparison.left, comparison.right))
        return Verdict(score, None if score is not None else "nobody compared these two")


def human_judge(rest: str, **_options: Any) -> HumanJudge:
    """`human:votes.jsonl,candidates.jsonl`: events with the candidates they name, or rankings."""
    paths = [path for path in rest.split(",") if path]
    ballots = read_ballots(paths)
    items = read_items(paths, ballots)
    heard: dict[Key, list[float]] = defaultdict(list)
    for vote in ballots.votes:
        item = item_of(items, vote)
        for (x, y), category in vote.categories().items():
            left, right, score = item.texts[x], item.texts[y], SCORES[category]
            heard[item.prompt, left, right].append(score)
            heard[item.prompt, right, left].append(1.0 - score)
    return HumanJudge("human", {key: fmean(scores) for key, scores in heard.items()})
