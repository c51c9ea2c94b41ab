"""Summarize a run next to its stages: `summary.json` for programs, `report.html` for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from alignkit.errors import TrainingFailed
from alignkit.report.run_page import ReportData, write_report
from alignkit.run.execute import Outcome
from alignkit.run.plan import Plan
from alignkit.store.artifacts import (
    disk_full_named,
    plain_value,
    private_files,
    versions,
    write_durably,
)
from alignkit.store.row_log import read_log
from alignkit.store.secrets import without_secrets
from alignkit.training.outcome import outcome_lines

SUMMARY = "summary.json"
REPORT = "report.html"
TEXTS = ("rows", "samples", "frontier")


def write_summary(plan: Plan, outcomes: Sequence[Outcome], *, redact: bool = False) -> None:
    """Write the summary and the report of the finished stages, replacing older ones.

    `redact` hides prompts and replies in the report. Raises TrainingFailed where the run's
    directory is gone.
    """
    if not plan.directory.is_dir():
        raise TrainingFailed(f"{plan.directory} was deleted or moved while the run wrote to it")
    content = without_secrets(plain_value(_summary(plan, outcomes)))
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    with private_files(), disk_full_named(plan.directory):
        write_durably(plan.directory / SUMMARY, text.encode())
        write_report(plan.directory / REPORT, report_data(plan, outcomes), redact=redact)


def table_rows(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Rows of the last evaluation: one per policy and temperature."""
    rows: list[dict[str, Any]] = []
    for outcome in outcomes:
        if outcome.kind == "evaluate":
            rows = list(outcome.metrics.get("rows", ()))
    return rows


def report_data(plan: Plan, outcomes: Sequence[Outcome]) -> ReportData:
    """Collect everything the report shows from the results of the stages."""
    recipe, model = plan.recipe, plan.model
    last = next((o for o in reversed(outcomes) if o.kind == "evaluate"), None)
    return ReportData(
        title=recipe.name,
        subtitle=f"{model.name}, {plan.backbone.quantization}, seed {recipe.seed}",
        stages={
            o.name: rows for o in outcomes if (rows := read_log(o.directory / "metrics.jsonl"))
        },
        summary=table_rows(outcomes),
        samples=last.metrics.get("samples", ()) if last else (),
        frontier=frontier(outcomes),
        warnings=[f"{o.name}: {o.metrics['alarm']}" for o in outcomes if "alarm" in o.metrics],
        settings=without_secrets(
            {
                "backbone": plain_value(plan.backbone),
                **{o.name: plain_value(o.manifest.config) for o in outcomes},
            }
        ),
        versions=versions(),
        notes=[line for outcome in outcomes for line in _lines(outcome)],
    )


def frontier(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Score and KL of every policy: of its checkpoints if it kept them, else of its end."""
    ended = {
        row["policy"]: [row]
        for row in table_rows(outcomes)
        if row["temperature"] == 1.0 and row["policy"] != "base" and row["kl"]
    }
    return ended | {o.name: rows for o in outcomes if (rows := o.metrics.get("frontier"))}


def _summary(plan: Plan, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "name": plan.recipe.name,
        "seed": plan.recipe.seed,
        "model": plan.model.name,
        "rows": table_rows(outcomes),
        "stages": [
            {
                "name": outcome.name,
                "kind": outcome.kind,
                "directory": outcome.directory.name,
                "key": outcome.manifest.key,
                "started": outcome.manifest.started,
                "finished": outcome.manifest.finished,
                "metrics": {k: v for k, v in outcome.metrics.items() if k not in TEXTS},
            }
            for outcome in outcomes
        ],
    }


def _lines(outcome: Outcome) -> list[str]:
    made = "reused from" if outcome.reused else "finished"
    first = f"{outcome.name}: {made} {outcome.manifest.finished}, {outcome.directory.name}"
    return [first, *(f"{outcome.name}: {line}" for line in outcome_lines(outcome.metrics))]
