"""Measure whether a policy or a judge treats groups alike.

There are three measures: win rates per group with intervals; equal-opportunity and equalised-odds
gaps of labelled rows (Hardt et al., arXiv:1610.02413); and counterfactual prompts with the group
terms swapped, to see whether the verdict follows the term.
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
    share_of,
)

Groups = Sequence[str]


def group_rates(scores: Floats, groups: Groups, *, bounded: bool = True) -> dict[str, Any]:
    """Return the mean score per group with its interval, and all differences with Holm p-values.

    `bounded` scores lie in [0, 1] and their mean is a win rate; others are on any scale.
    """
    names = sorted(set(groups))
    own = {name: scores[np.array([group == name for group in groups])] for name in names}
    key = "win_rate" if bounded else "mean"
    rows = []
    for name, values in own.items():
        ci = interval("t", values) if bounded else mean_interval(mean_estimate(values))
        mean = float(values.mean())
        rows.append({"group": name, "n": len(values), key: mean, "ci": as_dict(ci)})
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
    """Compare two means by Welch's test (Biometrika 34, 1947)."""
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
    """Return the true and false positive rates per group, and the largest gaps between groups.

    `equal_opportunity` is the largest gap of true positive rates. `equalised_odds` is the larger of
    that and the largest gap of false positive rates. A group without such rows does not count.
    """
    y, p, g = np.array(labels, dtype=bool), np.array(predictions, dtype=bool), np.array(groups)
    rows = []
    for name in sorted(set(groups)):
        own = g == name
        rows.append({
            "group": name,
            "n": int(own.sum()),
            "positive_rate": _rate(p[own]),
            "true_positive_rate": _rate(p[own & y]),
            "false_positive_rate": _rate(p[own & ~y]),
        })  # fmt: skip
    widest = {key: _widest_gap(rows, key) for key in ("true_positive_rate", "false_positive_rate")}
    gaps = [gap["gap"] for gap in widest.values() if gap is not None]
    return {
        "groups": rows,
        "equal_opportunity": widest["true_positive_rate"],
        "false_positive": widest["false_positive_rate"],
        "equalised_odds": max(gaps) if gaps else None,
    }


def _rate(values: Any) -> dict[str, Any] | None:
    share = share_of(values)
    return None if share is None else share | {"n": len(values)}


def _widest_gap(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any] | None:
    """Return the two groups furthest apart, with a normal interval and p-value of their gap."""
    ordered = sorted((row for row in rows if row[key]), key=lambda row: row[key]["value"])
    if len(ordered) < 2:
        return None
    low, high = ordered[0][key], ordered[-1][key]
    gap = high["value"] - low["value"]
    se = math.sqrt(sum(s["value"] * (1 - s["value"]) / s["n"] for s in (low, high)))
    half = normal_quantile(0.975) * se
    ci = {"level": 0.95, "method": "normal", "low": gap - half, "high": gap + half}
    p = normal_two_sided(gap / se) if se else float(gap == 0)
    return {
        "gap": gap,
        "groups": [ordered[-1]["group"], ordered[0]["group"]],
        "ci": ci,
        "p_value": p,
    }


# --- swapped terms -------------------------------------------------------------------------------


def parse_swaps(texts: Sequence[str]) -> dict[str, str]:
    """Parse pairs such as `he:she` into a mapping both ways, in lower case.

    Raises RecipeError for a malformed pair, or a term with two partners.
    """
    swaps: dict[str, str] = {}
    for text in texts:
        left, _, right = (part.strip().lower() for part in text.partition(":"))
        if not left or not right or left == right:
            raise RecipeError(f"{text!r} is not a pair of terms", hint="Write he:she")
        for term, other in ((left, right), (right, left)):
            if swaps.setdefault(term, other) != other:
                raise RecipeError(f"{term!r} is paired with both {swaps[term]!r} and {other!r}")
    return swaps


def swapped(text: str, swaps: Mapping[str, str]) -> str:
    """Swap whole terms in the text, all at once, keeping their capitals."""
    if not swaps:
        return text
    longest_first = sorted(swaps, key=len, reverse=True)
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)
    return pattern.sub(lambda match: _with_capitals_of(match[0], swaps[match[0].lower()]), text)


def _with_capitals_of(old: str, new: str) -> str:
    if len(old) > 1 and old.isupper():
        return new.upper()
    return new[0].upper() + new[1:] if old[0].isupper() else new


def counterfactual_report(scores: Floats, exchanged: Floats) -> dict[str, Any]:
    """Measure how far scores move when terms are swapped; (n,) scores of the same prompts."""
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
    """Read rows of `label` and `prediction` (true or false) with a group field."""
    labels, predictions, groups = [], [], []
    for line, row in RowFile(path):
        for key in ("label", "prediction"):
            if not isinstance(row.get(key), bool):
                raise DataError(f"{key!r} must be true or false", where=f"{path}:{line}")
        if row.get(group) is None:
            raise DataError(f"{group!r} is missing in this row", where=f"{path}:{line}")
        labels.append(row["label"])
        predictions.append(row["prediction"])
        groups.append(str(row[group]))
    return labels, predictions, groups
