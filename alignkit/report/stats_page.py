"""Show what a file of data holds as one HTML page: lengths, judgements, make-up, examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignkit.data.checks.stats import Lengths, Stats
from alignkit.data.records import Demonstration, Record
from alignkit.data.rules import sides_of
from alignkit.report.page import rendered

BARS = 24
MOST_VALUES = 12
EXAMPLE_TEXT = 600
COUNTED = ("kinds", "roles", "turns", "scripts", "labels", "annotators", "models", "formats")


def stats_page(stats: Stats, title: str, *, examples: bool = True) -> str:
    """One self-contained HTML page; `examples=False` leaves the texts out."""
    numbers = stats.as_dict()
    return rendered(
        "stats.html",
        title=title,
        stats=stats,
        numbers=numbers,
        histograms=[_histogram(name, lengths) for name, lengths in stats.lengths.items()],
        counts=[_counts(name, numbers[name]) for name in COUNTED if numbers[name]],
        examples=[_example(record) for record in stats.examples] if examples else [],
    )


def _histogram(name: str, lengths: Lengths) -> dict[str, Any]:
    """Bars (height in %, lower end, count) up to the 99th percentile; the last takes more."""
    top = max(lengths.quantile(0.99), BARS)
    heights = [0] * BARS
    for length, count in lengths.counts.items():
        heights[min(length * BARS // top, BARS - 1)] += count
    tallest = max(heights) or 1
    bars = [
        (round(100 * height / tallest, 2), position * top // BARS, height)
        for position, height in enumerate(heights)
    ]
    return {"name": name, "top": top, "bars": bars}


def _counts(name: str, values: Mapping[str, int]) -> dict[str, Any]:
    """The most frequent values, their counts and shares."""
    total = sum(values.values())
    shown = sorted(values.items(), key=lambda item: -item[1])[:MOST_VALUES]
    rows = [(value, count, count / total) for value, count in shown]
    return {"name": name, "rows": rows, "left_out": len(values) - len(shown)}


def _example(record: Record) -> dict[str, Any]:
    texts = [
        (name, message.role, _beginning(message.content))
        for name, messages in sides_of(record)
        for message in messages
    ]
    kind = "demonstration" if isinstance(record, Demonstration) else record.kind
    return {"kind": kind, "name": record.id, "texts": texts}


def _beginning(text: str) -> str:
    return text if len(text) <= EXAMPLE_TEXT else f"{text[:EXAMPLE_TEXT]}…"
