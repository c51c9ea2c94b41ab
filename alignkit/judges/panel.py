"""Several judges that vote: the verdict most of them give, a tie when none has more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.errors import RecipeError
from alignkit.judges import Comparison, Judge, Verdict, judge_named


@dataclass(frozen=True)
class PanelJudge:
    """The plurality of its members' verdicts; members that failed do not vote."""

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


def panel_judge(rest: str, **options: Any) -> PanelJudge:
    """`panel:A+B+C`, each a judge of its own."""
    specs = [spec for spec in rest.split("+") if spec]
    if len(specs) < 2:
        raise RecipeError(
            "a panel needs two or more judges", hint="Write panel:gold+chrf:refs.jsonl"
        )
    return PanelJudge(tuple(judge_named(spec, **options) for spec in specs))
