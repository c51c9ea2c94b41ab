"""Compute style covariates: differences in length and markup that may sway a verdict.

They enter Bradley–Terry as in Chatbot Arena's style control (Li et al., "Does style matter?",
2024): (left - right) / (left + right), here in units of its root mean square. They are not centred:
swapping the sides of a row must flip the sign of its differences and change nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from alignkit.errors import DataError, RecipeError, pick
from alignkit.evaluation.judgements import Judgements
from alignkit.statistics.intervals import Floats

_HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
_ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")

COVARIATES: dict[str, Callable[[str], int]] = {
    "length": len,
    "headers": lambda text: len(_HEADER.findall(text)),
    "lists": lambda text: len(_ITEM.findall(text)),
    "bold": lambda text: len(_BOLD.findall(text)),
}


def covariate_names(given: str) -> tuple[str, ...]:
    """Parse `length,bold` into names; `style` means all of them."""
    names = tuple(COVARIATES) if given == "style" else tuple(given.split(","))
    for name in names:
        pick(COVARIATES, name, what="covariate")
    if len(set(names)) < len(names):
        raise RecipeError(f"--covariates {given!r} repeats a name")
    return names


def needs_texts(names: Sequence[str]) -> bool:
    """Return whether the covariates need the texts, not only their lengths."""
    return any(name != "length" for name in names)


def differences(judgements: Judgements, names: Sequence[str]) -> Floats:
    """Return relative differences left - right (n, k), each column with root mean square 1."""
    columns = [_column(judgements, name) for name in names]
    matrix = np.stack(columns, axis=1)
    spread = np.sqrt(np.mean(matrix**2, axis=0))
    return np.asarray(matrix / np.where(spread > 0, spread, 1.0))


def _column(judgements: Judgements, name: str) -> Floats:
    if name == "length":
        left, right = judgements.left_length, judgements.right_length
    else:
        left, right = (_counts(judgements, name, side) for side in ("left", "right"))
    unknown = np.isnan(left) | np.isnan(right)
    if unknown.any():
        prompt = judgements.prompts[judgements.prompt[int(np.argmax(unknown))]]
        raise DataError(
            f"prompt {prompt!r} has no outputs to measure {name!r} on",
            hint="Covariates need the texts of both sides; length also accepts len_a and len_b",
        )
    total = left + right
    return np.asarray((left - right) / np.where(total > 0, total, 1.0))


def _counts(judgements: Judgements, name: str, side: str) -> Floats:
    count = COVARIATES[name]
    rows = zip(judgements.prompt, getattr(judgements, side), strict=True)
    texts = (judgements.texts[p].outputs.get(judgements.models[m]) for p, m in rows)
    return np.array([np.nan if text is None else float(count(text)) for text in texts])
