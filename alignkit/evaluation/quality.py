"""Describe a policy's completions: length, variety, endings, refusals, labels and perplexity."""

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
    Interval,
    as_dict,
    interval,
    mean_estimate,
    mean_interval,
    share_of,
)

# Openings of refusals in English: a share to compare between runs, not a measure of safety.
_REFUSAL = re.compile(
    r"^\W*(?:I'?m sorry|sorry,|I apologi[sz]e|as an AI|"
    r"I (?:can(?:no|')t|can not|won't|will not|am (?:unable|not able)|'m (?:unable|not able))"
    r"(?: \w+){0,2} (?:help|assist|provide|do that|answer|comply|fulfil|create|give|to))",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Return whether a completion opens like a refusal."""
    return _REFUSAL.search(text[:300].replace("’", "'")) is not None


def text_quality(texts: Sequence[str], stopped: Sequence[bool] | None = None) -> dict[str, Any]:
    """Measure length, distinct n-grams, duplicates, endings and refusals of completions."""
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
        "refusals": share_of(refusals),
    }


def reference_scores(
    texts: Sequence[str], references: Sequence[str], metrics: Sequence[str]
) -> dict[str, Any]:
    """Return the mean of each metric with its interval over prompts."""
    scores = {}
    for name in metrics:
        values = np.array([METRICS[name](t, r) for t, r in zip(texts, references, strict=True)])
        scores[name] = {"mean": float(values.mean()), "ci": as_dict(interval("t", values))}
    return scores


def label_scores(given: Sequence[str], expected: Sequence[str]) -> dict[str, Any]:
    """Return accuracy, and precision, recall and F1 per label and averaged over labels.

    Labels are compared after lower-casing and removing punctuation. A label that was never
    predicted has no precision (null), which counts as 0 in the average.
    """
    predicted, truth = [normalised(g) for g in given], [normalised(e) for e in expected]
    rows: list[dict[str, Any]] = []
    for label in sorted(set(truth)):
        hits = list(zip(predicted, truth, strict=True)).count((label, label))
        n_predicted, n_true = predicted.count(label), truth.count(label)
        rows.append({
            "label": label,
            "n": n_true,
            "precision": hits / n_predicted if n_predicted else None,
            "recall": hits / n_true,
            "f1": 2 * hits / (n_predicted + n_true),
        })  # fmt: skip
    right = np.array([float(p == t) for p, t in zip(predicted, truth, strict=True)])
    return {
        "accuracy": share_of(right),
        "labels": rows,
        "macro": {
            key: fmean(float(row[key] or 0.0) for row in rows)
            for key in ("precision", "recall", "f1")
        },
    }


def perplexity_report(logps: Sequence[float], tokens: Sequence[int]) -> dict[str, Any]:
    """Return exp of the mean negative log-probability per token, with an interval over completions.

    `logps` are sums over the tokens of each completion (nats). The mean is a ratio of two sums, so
    its error is that of the residuals -logp - mean * tokens (Cochran, Sampling Techniques, 6.2).
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
        report["ci"] = Interval(0.95, "t", math.exp(mean - half), math.exp(mean + half)).as_dict()
    return report


def log_ratio_report(
    logps: Sequence[float], reference: Sequence[float], tokens: Sequence[int]
) -> dict[str, Any]:
    """Return the mean of log p - log reference, per completion with a t interval and per token.

    Units are nats. On completions sampled from p this is the k1 estimate of KL(p || reference); on
    other text it only shows which of the two models finds the text more likely.
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
    """Format the report for people."""
    ci, reference = report["ci"], report["reference"]
    bounds = "" if ci is None else f" [{ci['low']:.2f}, {ci['high']:.2f}] 95 %"
    line = f"perplexity {report['perplexity']:.2f}{bounds}   {report['n']} completions, "
    lines = [f"{line}{report['tokens']} tokens"]
    if reference is not None:
        ci = reference["ci"]
        bounds = "" if ci is None else f" [{ci['low']:.3f}, {ci['high']:.3f}] 95 %"
        lines.append(
            f"log ratio to {reference['model']} {reference['log_ratio']:+.3f}{bounds} nats per "
            f"completion; its perplexity is {reference['perplexity']:.2f}"
        )
    return lines


def quality_lines(name: str, report: Mapping[str, Any]) -> list[str]:
    """Format one policy's completions for people."""
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
