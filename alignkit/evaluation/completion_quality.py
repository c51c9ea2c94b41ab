"""Report the quality of files of completions per policy, and their distance from references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignkit.data.records import Candidate, Candidates
from alignkit.errors import DataError
from alignkit.evaluation import judged_rows as fields
from alignkit.evaluation.judged_rows import Row, RowFile
from alignkit.evaluation.quality import (
    label_scores,
    quality_lines,
    reference_scores,
    text_quality,
)
from alignkit.statistics.intervals import as_dict, mean_estimate, mean_interval

SCHEMA_VERSION = 1
TEXTS = ("reply", "completion", "response", "output")


@dataclass(frozen=True)
class PolicyCompletion:
    """A completion with the fields of its row; `policy` names the model and its temperature."""

    policy: str
    text: str
    prompt_id: str | None = None
    stopped: bool | None = None
    log_ratio: float | None = None
    reference: str | None = None


def completion_quality_report(
    paths: Sequence[str | Path],
    references: str | Path | None,
    metrics: Sequence[str],
    *,
    labels: bool = False,
) -> dict[str, Any]:
    """Return the quality of each policy's completions, and metrics against references.

    References come from the row itself or, by prompt_id, from the file `references`.
    """
    by_prompt = {} if references is None else _read_references(references)
    groups: dict[str, list[PolicyCompletion]] = {}
    inputs = []
    for path in paths:
        file = RowFile(path)
        for line, row in file:
            try:
                for completion in _completions(row):
                    if (metrics or labels) and _reference(completion, by_prompt) is None:
                        raise DataError("no reference for this row")
                    groups.setdefault(completion.policy, []).append(completion)
            except DataError as error:
                raise error.at(f"{path}:{line}") from None
        inputs.append(file.as_dict())
    policies = {
        name: _policy(rows, by_prompt, metrics, labels) for name, rows in sorted(groups.items())
    }
    return {"schema_version": SCHEMA_VERSION, "policies": policies, "inputs": inputs}


def _completions(row: Row) -> list[PolicyCompletion]:
    """Return the completion of a row, or all completions of a candidates record."""
    if row.get("kind") == "candidates":
        return [_candidate(each, row) for each in fields.as_model(Candidates, row).candidates]
    text = next((row[key] for key in TEXTS if isinstance(row.get(key), str)), None)
    if text is None:
        raise DataError(f"no completion: none of {', '.join(TEXTS)}")
    model = fields.label(row, "policy") or fields.label(row, "model")
    return [
        PolicyCompletion(
            policy=_policy_name(model, row),
            text=text,
            prompt_id=fields.label(row, "prompt_id"),
            stopped=fields.flag(row, "stopped"),
            log_ratio=fields.measure(row, "log_ratio"),
            reference=fields.text(row, "reference"),
        )
    ]


def _candidate(candidate: Candidate, row: Row) -> PolicyCompletion:
    if not candidate.messages:
        raise DataError(f"candidate {candidate.cid!r} has no messages")
    generation = candidate.gen or {}
    return PolicyCompletion(
        policy=_policy_name(candidate.model, generation),
        text=candidate.messages[-1].content,
        prompt_id=fields.label(row, "id"),
        stopped=fields.flag(generation, "stopped"),
    )


def _policy_name(model: str | None, row: Row) -> str:
    """Name the policy in the report: one model at two temperatures is two policies."""
    temperature = fields.measure(row, "temperature")
    name = model or "completions"
    return name if temperature is None else f"{name} at T={temperature:g}"


def _policy(
    rows: Sequence[PolicyCompletion],
    references: Mapping[str, str],
    metrics: Sequence[str],
    labels: bool,
) -> dict[str, Any]:
    texts = [row.text for row in rows]
    ended = [row.stopped for row in rows if row.stopped is not None]
    quality = text_quality(texts, ended if len(ended) == len(rows) else None)
    quality["kl"] = _kl([row.log_ratio for row in rows])
    expected = [_reference(row, references) or "" for row in rows]
    quality["metrics"] = reference_scores(texts, expected, metrics) if metrics else None
    quality["labels"] = label_scores(texts, expected) if labels else None
    return quality


def _kl(ratios: Sequence[float | None]) -> dict[str, Any] | None:
    """Return the mean of log p(policy) - log p(reference), their KL; None if a row lacks it.

    Rows have it if the completion was sampled at temperature 1.
    """
    log_ratios = [ratio for ratio in ratios if ratio is not None]
    if len(log_ratios) < len(ratios):
        return None
    estimate = mean_estimate(np.array(log_ratios))
    ci = as_dict(mean_interval(estimate))
    return {"n": estimate.n, "value": estimate.value, "se": estimate.se, "ci": ci}


def _reference(completion: PolicyCompletion, references: Mapping[str, str]) -> str | None:
    if completion.reference is not None:
        return completion.reference
    return references.get(completion.prompt_id or "")


def _read_references(path: str | Path) -> dict[str, str]:
    references = {}
    for line, row in RowFile(path):
        try:
            prompt_id, reference = fields.label(row, "prompt_id"), fields.text(row, "reference")
        except DataError as error:
            raise error.at(f"{path}:{line}") from None
        if prompt_id is None or reference is None:
            raise DataError("needs 'prompt_id' and 'reference'", where=f"{path}:{line}")
        references[prompt_id] = reference
    return references


def completion_quality_lines(report: Mapping[str, Any]) -> list[str]:
    """Format the report for people."""
    lines = []
    for name, policy in report["policies"].items():
        lines += quality_lines(name, policy)
        if policy["kl"] is not None:
            ci = policy["kl"]["ci"]
            bounds = "" if ci is None else f" [{ci['low']:.3g}, {ci['high']:.3g}]"
            lines.append(f"    KL to its reference {policy['kl']['value']:.3g}{bounds} nats")
        for metric, score in (policy["metrics"] or {}).items():
            ci = score["ci"]
            bounds = "" if ci is None else f" [{ci['low']:.3f}, {ci['high']:.3f}]"
            lines.append(f"    {metric} {score['mean']:.3f}{bounds}")
        if policy["labels"]:
            accuracy, macro = policy["labels"]["accuracy"], policy["labels"]["macro"]
            lines.append(
                f"    accuracy {100 * accuracy['value']:.1f} %, macro F1 {100 * macro['f1']:.1f} %"
            )
    return lines
