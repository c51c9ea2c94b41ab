"""What a policy's completions are like: length, variety, endings, refusals, and labels it gives."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

import numpy as np

from alignkit.evaluation.text_metrics import METRICS, distinct_n, normalised
from alignkit.statistics.distributions import t_quantile
from alignkit.statistics.intervals import (
    Floats,
    as_dict,
    interval,
    mean_estimate,
    mean_interval,
    wilson,
)

# How refusals begin in English; a share to watch between runs, not a measure of safety.
_REFUSAL = re.compile(
    r"^\W*(?:I'?m sorry|sorry,|I apologi[sz]e|as an AI|"
    r"I (?:can(?:no|')t|can not|won't|will not|am (?:unable|not able)|'m (?:unable|not able))"
    r"(?: \w+){0,2} (?:help|assist|provide|do that|answer|comply|fulfil|create|give|to))",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Whether a completion opens like a refusal."""
    return _REFUSAL.search(text[:300].replace("’", "'")) is not None


def text_quality(texts: Sequence[str], stopped: Sequence[bool] | None = None) -> dict[str, Any]:
    """Length, distinct n-grams, equal completions, endings and refusals of a set of completions."""
    lengths = [len(text) for text in texts]
    refusals = np.array([float(is_refusal(text)) for text in texts])
    return {
        "n": len(texts),
        "length": {"mean": fmean(lengths), "median": median(lengths)} if texts else None,
        "empty": fmean(not text.strip() for text in texts) if texts else None,
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "distinct_texts": len(set(texts)) / len(texts) if texts else None,
        "eos_rate": fmean(map(float, stopped)) if stopped else None,
        "refusals": _share(refusals),
    }


def _share(values: Floats) -> dict[str, Any] | None:
    if not len(values):
        return None
    share = float(values.mean())
    low, high = wilson(share, len(values))
    ci = {"level": 0.95, "method": "wilson", "low": low, "high": high}
    return {"value": share, "ci": ci}


def reference_scores(
    texts: Sequence[str], references: Sequence[str], metrics: Sequence[str]
) -> dict[str, Any]:
    """Mean of each metric with its interval over prompts."""
    found = {}
    for name in metrics:
        values = np.array([METRICS[name](t, r) for t, r in zip(texts, references, strict=True)])
        limits = interval("t", values)
        ci = None if limits is None else limits.as_dict()
        found[name] = {"mean": float(values.mean()), "ci": ci}
    return found


def label_scores(given: Sequence[str], expected: Sequence[str]) -> dict[str, Any]:
    """Accuracy, and precision, recall and F1 of each label and their means over labels.

    Labels are compared after lower-casing and removing punctuation. A label that was never given
    has no precision (null) and counts as 0 in the mean.
    """
    ours, truth = [normalised(g) for g in given], [normalised(e) for e in expected]
    rows: list[dict[str, Any]] = []
    for label in sorted(set(truth)):
        hits = list(zip(ours, truth, strict=True)).count((label, label))
        called, there = ours.count(label), truth.count(label)
        rows.append({
            "label": label,
            "n": there,
            "precision": hits / called if called else None,
            "recall": hits / there,
            "f1": 2 * hits / (called + there),
        })  # fmt: skip
    right = np.array([float(o == t) for o, t in zip(ours, truth, strict=True)])
    return {
        "accuracy": _share(right),
        "labels": rows,
        "macro": {
            key: fmean(float(row[key] or 0.0) for row in rows)
            for key in ("precision", "recall", "f1")
        },
    }


def perplexity_report(logps: Sequence[float], tokens: Sequence[int]) -> dict[str, Any]:
    """exp of the mean negative log-probability a token, its interval from whole completions.

    `logps` are sums over each completion's tokens (nats). The mean is a ratio of two sums, so its
    error is that of the residuals logp - mean * tokens (Cochran, Sampling Techniques, 6.2).
    """
    sums, counts = np.asarray(logps, dtype=float), np.asarray(tokens, dtype=float)
    total = float(counts.sum())
    mean = -float(sums.sum()) / total
    n = len(sums)
    report: dict[str, Any] = {
        "n": n,
        "tokens": int(total),
        "nll_per_token": mean,
        "perplexity": math.exp(mean),
        "ci": None,
    }
    if n > 1:
        residuals = -sums - mean * counts
        se = math.sqrt(n / (n - 1) * float((residuals**2).sum())) / total
        half = t_quantile(0.975, n - 1) * se
        low, high = math.exp(mean - half), math.exp(mean + half)
        report["ci"] = {"level": 0.95, "method": "t", "low": low, "high": high}
    return report


def log_ratio_report(
    logps: Sequence[float], reference: Sequence[float], tokens: Sequence[int]
) -> dict[str, Any]:
    """Mean of log p - log reference a completion, in nats, with its t interval; and a token.

    On completions that p itself sampled this is the k1 estimate of KL(p || reference); on other
    text it only says which of the two expects the text more.
    """
    ratios = np.asarray(logps, dtype=float) - np.asarray(reference, dtype=float)
    estimate = mean_estimate(ratios)
    return {
        "perplexity": perplexity_report(reference, tokens)["perplexity"],
        "log_ratio": estimate.value,
        "log_ratio_per_token": float(ratios.sum()) / sum(tokens),
        "se": estimate.se,
        "ci": as_dict(mean_interval(estimate)),
    }


def perplexity_lines(report: Mapping[str, Any]) -> list[str]:
    """The report for people."""
    ci, reference = report["ci"], report["reference"]
    bounds = "" if ci is None else f" [{ci['low']:.2f}, {ci['high']:.2f}] 95 %"
    line = f"perplexity {report['perplexity']:.2f}{bounds}   {report['n']} completions, "
    lines = [f"{line}{report['tokens']} tokens"]
    if reference is not None:
        ci = reference["ci"]
        bounds = "" if ci is None else f" [{ci['low']:.3f}, {ci['high']:.3f}] 95 %"
        lines.append(
            f"log ratio to {reference['model']} {reference['log_ratio']:+.3f}{bounds} nats a "
            f"completion, whose perplexity is {reference['perplexity']:.2f}"
        )
    return lines


def quality_lines(name: str, report: Mapping[str, Any]) -> list[str]:
    """One policy's completions for people."""
    parts = [f"{report['n']} completions"]
    if report["length"]:
        parts.append(f"{report['length']['mean']:.0f} characters")
    for key, label in (("eos_rate", "ended"), ("distinct_texts", "distinct")):
        if report[key] is not None:
            parts.append(f"{label} {100 * report[key]:.0f} %")
    if report["distinct_2"] is not None:
        parts.append(f"distinct-2 {report['distinct_2']:.2f}")
    if report["refusals"]:
        parts.append(f"refusals {100 * report['refusals']['value']:.1f} %")
    return [f"  {name}: {', '.join(parts)}"]
