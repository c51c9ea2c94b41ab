"""Judges decide which of two completions of a prompt is better.

A judge has a `name`, says whether it `has_order` (it sees one side first, so both orders must be
judged), and turns comparisons into verdicts. Every scorer judges: the higher score wins.
`judge_named` opens a judge from what a user wrote: `gold`, `llm:MODEL@URL`, `human:votes.jsonl`,
`chrf:references.jsonl`, `module:function`, or a reward run's directory; all kinds stand in
`alignkit.recipe.scorer_forms.FORMS`, and docs/CONTRIBUTING.md shows how to add one. Names of kinds
are taken: a function in a module `gold` is `function:gold:score`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from alignkit.data.records import Message
from alignkit.data.template_input import NOTHING, TemplateContext
from alignkit.errors import RecipeError
from alignkit.recipe.scorer_forms import is_function, mistake, parse
from alignkit.scorers import Resources, opened_scorer, unknown


class Comparison(NamedTuple):
    """Two completions of a prompt; `left` is the one shown first where a judge has an order.

    `where` and `columns`: the prompt's place in its file, and what else its row holds.
    """

    prompt: Sequence[Message]
    left: str
    right: str
    context: TemplateContext = NOTHING
    where: str | None = None
    columns: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Verdict:
    """`score` is P(left is better) in [0, 1], None with an `error` when the judge failed."""

    score: float | None
    error: str | None = None
    notes: Mapping[str, Any] | None = None  # what a judgement keeps in `extra`


class Judge(Protocol):
    """What all judges share."""

    @property
    def name(self) -> str:
        """How judgements name the judge."""
        ...

    @property
    def has_order(self) -> bool:
        """Whether it matters which side is shown first."""
        ...

    def compare_many(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Give a verdict per comparison, in order."""
        ...


def compare(judge: Judge, prompt: Sequence[Message], left: str, right: str) -> Verdict:
    """Give one verdict."""
    return judge.compare_many([Comparison(prompt, left, right)])[0]


def judge_named(text: str, **options: Any) -> Judge:
    """Open the judge that `text` names, with Resources of these options."""
    return open_judge(text, Resources(**options))


def open_judge(text: str, resources: Resources) -> Judge:
    """Open the judge that `text` names. Raises RecipeError, with the known kinds, for none."""
    spec = parse(text)
    _refuse_shadowed_module(text)
    if wrong := mistake(text, "judge"):
        raise RecipeError(wrong[0], hint=wrong[1])
    if spec == ("reward", text) and not resources.run(text).is_dir():
        raise unknown(text, "judge")
    if spec.form.judge is not None:
        judge: Judge = importlib.import_module(spec.form.judge).open_judge(spec, resources)
        return judge
    from alignkit.judges.scores import ScoreJudge

    return ScoreJudge.of(opened_scorer(spec, resources))


def open_judges(texts: Sequence[str], resources: Resources) -> list[Judge]:
    """Open several judges, each once. Raises RecipeError where two have one name."""
    judges = [open_judge(text, resources) for text in dict.fromkeys(texts)]
    names = [judge.name for judge in judges]
    for name in names:
        if names.count(name) > 1:
            # Their verdicts would stand in one file as those of one judge.
            raise RecipeError(
                f"two judges are called {name!r}", hint="Rename a directory, or judge in two runs"
            )
    return judges


def _refuse_shadowed_module(text: str) -> None:
    """Refuse `gold:score` where the user has a module `gold`: the name is taken."""
    kind, _, rest = text.partition(":")
    taken = parse(text).kind == kind and is_function(text) and not Path(rest).exists()
    if taken and PathFinder.find_spec(kind, [os.getcwd()]) is not None:
        raise RecipeError(
            f"{kind!r} names a judge of alignkit's own, so {text!r} does not reach your module"
            f" {kind}",
            hint=f"Write function:{text}, or give the module another name",
        )
