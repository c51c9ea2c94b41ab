"""Judge by a reference: the completion closer to it wins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from alignkit.data.records import Message
from alignkit.errors import DataError
from alignkit.evaluation.judged_rows import RowFile
from alignkit.evaluation.text_metrics import METRICS
from alignkit.judges import Comparison, Verdict
from alignkit.recipe.scorer_forms import Spec
from alignkit.scorers import Resources


@dataclass(frozen=True)
class ReferenceJudge:
    """Compares by the best score over a prompt's references; fails where there is none."""

    name: str
    metric: Callable[[str, str], float]
    references: Mapping[str, Sequence[str]]
    has_order: bool = False

    def compare_many(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        return [self._one(comparison) for comparison in comparisons]

    def _one(self, comparison: Comparison) -> Verdict:
        known = self.references.get(_last_turn(comparison.prompt))
        if not known:
            return Verdict(None, "no reference for this prompt")
        left, right = (
            max(self.metric(side, reference) for reference in known)
            for side in (comparison.left, comparison.right)
        )
        score = 0.5 if left == right else float(left > right)
        return Verdict(score, notes={"score_left": left, "score_right": right})


def _last_turn(prompt: Sequence[Message]) -> str:
    return prompt[-1].content if prompt else ""


def read_references(path: str) -> dict[str, list[str]]:
    """Read rows of `prompt` (a text or messages) and `reference` (a text or several)."""
    found: dict[str, list[str]] = {}
    for line, row in RowFile(path):
        prompt, given = row.get("prompt"), row.get("reference")
        if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
            prompt = prompt[-1].get("content")
        texts = [given] if isinstance(given, str) else given
        well = isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts)
        if not isinstance(prompt, str) or not well:
            raise DataError(
                "a row needs 'prompt' (a text or messages) and 'reference' (a text or a list)",
                where=f"{path}:{line}",
            )
        found.setdefault(prompt, []).extend(texts or [])
    return found


def open_judge(spec: Spec, resources: Resources) -> ReferenceJudge:
    """`bleu:FILE`, or another metric's name, with a file of references."""
    return ReferenceJudge(
        spec.kind, METRICS[spec.kind], read_references(str(resources.file(spec.argument)))
    )
