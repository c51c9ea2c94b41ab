"""A judge written by the user: `package.module:function`, called as f(prompt, left, right).

`prompt` is a list of {"role", "content"}, with tool_calls and the like where a turn has them; the
function returns P(left is better) as a number from 0 to 1, "left", "right" or "tie", or None when
it cannot tell. It runs as code of the user's own.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.errors import RecipeError
from alignkit.judges import Comparison, Verdict

WORDS = {"left": 1.0, "tie": 0.5, "right": 0.0}


@dataclass(frozen=True)
class FunctionJudge:
    """Calls a function; what it raises or returns out of range is a failed judgement."""

    name: str
    function: Callable[[list[dict[str, Any]], str, str], Any]
    has_order: bool = True

    def compare_many(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        return [self._one(comparison) for comparison in comparisons]

    def _one(self, comparison: Comparison) -> Verdict:
        prompt = [m.model_dump(exclude={"train", "extra"}) for m in comparison.prompt]
        try:
            answer = self.function(prompt, comparison.left, comparison.right)
        # Code of the user's own may raise anything; the judgement carries it to the report.
        except Exception as error:
            return Verdict(None, f"{type(error).__name__}: {error}")
        return _verdict(answer)


def _verdict(answer: Any) -> Verdict:
    if answer is None:
        return Verdict(None, "no verdict")
    score = WORDS.get(answer) if isinstance(answer, str) else answer
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        return Verdict(None, f"not a verdict: {answer!r:.80}")
    return Verdict(float(score))


def function_judge(rest: str, **_options: Any) -> FunctionJudge:
    """The judge `module:function` names; the current directory is searched too."""
    module, _, name = rest.partition(":")
    if not module or not name:
        raise RecipeError(f"judge {rest!r} names no function", hint="Write module:function")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), name)
    # Code of the user's own may raise anything, a SyntaxError first of all.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise RecipeError(f"judge {rest!r} cannot be loaded: {reason}") from None
    if not callable(function):
        raise RecipeError(f"judge {rest!r} is no function")
    return FunctionJudge(rest, function)
