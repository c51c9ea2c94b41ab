"""Judge by a user's Python function: `package.module:function`, called as f(prompt, left, right).

`prompt` is a list of {"role", "content"}, with tool_calls and the like where a turn has them; the
function returns P(left is better) as a number from 0 to 1, "left", "right" or "tie", or None when
it cannot tell. A function of a prompt and one completion, as PPO takes for a reward, judges by its
scores. It runs as code of the user's own.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.judges import Comparison, Judge, Verdict
from alignkit.judges.scores import ScoreJudge
from alignkit.recipe.scorer_forms import Spec
from alignkit.scorers import Resources
from alignkit.scorers.function import FunctionScorer, find_function, foreign_code

WORDS = {"left": 1.0, "tie": 0.5, "right": 0.0}


@dataclass(frozen=True)
class FunctionJudge:
    """Calls the function; what it raises, or returns out of range, is a failed judgement."""

    name: str
    function: Callable[[list[dict[str, Any]], str, str], Any]
    directory: str
    has_order: bool = True

    def compare_many(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        return [self._one(comparison) for comparison in comparisons]

    def _one(self, comparison: Comparison) -> Verdict:
        prompt = [m.model_dump(exclude={"train", "extra"}) for m in comparison.prompt]
        try:
            with foreign_code(self.directory):
                answer = self.function(prompt, comparison.left, comparison.right)
        # Code of the user's own may raise anything; the judgement carries it to the report.
        except (Exception, SystemExit) as error:
            return Verdict(None, f"{type(error).__name__}: {error}")
        return _verdict(answer)


def _verdict(answer: Any) -> Verdict:
    if answer is None:
        return Verdict(None, "no verdict")
    score = WORDS.get(answer) if isinstance(answer, str) else answer
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        return Verdict(None, f"not a verdict: {answer!r:.80}")
    return Verdict(float(score))


def open_judge(spec: Spec, resources: Resources) -> Judge:
    """The function as a judge: of two completions, or of scores where it scores one."""
    function = find_function(spec.argument, resources.what)
    if scores_one(function):
        return ScoreJudge.of(FunctionScorer(spec.argument, resources.what))
    return FunctionJudge(spec.argument, function, os.getcwd())


def scores_one(function: Callable[..., Any]) -> bool:
    """Whether the function takes a prompt and one completion, as a reward of PPO does.

    It says so by the name of its parameter, or by having no room for a third value.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C do not tell
        return False
    names = signature.parameters.keys()
    if names & {"completion", "completions"}:
        return True
    if names & {"left", "right"} or any(
        p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()
    ):
        return False
    places = [p for p in signature.parameters.values() if p.kind in _BY_PLACE]
    return len(places) == 2


_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
