"""Show what a run did as one HTML file: curves, win rates, replies, settings.

The page holds no script and loads nothing. This module chooses what is shown; the tags are in
`templates/run.html`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.recipe.settings import CONFIGS
from alignkit.report.charts import WIDE, Chart, Curve, IntervalMark, interval, line_chart
from alignkit.report.page import rendered
from alignkit.store.secrets import without_secrets
from alignkit.store.whole_files import write_whole

# The bare model's colour; a stage's is in its settings. A policy keeps it in every chart and table.
BASE_STYLE = 7
Row = Mapping[str, Any]


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows, in plain values.

    `stages`: stage name → rows of its metrics.jsonl. `summary`: one row per policy and
    temperature. `samples`: {"prompt", "replies": {policy: text}, "scores"?: {policy: number},
    "judged"?: the same by a judge}. `frontier`: policy → rows with "kl" and "reward" or "gold", one
    per checkpoint.
    `warnings` are shown first.
    """

    title: str
    subtitle: str = ""
    stages: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    summary: Sequence[Row] = ()
    samples: Sequence[Row] = ()
    frontier: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class SummaryColumn:
    """One column of the summary table; `form` is the format of its numbers."""

    key: str
    heading: str
    meaning: str
    form: str = ""


def write_report(path: Path, data: ReportData, *, redact: bool = False) -> Path:
    """Write the report to `path` at once or not at all; `redact` hides prompts and replies."""
    text = render(data, redact=redact)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode(), mode=0o600)
    return path


def render(data: ReportData, *, redact: bool = False) -> str:
    """The whole page as text."""
    return rendered(
        "run.html",
        title=data.title,
        data=data,
        redact=redact,
        columns=_columns(data.summary),
        tables=_tables(data.summary),
        frontier=_frontier(data.frontier),
        stages=[_stage(name, rows) for name, rows in data.stages.items() if rows],
        settings=without_secrets(data.settings),
        style_of=style_of,
        win_rate=_win_rate,
    )


def style_of(policy: str) -> int:
    """A policy's colour: its stage's if it has that name, else one by its letters."""
    if policy == "base":
        return BASE_STYLE
    own = CONFIGS[policy].about.colour if policy in CONFIGS else None
    return 3 + sum(policy.encode(errors="replace")) % 4 if own is None else own


def _tables(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each temperature, by its name."""
    tables: dict[str, list[Row]] = {}
    for row in rows:
        tables.setdefault(_temperature_name(row.get("temperature")), []).append(row)
    return tables


def _temperature_name(temperature: float | None) -> str:
    if temperature is None:
        return "All replies"
    return (
        "Greedy (temperature 0)" if temperature == 0 else f"Sampled at temperature {temperature:g}"
    )


def _columns(rows: Sequence[Row]) -> list[SummaryColumn]:
    """The known columns that some row has, then whatever else the rows hold."""
    present = dict.fromkeys(key for row in rows for key in row)
    own = {column.key for column in COLUMNS} | INTERVAL_KEYS
    known = [column for column in COLUMNS if column.key in present]
    return known + [SummaryColumn(key, key, key) for key in present if key not in own]


def _win_rate(row: Row) -> IntervalMark | None:
    """The drawn interval; None for the row that the others are compared to."""
    value, low, high = (row.get(key) for key in ("win_rate", "low", "high"))
    if value is None or low is None or high is None:
        return None
    return interval(value, row)


def _frontier(policies: Mapping[str, Sequence[Row]]) -> list[Chart]:
    """Gold and reward-model score against KL: where they part, the reward model is being gamed."""
    return _drawn(
        line_chart(
            title,
            [
                Curve(name, _pairs(rows, "kl", key), style_of(name), dots=True)
                for name, rows in policies.items()
            ],
            x_label="KL to the reference, nats",
            width=WIDE,
        )
        for key, title in (("reward", "Reward-model score"), ("gold", "Gold score"))
    )


def _stage(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Charts of the metrics that matter, the other charts, and every logged number."""
    metrics = dict.fromkeys(key for row in rows for key, value in row.items() if _is_number(value))
    keys = [key for key in metrics if key not in ("step", "epoch")]
    panels = [(title, [key for key in keys if _plain(key) in own]) for title, own in PANELS.items()]
    shown = {key for _, own in panels for key in own}
    rest = [key for key in keys if key not in shown and len(_pairs(rows, "step", key)) > 1]
    return {
        "name": name,
        "charts": _drawn(_curves(title, own, rows) for title, own in panels),
        "rest": _drawn(_curves(key, [key], rows) for key in rest),
        "columns": list(dict.fromkeys(key for row in rows for key in row)),
        "rows": rows,
    }


def _curves(title: str, keys: Sequence[str], rows: Sequence[Row]) -> Chart | None:
    series = [Curve(key, _pairs(rows, "step", key), style) for style, key in enumerate(keys)]
    return line_chart(title, series)


def _plain(key: str) -> str:
    """A metric's name without the data it was measured on: both share a panel."""
    return key.removeprefix("eval_").removeprefix("train_")


def _drawn(charts: Iterable[Chart | None]) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _pairs(rows: Sequence[Row], x: str, y: str) -> list[tuple[float, float]]:
    """The (x, y) of rows that have both as numbers."""
    return [
        (float(row[x]), float(row[y]))
        for row in rows
        if _is_number(row.get(x)) and _is_number(row.get(y))
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


INTERVAL_KEYS = {"policy", "temperature", "win_rate", "low", "high"}
COLUMNS = (
    SummaryColumn("policy", "Policy", "which model replied"),
    SummaryColumn("win_rate", "Win rate, 95 % interval", "share of prompts won, ties count half"),
    SummaryColumn(
        "gold", "Gold", "mean score by the true judge, which real projects do not have", ".2f"
    ),
    SummaryColumn("reward", "Reward", "mean score by the reward model", ".2f"),
    SummaryColumn("kl", "KL", "divergence from the reference, nats per reply", ".2f"),
    SummaryColumn("length", "Length", "mean reply length in tokens", ".1f"),
    SummaryColumn("eos_rate", "EOS", "share of replies that ended by themselves", ".1%"),
    SummaryColumn("distinct", "Distinct", "different replies", ".3f"),
    SummaryColumn("n", "n", "prompts"),
)
# A chart's title and the metrics that belong on it.
PANELS = {
    "Loss": ("loss", "loss/policy_avg", "loss/value_avg"),
    "Accuracy": ("accuracy", "rewards/accuracies", "clean_accuracy", "mean_token_accuracy"),
    "Margin": ("margin", "rewards/margins"),
    "KL, nats": ("kl", "objective/kl", "objective/kl_k3", "eval/kl"),
    "Reward": ("reward", "objective/scores", "score", "eval/score", "objective/rlhf_reward"),
    "Gold score": ("gold", "eval/gold", "eval/greedy_gold"),
    "Win rate against the start": ("eval/win_rate", "eval/judge_win_rate"),
    "Reply length": ("length", "rollout/length", "eval/length"),
    "Ended by themselves": ("eos_rate", "rollout/eos_rate", "eval/eos_rate"),
}
