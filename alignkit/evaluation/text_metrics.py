"""Compare a completion with a reference: exact match, token F1, ROUGE, BLEU and chrF.

BLEU and chrF are sacrebleu's (`pip install 'alignkit[metrics]'`), so that scores are comparable
with published ones; each of the others is defined in its docstring.
"""

from __future__ import annotations

import importlib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from alignkit.errors import RecipeError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORDS = re.compile(r"[a-z0-9]+")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower-case and remove punctuation, articles and extra spaces (SQuAD, arXiv:1606.05250)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(text: str, reference: str) -> float:
    """Return 1 if both are the same after `normalised`, else 0."""
    return float(normalised(text) == normalised(reference))


def token_f1(text: str, reference: str) -> float:
    """Return the harmonic mean of precision and recall of the normalised words (SQuAD)."""
    return _f1(Counter(normalised(text).split()), Counter(normalised(reference).split()))


def _f1(counts: Counter[Any], reference: Counter[Any]) -> float:
    if not counts or not reference:
        return float(counts == reference)
    common = (counts & reference).total()
    return 2 * common / (counts.total() + reference.total())


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def rouge_l(text: str, reference: str) -> float:
    """Return ROUGE-L F1: the longest common subsequence of words over both lengths (Lin 2004)."""
    words, expected = (_WORDS.findall(side.lower()) for side in (text, reference))
    if not words or not expected:
        return float(words == expected)
    row = [0] * (len(expected) + 1)
    for word in words:
        diagonal = 0
        for i, other in enumerate(expected, start=1):
            above = row[i]
            row[i] = diagonal + 1 if word == other else max(above, row[i - 1])
            diagonal = above
    return 2 * row[-1] / (len(words) + len(expected))


@lru_cache(maxsize=2)
def _sacrebleu(metric: str, **settings: Any) -> Any:
    try:
        metrics = importlib.import_module("sacrebleu.metrics")
    except ImportError:
        raise RecipeError(
            f"{metric} needs sacrebleu", hint="pip install 'alignkit[metrics]'"
        ) from None
    return getattr(metrics, metric)(**settings)


def bleu(text: str, reference: str) -> float:
    """Return sentence BLEU with effective order, 0 to 1."""
    return float(
        _sacrebleu("BLEU", effective_order=True).sentence_score(text, [reference]).score / 100
    )


def chrf(text: str, reference: str) -> float:
    """Return sentence chrF, 0 to 1."""
    return float(_sacrebleu("CHRF").sentence_score(text, [reference]).score / 100)


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Return the share of distinct word n-grams among all n-grams (Li et al., arXiv:1510.03055)."""
    grams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        grams.update(_ngrams(text.split(), n))
    return len(grams) / grams.total() if grams else None


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact": exact_match,
    "f1": token_f1,
    "rouge": rouge_l,
    "bleu": bleu,
    "chrf": chrf,
}
