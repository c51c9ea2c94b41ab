"""Count what a file holds: kinds, lengths, turns, roles, sources, agreement.

Counting streams: memory does not grow with the file.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from alignkit.data.checks.dataset_checks import SCRIPTS, script_of, text_length, wilson
from alignkit.data.records import (
    Label,
    Message,
    Preference,
    Ranking,
    Record,
)
from alignkit.data.rules import sides_of
from alignkit.data.voting import Items

EXAMPLES = 5


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
