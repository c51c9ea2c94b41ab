"""Detect drift between an old and a new file of prompts, completions and scores.

Numbers are compared by the Kolmogorov–Smirnov test and the population stability index. Texts are
compared by a classifier two-sample test: whether a classifier tells old from new on held-out texts
(Lopez-Paz & Oquab, arXiv:1610.06545). p-values are Holm-corrected over everything compared.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignkit.errors import DataError
from alignkit.evaluation.judged_rows import LARGEST, Row, RowFile, shown
from alignkit.statistics.distributions import (
    chi_squared_tail,
    holm,
    kolmogorov_tail,
    normal_two_sided,
)
from alignkit.statistics.intervals import Floats, wilson_interval

SCHEMA_VERSION = 1
PSI_BINS = 10
# By convention an index below 0.1 is no change, one above 0.25 a large change.
PSI_LARGE = 0.25
ALPHA = 0.01
_WORD = re.compile(r"\w+")
HASHED = 512
MOST_TEXTS = 20_000


# --- two samples ---------------------------------------------------------------------------------


def ks_test(old: Floats, new: Floats) -> tuple[float, float]:
    """Return the largest gap between the distribution functions and its asymptotic p-value."""
    pooled = np.concatenate([old, new])
    pooled.sort()
    gaps = np.searchsorted(np.sort(old), pooled, side="right") / len(old)
    gaps = gaps - np.searchsorted(np.sort(new), pooled, side="right") / len(new)
    largest = float(np.abs(gaps).max())
    size = len(old) * len(new) / (len(old) + len(new))
    return largest, kolmogorov_tail(math.sqrt(size) * largest)


def stability_index(old: Floats, new: Floats, bins: int = PSI_BINS) -> float:
    """Return the population stability index: sum of (q - p) ln(q / p) over the old deciles."""
    edges = np.unique(np.quantile(old, np.linspace(0, 1, bins + 1)[1:-1]))
    shares = []
    for sample in (old, new):
        counts = np.bincount(np.searchsorted(edges, sample, side="right"), minlength=len(edges) + 1)
        # Add half a count per bin: an empty bin would make the index infinite.
        shares.append((counts + 0.5) / (len(sample) + 0.5 * len(counts)))
    p, q = shares
    return float(((q - p) * np.log(q / p)).sum())


def category_test(old: Sequence[str], new: Sequence[str]) -> tuple[float, float, str]:
    """Return Cramér's V, its chi-squared p-value, and the category whose share changed most."""
    counts = [Counter(old), Counter(new)]
    names = sorted(counts[0] | counts[1])
    table = np.array([[count[name] for name in names] for count in counts], dtype=float)
    total = table.sum()
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / total
    statistic = float(((table - expected) ** 2 / expected).sum())
    shares = table / table.sum(axis=1, keepdims=True)
    moved = names[int(np.argmax(np.abs(shares[1] - shares[0])))]
    p = chi_squared_tail(statistic, len(names) - 1) if len(names) > 1 else 1.0
    return math.sqrt(statistic / total), p, moved


# --- texts ---------------------------------------------------------------------------------------


def _bag(texts: Sequence[str]) -> Floats:
    """Return hashed word presence (texts, HASHED), rows of unit length, alike on all machines."""
    rows = np.zeros((len(texts), HASHED))
    for row, text in zip(rows, texts, strict=True):
        for word in set(_WORD.findall(text.lower())):
            row[zlib.crc32(word.encode("utf-8", "surrogatepass")) % HASHED] = 1.0
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norm, 1.0))


def classifier_test(old: Sequence[str], new: Sequence[str], seed: int) -> dict[str, Any] | None:
    """Return the balanced accuracy of telling old from new on held-out halves, and its p-value.

    A ridge classifier is fitted on each half and tested on the other. None with fewer than ten
    texts on either side.
    """
    if min(len(old), len(new)) < 10:
        return None
    texts = [*old, *new]
    side = np.array([-1.0] * len(old) + [1.0] * len(new))
    generator = np.random.default_rng(seed)
    half = generator.permutation(np.arange(len(texts)) % 2)
    features = _bag(texts)
    right = np.zeros(len(texts))
    for own in (0, 1):
        train, held = half != own, half == own
        guess = _ridge(features[train], side[train], features[held])
        right[held] = np.sign(guess) == side[held]
    shares = [float(right[side == one].mean()) for one in (-1.0, 1.0)]
    accuracy = sum(shares) / 2
    # Without drift every guess is a coin toss: the balanced accuracy has this standard error.
    spread = math.sqrt((0.25 / len(old) + 0.25 / len(new)) / 4)
    z = (accuracy - 0.5) / spread
    # Guessing wrong more often than chance is no evidence of drift.
    p = normal_two_sided(z) / 2 if z > 0 else 1.0
    ci = wilson_interval(accuracy, 1 / (4 * spread**2)).as_dict()
    return {"accuracy": accuracy, "ci": ci, "p_value": p, "words": _moved_words(old, new)}


def _ridge(features: Floats, side: Floats, held: Floats) -> Floats:
    """Predict +-1 by ridge regression, with equal total weight on both sides."""
    weight = np.where(side > 0, 0.5 / np.mean(side > 0), 0.5 / np.mean(side < 0))
    design = np.column_stack([features, np.ones(len(features))])
    gram = (design * weight[:, None]).T @ design + np.eye(design.shape[1])
    theta = np.linalg.solve(gram, (design * weight[:, None]).T @ side)
    return np.asarray(np.column_stack([held, np.ones(len(held))]) @ theta)


def _moved_words(old: Sequence[str], new: Sequence[str], most: int = 8) -> dict[str, list[str]]:
    """Return the words whose share of texts rose and fell most, by the z of smoothed log odds."""
    counts = [
        Counter(w for t in side for w in set(_WORD.findall(t.lower()))) for side in (old, new)
    ]
    scored = []
    for word in counts[0] | counts[1]:
        x, y = counts[0][word] + 0.5, counts[1][word] + 0.5
        m, n = len(old) - counts[0][word] + 0.5, len(new) - counts[1][word] + 0.5
        spread = math.sqrt(1 / x + 1 / y + 1 / m + 1 / n)
        scored.append(((math.log(y / n) - math.log(x / m)) / spread, word))
    scored.sort()
    rising = [word for z, word in reversed(scored[-most:]) if z > 3]
    return {"more": rising, "less": [word for z, word in scored[:most] if z < -3]}


# --- files ---------------------------------------------------------------------------------------

TEXT_KEYS = {
    "prompt": ("prompt", "instruction", "question", "input"),
    "completion": ("output_a", "reply", "completion", "response", "output", "chosen"),
}


def _as_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return "\n\n".join(str(turn.get("content") or turn.get("value") or "") for turn in value)
    return None


def _texts(row: Row) -> dict[str, str]:
    """Return the prompt and the completion of a row of any kind."""
    texts = {}
    for name, keys in TEXT_KEYS.items():
        text = next((t for key in keys if (t := _as_text(row.get(key))) is not None), None)
        if text is not None:
            texts[name] = text
    turns = row.get("messages") or row.get("conversations")
    if isinstance(turns, list) and len(turns) > 1 and "prompt" not in texts:
        prompt, completion = _as_text(turns[:-1]), _as_text(turns[-1:])
        texts |= {"prompt": prompt or "", "completion": completion or ""}
    return texts


FEATURES: dict[str, Callable[[str], float]] = {
    "length": lambda text: float(len(text)),
    "word count": lambda text: float(len(text.split())),
    "line count": lambda text: float(text.count("\n") + 1),
    "non-ascii share": lambda text: sum(c > "\x7f" for c in text) / max(len(text), 1),
    "digit share": lambda text: sum(c.isdigit() for c in text) / max(len(text), 1),
}


class Period:
    """The numbers, categories and texts of one file, by name."""

    def __init__(self, path: str | Path) -> None:
        self.file = RowFile(path)
        self.numbers: dict[str, list[float]] = {}
        self.categories: dict[str, list[str]] = {}
        self.texts: dict[str, list[str]] = {}
        for line, row in self.file:
            try:
                self._take(row)
            except DataError as error:
                raise error.at(f"{path}:{line}") from None

    def _take(self, row: Row) -> None:
        for name, text in _texts(row).items():
            self.texts.setdefault(name, []).append(text)
            for feature, measure in FEATURES.items():
                self.numbers.setdefault(f"{name} {feature}", []).append(measure(text))
        for key, value in row.items():
            if key in ("v", "id"):
                continue
            if isinstance(value, bool):
                self.categories.setdefault(key, []).append(str(value).lower())
            elif isinstance(value, int | float):
                if not abs(value) <= LARGEST:
                    raise DataError(f"{key!r} is {shown(value)}, beyond any plausible measurement")
                self.numbers.setdefault(key, []).append(float(value))
            elif isinstance(value, str) and key in CATEGORY_KEYS:
                self.categories.setdefault(key, []).append(value)


CATEGORY_KEYS = frozenset(
    {"verdict", "judge", "a", "b", "model", "policy", "category", "dataset", "language", "lang"}
)


def drift_report(old: str | Path, new: str | Path, *, seed: int = 0) -> dict[str, Any]:
    """Compare two files of rows; `moved` describes each change, the largest first."""
    before, after = Period(old), Period(new)
    rows = [*_numbers(before, after), *_categories(before, after), *_words(before, after, seed)]
    if not rows:
        raise DataError(f"{old} and {new} have nothing in common to compare")
    adjusted = holm([row["p_value"] for row in rows])
    rows = [row | {"p_holm": p} for row, p in zip(rows, adjusted, strict=True)]
    moved = [row for row in rows if row["p_holm"] < ALPHA]
    moved.sort(key=lambda row: -row["size"])
    return {
        "schema_version": SCHEMA_VERSION,
        "n_old": before.file.rows,
        "n_new": after.file.rows,
        "compared": rows,
        "moved": [_sentence(row) for row in moved],
        "inputs": [before.file.as_dict(), after.file.as_dict()],
        "seed": seed,
    }


def _common(old: Mapping[str, Sequence[Any]], new: Mapping[str, Sequence[Any]]) -> list[str]:
    return [name for name in old if len(old[name]) > 1 and len(new.get(name, ())) > 1]


def _numbers(before: Period, after: Period) -> list[dict[str, Any]]:
    rows = []
    for name in _common(before.numbers, after.numbers):
        old, new = np.array(before.numbers[name]), np.array(after.numbers[name])
        if not (old.std() or new.std()) and old[0] == new[0]:
            continue
        gap, p = ks_test(old, new)
        rows.append({
            "name": name, "kind": "number", "old": float(old.mean()), "new": float(new.mean()),
            "ks": gap, "stability": stability_index(old, new), "size": gap, "p_value": p,
        })  # fmt: skip
    return rows


def _categories(before: Period, after: Period) -> list[dict[str, Any]]:
    rows = []
    for name in _common(before.categories, after.categories):
        old, new = before.categories[name], after.categories[name]
        size, p, moved = category_test(old, new)
        shares = [side.count(moved) / len(side) for side in (old, new)]
        rows.append({
            "name": name, "kind": "category", "old": shares[0], "new": shares[1],
            "value": moved, "size": size, "p_value": p,
        })  # fmt: skip
    return rows


def _words(before: Period, after: Period, seed: int) -> list[dict[str, Any]]:
    rows = []
    for name in _common(before.texts, after.texts):
        old, new = before.texts[name][:MOST_TEXTS], after.texts[name][:MOST_TEXTS]
        result = classifier_test(old, new, seed)
        if result is not None:
            size = max(0.0, 2 * result["accuracy"] - 1)
            rows.append({"name": f"{name} words", "kind": "words", "size": size, **result})
    return rows


def _sentence(row: Mapping[str, Any]) -> str:
    p = f"p {row['p_holm']:.1g}"
    if row["kind"] == "number":
        size = "a large change" if row["stability"] > PSI_LARGE else "a change"
        return (
            f"{row['name']}: mean {row['old']:.4g} -> {row['new']:.4g}, {size} "
            f"(stability {row['stability']:.2f}, KS {row['ks']:.2f}, {p})"
        )
    if row["kind"] == "category":
        shares = f"{100 * row['old']:.0f} % -> {100 * row['new']:.0f} %"
        return f"{row['name']}: share of {row['value']!r} {shares} (V {row['size']:.2f}, {p})"
    changes = [f"{change} {', '.join(words)}" for change, words in row["words"].items() if words]
    accuracy = f"{100 * row['accuracy']:.0f} %"
    sentence = f"{row['name']}: a classifier tells old from new with {accuracy} accuracy ({p})"
    return "; ".join([sentence, *changes])


def drift_lines(report: Mapping[str, Any]) -> list[str]:
    """Format the report for people."""
    head = f"{report['n_old']} old rows, {report['n_new']} new, {len(report['compared'])} compared"
    return [head, *(report["moved"] or ["nothing moved beyond chance"])]
