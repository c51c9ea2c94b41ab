"""Describe a file in numbers and pictures: kinds, lengths, turns, roles, sources, agreement.

Counting streams. The page is one self-contained HTML file that escapes every text from the data.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import combinations
from typing import Any

from alignkit.data.checks.dataset_checks import SCRIPTS, script_of, text_length, wilson
from alignkit.data.records import (
    Demonstration,
    Label,
    Message,
    Preference,
    Ranking,
    Record,
)
from alignkit.data.rules import sides_of
from alignkit.data.voting import Items

EXAMPLES = 5
BARS = 24
MOST_VALUES = 12
EXAMPLE_TEXT = 600


@dataclass
class Lengths:
    """Lengths in characters, kept as counts so that memory does not grow with the file."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, length: int) -> None:
        """Add one text."""
        self.counts[length] += 1

    def quantile(self, share: float) -> int:
        """Return the smallest length that this share of the texts does not exceed."""
        wanted, seen = share * self.counts.total(), 0
        for length in sorted(self.counts):
            seen += self.counts[length]
            if seen >= wanted:
                return length
        return 0

    def as_dict(self) -> dict[str, float]:
        """Return count, mean and quantiles."""
        n = self.counts.total()
        total = sum(length * count for length, count in self.counts.items())
        return {
            "n": n,
            "mean": total / n if n else 0.0,
            "p5": self.quantile(0.05),
            "median": self.quantile(0.5),
            "p95": self.quantile(0.95),
            "max": max(self.counts, default=0),
        }


@dataclass
class Stats:
    """Counts over the records of a file."""

    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    annotators: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, Lengths] = field(default_factory=lambda: defaultdict(Lengths))
    longer: list[int] = field(default_factory=lambda: [0, 0])
    votes: dict[str, dict[str, dict[str, int]]] = field(default_factory=lambda: defaultdict(dict))
    items: Items = field(default_factory=Items)
    examples: list[Record] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Add one record."""
        self.rows += 1
        self.kinds[record.kind] += 1
        if record.source:
            self.formats[record.source.format] += 1
        sides = list(sides_of(record))
        for name, messages in sides:
            self._conversation(name, messages)
        if sides:
            self.scripts[SCRIPTS[script_of([messages for _, messages in sides if messages])]] += 1
        self._judgement(record)
        if len(self.examples) < EXAMPLES:
            self.examples.append(record)

    def _conversation(self, name: str, messages: Sequence[Message]) -> None:
        self.roles.update(message.role for message in messages)
        plain = "completion" if name.startswith("candidates") else name
        if name in ("messages", "prompt"):
            self.turns[len(messages)] += 1
        self.lengths[plain].add(sum(len(message.content) for message in messages))

    def _judgement(self, record: Record) -> None:
        if isinstance(record, Preference) and not record.tie:
            better, worse = text_length(record.chosen), text_length(record.rejected)
            self.longer[0] += better > worse
            self.longer[1] += better != worse
        elif isinstance(record, Label):
            self.labels[str(record.label).lower()] += 1
        elif isinstance(record, Ranking):
            self.models.update(c.model for c in record.candidates if c.model)
            if record.annotator:
                self.annotators[record.annotator] += 1
                place = self.items.of(record)
                self.votes[place.item][record.annotator] = place.ranks(record.ranks)

    def agreement(self) -> float | None:
        """Return the share of pairs of completions on which two annotators of an item agree."""
        same = total = 0
        for by_annotator in self.votes.values():
            for left, right in combinations(by_annotator.values(), 2):
                for a, b in combinations(sorted(left.keys() & right.keys()), 2):
                    total += 1
                    same += _sign(left[a] - left[b]) == _sign(right[a] - right[b])
        return same / total if total else None

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers that `data stats --json` prints."""
        longer, compared = self.longer
        low, high = wilson(longer, compared) if compared else (None, None)
        return {
            "rows": self.rows,
            "kinds": dict(self.kinds),
            "formats": dict(self.formats),
            "roles": dict(self.roles),
            "turns": {str(turns): count for turns, count in sorted(self.turns.items())},
            "scripts": dict(self.scripts),
            "labels": dict(self.labels),
            "annotators": dict(self.annotators),
            "models": dict(self.models),
            "agreement": self.agreement(),
            "lengths": {name: lengths.as_dict() for name, lengths in self.lengths.items()},
            "longer_chosen": {
                "n": compared, "share": longer / compared if compared else None,
                "low": low, "high": high,
            },
        }  # fmt: skip


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def stats_of(records: Iterable[Record]) -> Stats:
    """Return the statistics of a stream of records."""
    stats = Stats()
    for record in records:
        stats.add(record)
    return stats


# --- the page -----------------------------------------------------------------------------------

STYLE = """
:root{color-scheme:light dark;--ink:#1c2330;--soft:#5b6577;--line:#d9dee7;--bar:#3b6fd4;--bg:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e8ebf1;--soft:#9aa5b8;--line:#323b4b;--bar:#7aa2f7;
--bg:#141922}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--bg);max-width:64rem;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;overflow-wrap:anywhere}h2{font-size:1.1rem;margin-top:2.2rem}
table{border-collapse:collapse}td,th{padding:.25rem .9rem .25rem 0;text-align:left;
border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(18rem,1fr));gap:1rem 2rem}
svg{width:100%;height:8rem;display:block}rect{fill:var(--bar)}
figure{margin:0}figcaption,.soft{color:var(--soft)}
article{border:1px solid var(--line);border-radius:.5rem;padding:.8rem 1rem;margin:.8rem 0}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.2rem 0 .8rem;font:13px/1.45 ui-monospace,
monospace}
"""


def page(stats: Stats, title: str, *, examples: bool = True) -> str:
    """Build one self-contained HTML page; `examples=False` leaves the texts out."""
    numbers = stats.as_dict()
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{stats.rows:,} rows · {_text(', '.join(stats.kinds))} · "
        f"read as {_text(', '.join(stats.formats) or 'records')}</p>",
        "<h2>Lengths in characters</h2>",
        _length_table(numbers["lengths"]),
        '<div class="grid">',
        *(_histogram(name, lengths) for name, lengths in stats.lengths.items()),
        "</div>",
        _judgements(numbers),
        '<h2>Make-up</h2><div class="grid">',
        *(_counts(name, numbers[name])
          for name in ("kinds", "roles", "turns", "scripts", "labels", "annotators", "models",
                       "formats")),
        "</div>",
    ]  # fmt: skip
    if examples and stats.examples:
        parts += ["<h2>Examples</h2>", *(_example(record) for record in stats.examples)]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


def _text(value: object) -> str:
    """Escape a value; show invisible direction and control characters as code points."""
    shown = "".join(c if c in "\n\t" or c.isprintable() else f"\\u{ord(c):04x}" for c in str(value))
    return escape(shown)


def _length_table(lengths: Mapping[str, Mapping[str, float]]) -> str:
    columns = ("n", "mean", "p5", "median", "p95", "max")
    head = "".join(f"<th>{column}</th>" for column in columns)
    rows = "".join(
        f"<tr><td>{_text(name)}</td>"
        + "".join(f"<td>{values[column]:,.0f}</td>" for column in columns)
        + "</tr>"
        for name, values in lengths.items()
    )
    return f"<table><tr><th></th>{head}</tr>{rows}</table>"


def _histogram(name: str, lengths: Lengths) -> str:
    """Draw bars of equal width up to the 99th percentile; the last one holds all beyond."""
    top = max(lengths.quantile(0.99), BARS)
    heights = [0] * BARS
    for length, count in lengths.counts.items():
        heights[min(length * BARS // top, BARS - 1)] += count
    tallest = max(heights) or 1
    bars = "".join(
        f'<rect x="{position * 10}" y="{100 - height / tallest * 100:.1f}" width="9" '
        f'height="{height / tallest * 100:.1f}"><title>{position * top // BARS:,} characters: '
        f"{height:,}</title></rect>"
        for position, height in enumerate(heights)
    )
    label = f"{name}: 0 to {top:,} characters"
    return (
        f'<figure><svg viewBox="0 0 {BARS * 10} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{_text(label)}">{bars}</svg><figcaption>{_text(label)}</figcaption></figure>'
    )


def _judgements(numbers: Mapping[str, Any]) -> str:
    longer, agreement = numbers["longer_chosen"], numbers["agreement"]
    lines = []
    if longer["n"]:
        lines.append(
            f"<p>The longer completion is preferred in {longer['share']:.1%} of {longer['n']:,} "
            f"[{longer['low']:.1%}, {longer['high']:.1%}].</p>"
        )
    if agreement is not None:
        lines.append(f"<p>Two annotators agree on {agreement:.1%} of the pairs both ranked.</p>")
    return "<h2>Judgements</h2>" + "".join(lines) if lines else ""


def _counts(name: str, values: Mapping[str, int]) -> str:
    if not values:
        return ""
    total = sum(values.values())
    shown = sorted(values.items(), key=lambda item: -item[1])[:MOST_VALUES]
    rows = "".join(
        f"<tr><td>{_text(value)}</td><td>{count:,}</td><td>{count / total:.1%}</td></tr>"
        for value, count in shown
    )
    more = len(values) - len(shown)
    rest = f'<p class="soft">and {more:,} more</p>' if more else ""
    return f"<div><h3>{_text(name)}</h3><table>{rows}</table>{rest}</div>"


def _example(record: Record) -> str:
    sides = "".join(
        f'<div class="soft">{_text(name)} · {_text(message.role)}</div>'
        f"<pre>{_text(message.content[:EXAMPLE_TEXT])}"
        f"{'…' if len(message.content) > EXAMPLE_TEXT else ''}</pre>"
        for name, messages in sides_of(record)
        for message in messages
    )
    kind = "demonstration" if isinstance(record, Demonstration) else record.kind
    return f'<article><div class="soft">{_text(kind)} {_text(record.id)}</div>{sides}</article>'
