"""Judges decide which of two completions of a prompt is better.

A judge has a `name`, says whether it `has_order` (it sees one side first, so both orders must be
judged), and turns comparisons into verdicts. To add one: a factory in a sibling module and one line
in JUDGES. `judge_named` makes a judge from what a user wrote: `gold`, `llm:MODEL@URL`,
`human:votes.jsonl`, `chrf:references.jsonl`, `module:function`, or a reward run's directory. Names
of JUDGES are taken: a function in a module `gold` is `function:gold:score`.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from alignkit.data.records import Message
from alignkit.data.template_input import NOTHING, TemplateContext
from alignkit.errors import RecipeError, did_you_mean


class Comparison(NamedTuple):
    """Two completions of a prompt; `left` is the one shown first where a judge has an order."""

    prompt: Sequence[Message]
    left: str
    right: str
    context: TemplateContext = NOTHING


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
        """A verdict for each comparison, in the order given."""
        ...


def compare(judge: Judge, prompt: Sequence[Message], left: str, right: str) -> Verdict:
    """One verdict."""
    return judge.compare_many([Comparison(prompt, left, right)])[0]


def judge_named(spec: str, **options: Any) -> Judge:
    """The judge that `spec` describes; RecipeError with the known kinds when there is none."""
    kind, _, rest = spec.partition(":")
    if kind not in JUDGES:
        if _FUNCTION.fullmatch(spec):
            kind, rest = "function", spec
        elif (Path(spec) / "manifest.json").is_file():
            kind, rest = "reward", spec
        else:
            known = ", ".join(name for name in JUDGES if name != "function")
            raise RecipeError(
                f"unknown judge {spec!r}{did_you_mean(kind, JUDGES)}",
                hint=f"Known: {known}, module:function, or the directory of a reward run",
            )
    elif _is_own_module(kind) and _FUNCTION.fullmatch(spec) and not Path(rest).exists():
        raise RecipeError(
            f"{kind!r} names a judge of alignkit's own, so {spec!r} does not reach your module"
            f" {kind}",
            hint=f"Write function:{spec}, or give the module another name",
        )
    module, factory = JUDGES[kind]
    judge: Judge = getattr(importlib.import_module(module), factory)(rest, **options)
    return judge


def _is_own_module(name: str) -> bool:
    """Whether the directory we are in holds a Python module of this name."""
    return PathFinder.find_spec(name, [os.getcwd()]) is not None


_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

# kind -> (module, factory). A factory takes what stands after the colon, and options by name.
JUDGES: dict[str, tuple[str, str]] = {
    "gold": ("alignkit.judges.scores", "gold_judge"),
    "reward": ("alignkit.judges.scores", "reward_judge"),
    "llm": ("alignkit.judges.llm", "llm_judge"),
    "human": ("alignkit.judges.human", "human_judge"),
    "function": ("alignkit.judges.function", "function_judge"),
    "panel": ("alignkit.judges.panel", "panel_judge"),
    "bleu": ("alignkit.judges.reference", "bleu_judge"),
    "chrf": ("alignkit.judges.reference", "chrf_judge"),
    "rouge": ("alignkit.judges.reference", "rouge_judge"),
    "exact": ("alignkit.judges.reference", "exact_judge"),
    "f1": ("alignkit.judges.reference", "f1_judge"),
}
