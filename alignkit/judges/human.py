"""Judge by people: look the votes of `alignkit rank` up by the texts they were cast on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from alignkit.evaluation.ranked_items import SCORES, conversation, item_of, read_items
from alignkit.evaluation.votes import read_ballots
from alignkit.judges import Comparison, Verdict
from alignkit.recipe.scorer_forms import Spec, paths
from alignkit.scorers import Resources

Key = tuple[str, str, str]


@dataclass(frozen=True)
class HumanJudge:
    """Gives the mean verdict of all who compared these two texts; fails where nobody did."""

    name: str
    scores: Mapping[Key, float]
    has_order: bool = False

    def compare_many(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        return [self._one(comparison) for comparison in comparisons]

    def _one(self, comparison: Comparison) -> Verdict:
        prompt = conversation([{"role": m.role, "content": m.content} for m in comparison.prompt])
        score = self.scores.get((prompt, comparison.left, comparison.right))
        return Verdict(score, None if score is not None else "nobody compared these two")


def open_judge(spec: Spec, resources: Resources) -> HumanJudge:
    """`human:votes.jsonl,candidates.jsonl`: events with the candidates they name, or rankings."""
    files = [str(resources.file(path)) for path in paths(spec.argument)]
    ballots = read_ballots(files)
    items = read_items(files, ballots)
    heard: dict[Key, list[float]] = defaultdict(list)
    for vote in ballots.votes:
        item = item_of(items, vote)
        for (x, y), category in vote.categories().items():
            left, right, score = item.texts[x], item.texts[y], SCORES[category]
            heard[item.prompt, left, right].append(score)
            heard[item.prompt, right, left].append(1.0 - score)
    return HumanJudge("human", {key: fmean(scores) for key, scores in heard.items()})
