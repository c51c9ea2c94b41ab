"""Write what a finished stage's directory says to people: `report.html` and a model card.

Both come from what the manifest records, and are written before it, so that it seals them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.recipe.settings import CONFIGS, About
from alignkit.report.run_page import ReportData, write_report
from alignkit.store.artifacts import write_durably
from alignkit.store.row_log import read_log
from alignkit.training.outcome import outcome_lines

CARD = "README.md"
REPORT = "report.html"
SHOWN = ("rows", "samples", "frontier", "by_margin")


def write_pages(directory: Path, fields: Mapping[str, Any]) -> None:
    """Write the pages of a stage; `fields` are those of its manifest."""
    steps = read_log(directory / "metrics.jsonl")
    if steps:
        write_report(directory / REPORT, _report(fields, steps))
    if (directory / "adapter").is_dir():
        write_durably(directory / CARD, model_card(fields).encode())


def model_card(fields: Mapping[str, Any]) -> str:
    """The card in Markdown, with the metadata block that model hubs read."""
    backbone = fields["backbone"]
    base = str(backbone.get("model", ""))
    numbers = {
        key: value
        for key, value in fields["metrics"].items()
        if isinstance(value, int | float) and key not in SHOWN
    }
    return "\n".join(
        [
            "---",
            f"base_model: {json.dumps(base)}",
            "library_name: peft",
            f"tags: [alignkit, {fields['kind']}, lora]",
            "---",
            "",
            f"# {fields['name']}",
            "",
            f"{_about(fields['kind']).card}, as a LoRA adapter on `{base}` "
            f"({backbone.get('quantization', 'none')} while training, weights in fp32).",
            "",
            *_use(fields["kind"]),
            "## Results",
            "",
            "| metric | value |",
            "|---|---|",
            *[f"| {key} | {_number(value)} |" for key, value in sorted(numbers.items())],
            "",
            "## How it was made",
            "",
            f"Seed {fields['seed']}. Settings:",
            "",
            "```json",
            json.dumps(fields["config"], indent=1, sort_keys=True),
            "```",
            "",
        ]
    )


def _about(kind: str) -> About:
    return CONFIGS[kind].about if kind in CONFIGS else About()


def _use(kind: str) -> list[str]:
    if _about(kind).makes == "reward":
        return [
            "Its scalar head is in `adapter/head.safetensors`, beside the adapter. alignkit loads",
            "both, and refuses a directory whose scores differ from those of its stored probe.",
            "",
        ]
    return [
        "```python",
        "from peft import AutoPeftModelForCausalLM",
        "",
        'model = AutoPeftModelForCausalLM.from_pretrained("adapter")',
        "```",
        "",
    ]


def _report(fields: Mapping[str, Any], steps: list[dict[str, Any]]) -> ReportData:
    backbone = fields["backbone"]
    return ReportData(
        title=fields["name"],
        subtitle=f"{backbone.get('model')}, {backbone.get('quantization')}, seed {fields['seed']}",
        stages={fields["name"]: steps},
        samples=fields["metrics"].get("samples", ()),
        warnings=[alarm] if (alarm := fields["metrics"].get("alarm")) else [],
        notes=_notes(fields["metrics"]),
        settings={"stage": fields["config"], "backbone": backbone},
        versions=fields["versions"],
    )


def _notes(metrics: Mapping[str, Any]) -> list[str]:
    judge = metrics.get("alarm_judge")
    asked = [f"The alarm of reward hacking asked {judge}."] if judge else []
    return [*outcome_lines(metrics), *asked]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
