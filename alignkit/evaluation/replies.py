"""Files of completions, policy by policy: what they are like and how close to references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignkit.errors import DataError
from alignkit.evaluation.intervals import as_dict, mean_estimate, mean_interval
from alignkit.evaluation.json_rows import Row, RowFile
from alignkit.evaluation.quality import (
    label_scores,
    quality_lines,
    reference_scores,
    text_quality,
)

SCHEMA_VERSION = 1
TEXTS = ("reply", "completion", "response", "output")


def replies_report(
    paths: Sequence[str | Path],
    references: str | Path | None,
    metrics: Sequence[str],
    *,
    labels: bool = False,
) -> dict[str, Any]:
    """Quality of each policy's completions; metrics and labels against references by prompt_id."""
    known = {} if references is None else _read_references(references)
    groups: dict[str, list[tuple[Row, str]]] = {}
    inputs = []
    for path in paths:
        file = RowFile(path)
        for line, row in file:
            text = next((row[key] for key in TEXTS if isinstance(row.get(key), str)), None)
            if text is None:
                keys = ", ".join(TEXTS)
                raise DataError(f"no completion: none of {keys}", where=f"{path}:{line}")
            if (metrics or labels) and _reference(row, known) is None:
                raise DataError("no reference for this row", where=f"{path}:{line}")
            groups.setdefault(_name(row), []).append((row, text))
        inputs.append(file.as_dict())
    policies = {
        name: _policy(rows, known, metrics, labels) for name, rows in sorted(groups.items())
    }
    return {"schema_version": SCHEMA_VERSION, "policies": policies, "inputs": inputs}


def _name(row: Row) -> str:
    name = str(row.get("policy") or row.get("model") or "completions")
    temperature = row.get("temperature")
    return name if temperature is None else f"{name} at T={temperature:g}"


def _policy(
    rows: Sequence[tuple[Row, str]], known: Mapping[str, str], metrics: Sequence[str], labels: bool
) -> dict[str, Any]:
    texts = [text for _, text in rows]
    ended = [row["stopped"] for row, _ in rows if isinstance(row.get("stopped"), bool)]
    found = text_quality(texts, ended if len(ended) == len(rows) else None)
    found["kl"] = _distance([row.get("log_ratio") for row, _ in rows])
    expected = [_reference(row, known) or "" for row, _ in rows]
    found["metrics"] = reference_scores(texts, expected, metrics) if metrics else None
    found["labels"] = label_scores(texts, expected) if labels else None
    return found


def _distance(ratios: Sequence[Any]) -> dict[str, Any] | None:
    """Mean log p(policy) - log p(reference) with its interval: their KL; None where rows lack it.

    A row has it where the reply was sampled at temperature 1.
    """
    if not all(isinstance(ratio, int | float) for ratio in ratios):
        return None
    estimate = mean_estimate(np.array(ratios, dtype=float))
    ci = as_dict(mean_interval(estimate))
    return {"n": estimate.n, "value": estimate.value, "se": estimate.se, "ci": ci}


def _reference(row: Row, known: Mapping[str, str]) -> str | None:
    own = row.get("reference")
    return own if isinstance(own, str) else known.get(str(row.get("prompt_id")))


def _read_references(path: str | Path) -> dict[str, str]:
    found = {}
    for line, row in RowFile(path):
        if row.get("prompt_id") is None or not isinstance(row.get("reference"), str):
            raise DataError("needs 'prompt_id' and 'reference'", where=f"{path}:{line}")
        found[str(row["prompt_id"])] = row["reference"]
    return found


def replies_lines(report: Mapping[str, Any]) -> list[str]:
    """The report for people."""
    lines = []
    for name, policy in report["policies"].items():
        lines += quality_lines(name, policy)
        if policy["kl"] is not None:
            ci = policy["kl"]["ci"]
            bounds = "" if ci is None else f" [{ci['low']:.3g}, {ci['high']:.3g}]"
            lines.append(f"    KL to its reference {policy['kl']['value']:.3g}{bounds} nats")
        for metric, found in (policy["metrics"] or {}).items():
            ci = found["ci"]
            bounds = "" if ci is None else f" [{ci['low']:.3f}, {ci['high']:.3f}]"
            lines.append(f"    {metric} {found['mean']:.3f}{bounds}")
        if policy["labels"]:
            accuracy, macro = policy["labels"]["accuracy"], policy["labels"]["macro"]
            lines.append(
                f"    accuracy {100 * accuracy['value']:.1f} %, macro F1 {100 * macro['f1']:.1f} %"
            )
    return lines
