"""Judge by the votes of several judges: most of them decide, and none more is a tie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from alignkit.judges import Comparison, Judge, Verdict
from alignkit.judges import open_judge as open_member
from alignkit.recipe.scorer_forms import Spec, members
from alignkit.scorers import Resources


@dataclass(frozen=True)
class PanelJudge:
    """Gives the verdict with most votes; members that failed do not vote."""

    members: tuple[Judge, ...]

    @property
    def name(self) -> str:
        return "panel(" + ", ".join(member.name for member in self.members) + ")"

    @property
    def has_order(self) -> bool:
        return any(member.has_order for member in self.members)

    def compare_many(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        columns = [member.compare_many(comparisons) for member in self.members]
        return [self._vote(verdicts) for verdicts in zip(*columns, strict=True)]

    def _vote(self, verdicts: Sequence[Verdict]) -> Verdict:
        notes = {"votes": {m.name: v.score for m, v in zip(self.members, verdicts, strict=True)}}
        known = [v.score for v in verdicts if v.score is not None]
        if not known:
            reasons = "; ".join(sorted({v.error or "no verdict" for v in verdicts}))
            return Verdict(None, f"no member gave a verdict: {reasons}", notes)
        votes = Counter(0.5 if s == 0.5 else float(s > 0.5) for s in known)
        (first, most), *others = votes.most_common()
        drawn = bool(others) and others[0][1] == most
        return Verdict(0.5 if drawn else first, notes=notes)


def open_judge(spec: Spec, resources: Resources) -> PanelJudge:
    """`panel:A+B+C`, each a judge of its own."""
    return PanelJudge(tuple(open_member(text, resources) for text in members(spec.argument)))
