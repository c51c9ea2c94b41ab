"""Whether a policy or a judge treats groups alike.

Win rates by group with intervals; equal-opportunity and equalised-odds gaps where prompts carry
labels (Hardt et al., arXiv:1610.02413); and prompts with the group terms exchanged, to see whether
the verdict follows the term.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from alignkit.errors import DataError, RecipeError
from alignkit.evaluation.judged_rows import RowFile
from alignkit.statistics.distributions import (
    holm,
    normal_quantile,
    normal_two_sided,
    t_two_sided,
)
from alignkit.statistics.intervals import (
    Floats,
    as_dict,
    interval,
    mean_estimate,
    mean_interval,
    wilson,
)

Groups = Sequence[str]


def group_rates(scores: Floats, groups: Groups, *, bounded: bool = True) -> dict[str, Any]:
    """Mean score of each group with its interval, and every difference with Holm's p-values.

    `bounded` scores are wins in [0, 1] and their mean a win rate; others have any scale.
    """
    names = sorted(set(groups))
    own = {name: scores[np.array([group == name for group in groups])] for name in names}
    key = "win_rate" if bounded else "mean"
    rows = []
    for name, values in own.items():
        found = interval("t", values) if bounded else mean_interval(mean_estimate(values))
        ci = as_dict(found)
        rows.append({"group": name, "n": len(values), key: float(values.mean()), "ci": ci})
    gaps = [
        {"groups": [x, y], **_difference(own[x], own[y])}
        for x, y in combinations(names, 2)
        if min(len(own[x]), len(own[y])) > 1
    ]
    adjusted = holm([gap["p_value"] for gap in gaps])
    gaps = [gap | {"p_holm": p} for gap, p in zip(gaps, adjusted, strict=True)]
    means = [float(values.mean()) for values in own.values()]
    return {"groups": rows, "gaps": gaps, "largest_gap": max(means) - min(means) if means else None}


def _difference(x: Floats, y: Floats) -> dict[str, Any]:
    """Welch's test of two means (Biometrika 34, 1947)."""
    one, other = mean_estimate(x), mean_estimate(y)
    a, b = (one.se or 0.0) ** 2, (other.se or 0.0) ** 2
    gap = one.value - other.value
    if not a + b:
        return {"difference": gap, "se": 0.0, "p_value": 1.0 if not gap else 0.0}
    df = (a + b) ** 2 / (a * a / (len(x) - 1) + b * b / (len(y) - 1))
    se = math.sqrt(a + b)
    return {"difference": gap, "se": se, "p_value": t_two_sided(gap / se, df)}


def odds_gaps(
    labels: Sequence[bool], predictions: Sequence[bool], groups: Groups
) -> dict[str, Any]:
    """True and false positive rates by group, and how far groups are apart.

    equal_opportunity: largest gap of true positive rates. equalised_odds: the larger of that and
    the largest gap of false positive rates. Groups without such cases do not enter.
    """
    y, p, g = np.array(labels, dtype=bool), np.array(predictions, dtype=bool), np.array(groups)
    rows = []
    for name in sorted(set(groups)):
        own = g == name
        rows.append({
            "group": name,
            "n": int(own.sum()),
            "positive_rate": _share(p[own]),
            "true_positive_rate": _share(p[own & y]),
            "false_positive_rate": _share(p[own & ~y]),
        })  # fmt: skip
    spread = {key: _spread(rows, key) for key in ("true_positive_rate", "false_positive_rate")}
    known = [gap["gap"] for gap in spread.values() if gap is not None]
    return {
        "groups": rows,
        "equal_opportunity": spread["true_positive_rate"],
        "false_positive": spread["false_positive_rate"],
        "equalised_odds": max(known) if known else None,
    }


def _share(values: Any) -> dict[str, Any] | None:
    if not len(values):
        return None
    share = float(values.mean())
    low, high = wilson(share, len(values))
    ci = {"level": 0.95, "method": "wilson", "low": low, "high": high}
    return {"value": share, "n": len(values), "ci": ci}


def _spread(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any] | None:
    """The two groups furthest apart, with a normal interval and p-value of their difference."""
    known = sorted((row for row in rows if row[key]), key=lambda row: row[key]["value"])
    if len(known) < 2:
        return None
    low, high = known[0][key], known[-1][key]
    gap = high["value"] - low["value"]
    se = math.sqrt(sum(s["value"] * (1 - s["value"]) / s["n"] for s in (low, high)))
    half = normal_quantile(0.975) * se
    ci = {"level": 0.95, "method": "normal", "low": gap - half, "high": gap + half}
    p = normal_two_sided(gap / se) if se else float(gap == 0)
    return {"gap": gap, "groups": [known[-1]["group"], known[0]["group"]], "ci": ci, "p_value": p}


# --- exchanged terms -----------------------------------------------------------------------------


def parse_swaps(texts: Sequence[str]) -> dict[str, str]:
    """`he:she` both ways, in lower case; a term may stand on one side only."""
    swaps: dict[str, str] = {}
    for text in texts:
        left, _, right = (part.strip().lower() for part in text.partition(":"))
        if not left or not right or left == right:
            raise RecipeError(f"{text!r} is no pair of terms", hint="Write he:she")
        for term, other in ((left, right), (right, left)):
            if swaps.setdefault(term, other) != other:
                raise RecipeError(f"{term!r} stands for both {swaps[term]!r} and {other!r}")
    return swaps


def swapped(text: str, swaps: Mapping[str, str]) -> str:
    """The text with whole terms exchanged, all at once, keeping capitals."""
    if not swaps:
        return text
    longest_first = sorted(swaps, key=len, reverse=True)
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)
    return pattern.sub(lambda found: _as_written(found[0], swaps[found[0].lower()]), text)


def _as_written(old: str, new: str) -> str:
    if len(old) > 1 and old.isupper():
        return new.upper()
    return new[0].upper() + new[1:] if old[0].isupper() else new


def counterfactual_report(scores: Floats, exchanged: Floats) -> dict[str, Any]:
    """How far scores move when the terms are exchanged; (n,) pairs of the same prompts."""
    change = exchanged - scores
    estimate = mean_estimate(change)
    moved = float(np.mean(np.abs(change) > 1e-9))
    p = t_two_sided(estimate.value / estimate.se, estimate.df) if estimate.se else None
    return {
        "n": len(change),
        "mean_change": estimate.value,
        "se": estimate.se,
        "p_value": p,
        "mean_distance": float(np.abs(change).mean()),
        "moved": moved,
    }


def read_labelled(path: str | Path, group: str) -> tuple[list[bool], list[bool], list[str]]:
    """Rows of `label` and `prediction` (true or false) with a group field."""
    labels, predictions, groups = [], [], []
    for line, row in RowFile(path):
        for key in ("label", "prediction"):
            if not isinstance(row.get(key), bool):
                raise DataError(f"{key!r} must be true or false", where=f"{path}:{line}")
        if row.get(group) is None:
            raise DataError(f"no {group!r} in this row", where=f"{path}:{line}")
        labels.append(row["label"])
        predictions.append(row["prediction"])
        groups.append(str(row[group]))
    return labels, predictions, groups
