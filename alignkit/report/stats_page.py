"""Show what a file of data holds as one HTML page: lengths, judgements, make-up, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from alignkit.data.checks.stats import Lengths, Stats
from alignkit.data.records import Demonstration, Record
from alignkit.data.rules import sides_of
from alignkit.report.page import rendered

BARS = 24
MOST_VALUES = 12
EXAMPLE_TEXT = 600
COUNTED = ("kinds", "roles", "turns", "scripts", "labels", "annotators", "models", "formats")


class Histogram(NamedTuple):
    """Lengths as bars: each its height in percent of the tallest, its lower end and its count."""

    name: str
    top: int
    bars: Sequence[tuple[float, int, int]]


class Counts(NamedTuple):
    """The most frequent values of one kind; `left_out` more were counted."""

    name: str
    rows: Sequence[tuple[str, int, float]]
    left_out: int


class Example(NamedTuple):
    """One record's texts: where each is from, its role, its beginning."""

    kind: str
    name: str
    texts: Sequence[tuple[str, str, str]]


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


def _histogram(name: str, lengths: Lengths) -> Histogram:
    """Bars of equal width up to the 99th percentile; the last one holds what is longer."""
    top = max(lengths.quantile(0.99), BARS)
    heights = [0] * BARS
    for length, count in lengths.counts.items():
        heights[min(length * BARS // top, BARS - 1)] += count
    tallest = max(heights) or 1
    bars = [
        (round(100 * height / tallest, 2), position * top // BARS, height)
        for position, height in enumerate(heights)
    ]
    return Histogram(name, top, bars)


def _counts(name: str, values: Mapping[str, int]) -> Counts:
    total = sum(values.values())
    shown = sorted(values.items(), key=lambda item: -item[1])[:MOST_VALUES]
    rows = [(value, count, count / total) for value, count in shown]
    return Counts(name, rows, len(values) - len(shown))


def _example(record: Record) -> Example:
    texts = [
        (name, message.role, _beginning(message.content))
        for name, messages in sides_of(record)
        for message in messages
    ]
    kind = "demonstration" if isinstance(record, Demonstration) else record.kind
    return Example(kind, record.id, texts)


def _beginning(text: str) -> str:
    return text if len(text) <= EXAMPLE_TEXT else f"{text[:EXAMPLE_TEXT]}…"
