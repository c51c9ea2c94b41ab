"""Files of completions, policy by policy: what they are like and how close to references."""

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
class Reply:
    """A completion with what its row knows of it; `policy` is whose it is and how it was drawn."""

    policy: str
    text: str
    prompt_id: str | None = None
    stopped: bool | None = None
    log_ratio: float | None = None
    reference: str | None = None


def replies_report(
    paths: Sequence[str | Path],
    references: str | Path | None,
    metrics: Sequence[str],
    *,
    labels: bool = False,
) -> dict[str, Any]:
    """Quality of each policy's completions; metrics and labels against references by prompt_id."""
    known = {} if references is None else _read_references(references)
    groups: dict[str, list[Reply]] = {}
    inputs = []
    for path in paths:
        file = RowFile(path)
        for line, row in file:
            try:
                for reply in _replies(row):
                    if (metrics or labels) and _reference(reply, known) is None:
                        raise DataError("no reference for this row")
                    groups.setdefault(reply.policy, []).append(reply)
            except DataError as error:
                raise error.at(f"{path}:{line}") from None
        inputs.append(file.as_dict())
    policies = {
        name: _policy(rows, known, metrics, labels) for name, rows in sorted(groups.items())
    }
    return {"schema_version": SCHEMA_VERSION, "policies": policies, "inputs": inputs}


def _replies(row: Row) -> list[Reply]:
    """The completion of a row; of a record of candidates, as `alignkit generate` writes, each."""
    if row.get("kind") == "candidates":
        return [_candidate(each, row) for each in fields.as_model(Candidates, row).candidates]
    text = next((row[key] for key in TEXTS if isinstance(row.get(key), str)), None)
    if text is None:
        raise DataError(f"no completion: none of {', '.join(TEXTS)}")
    model = fields.label(row, "policy") or fields.label(row, "model")
    return [
        Reply(
            policy=_drawn(model, row),
            text=text,
            prompt_id=fields.label(row, "prompt_id"),
            stopped=fields.flag(row, "stopped"),
            log_ratio=fields.measure(row, "log_ratio"),
            reference=fields.text(row, "reference"),
        )
    ]


def _candidate(candidate: Candidate, row: Row) -> Reply:
    if not candidate.messages:
        raise DataError(f"candidate {candidate.cid!r} says nothing")
    drawn = candidate.gen or {}
    return Reply(
        policy=_drawn(candidate.model, drawn),
        text=candidate.messages[-1].content,
        prompt_id=fields.label(row, "id"),
        stopped=fields.flag(drawn, "stopped"),
    )


def _drawn(model: str | None, row: Row) -> str:
    """A policy's name in the report: the same model sampled in two ways is two policies."""
    temperature = fields.measure(row, "temperature")
    name = model or "completions"
    return name if temperature is None else f"{name} at T={temperature:g}"


def _policy(
    rows: Sequence[Reply], known: Mapping[str, str], metrics: Sequence[str], labels: bool
) -> dict[str, Any]:
    texts = [row.text for row in rows]
    ended = [row.stopped for row in rows if row.stopped is not None]
    found = text_quality(texts, ended if len(ended) == len(rows) else None)
    found["kl"] = _distance([row.log_ratio for row in rows])
    expected = [_reference(row, known) or "" for row in rows]
    found["metrics"] = reference_scores(texts, expected, metrics) if metrics else None
    found["labels"] = label_scores(texts, expected) if labels else None
    return found


def _distance(ratios: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean log p(policy) - log p(reference) with its interval: their KL; None where rows lack it.

    A row has it where the reply was sampled at temperature 1.
    """
    known = [ratio for ratio in ratios if ratio is not None]
    if len(known) < len(ratios):
        return None
    estimate = mean_estimate(np.array(known))
    ci = as_dict(mean_interval(estimate))
    return {"n": estimate.n, "value": estimate.value, "se": estimate.se, "ci": ci}


def _reference(reply: Reply, known: Mapping[str, str]) -> str | None:
    return known.get(reply.prompt_id or "") if reply.reference is None else reply.reference


def _read_references(path: str | Path) -> dict[str, str]:
    found = {}
    for line, row in RowFile(path):
        try:
            prompt_id, reference = fields.label(row, "prompt_id"), fields.text(row, "reference")
        except DataError as error:
            raise error.at(f"{path}:{line}") from None
        if prompt_id is None or reference is None:
            raise DataError("needs 'prompt_id' and 'reference'", where=f"{path}:{line}")
        found[prompt_id] = reference
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
