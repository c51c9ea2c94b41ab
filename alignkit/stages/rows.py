"""From records to token rows: lengths checked first, nothing cut or dropped in silence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from alignkit.data.chat import Encoder
from alignkit.data.records import Demonstration, Preference, Ranking, Record
from alignkit.errors import DataError

Say = Callable[[str], None]


@dataclass(frozen=True)
class SftRow:
    """Token ids of a conversation and which are targets."""

    where: str
    ids: list[int]
    trained: list[bool]

    @property
    def tokens(self) -> int:
        """Length of the longest sequence in the row."""
        return len(self.ids)

    def without_start(self, excess: int) -> SftRow | None:
        """The row without its first tokens; None when a target would go with them."""
        if excess >= self.trained.index(True):
            return None
        return replace(self, ids=self.ids[excess:], trained=self.trained[excess:])


@dataclass(frozen=True)
class PairRow:
    """One preference as token ids."""

    where: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    weight: float = 1.0

    @property
    def tokens(self) -> int:
        """Length of the longest sequence in the row."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    def without_start(self, excess: int) -> PairRow | None:
        """The row without the start of its prompt; None when that is not enough."""
        if excess >= len(self.prompt):
            return None
        return replace(self, prompt=self.prompt[excess:])


@dataclass(frozen=True)
class RankingRow:
    """One ranking as token ids, unranked completions left out.

    `margin`: the least score difference asked of its pairs. `weight`: that of the preference it
    was made from, a share of its group's. `own_scores`: the scores that came
    with the candidates, when all have one.
    """

    where: str
    prompt: list[int]
    completions: list[list[int]]
    ranks: list[int]
    margin: float = 0.0
    weight: float = 1.0
    own_scores: list[float] | None = None

    @property
    def tokens(self) -> int:
        """Length of the longest sequence in the row."""
        return len(self.prompt) + max(len(c) for c in self.completions)

    def without_start(self, excess: int) -> RankingRow | None:
        """The row without the start of its prompt; None when that is not enough."""
        if excess >= len(self.prompt):
            return None
        return replace(self, prompt=self.prompt[excess:])


Row = TypeVar("Row", SftRow, PairRow, RankingRow)
Made = TypeVar("Made")


def place(record: Record) -> str:
    """`file:line` of a record, or its id when it came from nowhere."""
    if record.source is None:
        return record.id or "a record made in memory"
    return f"{record.source.file}:{record.source.row + 1}"


def sft_rows(records: Sequence[Demonstration], encoder: Encoder, train_on: str) -> list[SftRow]:
    """Demonstrations as rows. Raises DataError naming rows without a single target."""
    rows = []
    for record in records:
        tokens = _located(record, encoder.encode_demonstration, record, train_on)
        rows.append(SftRow(place(record), tokens.ids, tokens.trained))
    empty = [row.where for row in rows if not any(row.trained)]
    if empty:
        raise DataError(
            f"{len(empty)} rows have no token to train",
            where=empty[0],
            hint="each demonstration needs an assistant turn with text",
        )
    return rows


def pair_rows(records: Sequence[Preference], encoder: Encoder) -> list[PairRow]:
    """Preferences as rows, ties left out: they say nothing about which side is better."""
    rows = []
    for record in records:
        if record.tie:
            continue
        rows.append(_located(record, _pair_row, record, encoder))
    return rows


def ranking_rows(records: Sequence[Ranking], encoder: Encoder) -> list[RankingRow]:
    """Rankings as rows; completions without a rank are left out, rows with one left are too."""
    rows = []
    for record in records:
        row = _located(record, _ranking_row, record, encoder)
        if len(row.completions) > 1:
            rows.append(row)
    return rows


def fit_to_length(rows: Sequence[Row], limit: int, policy: str, say: Say) -> list[Row]:
    """Rows within `limit` tokens, by `on_overlong`; raises DataError when it is `error`."""
    long = [row for row in rows if row.tokens > limit]
    if not long:
        return list(rows)
    longest = max(row.tokens for row in long)
    found = f"{len(long)} of {len(rows)} rows are longer than max_length {limit} (up to {longest})"
    if policy == "error":
        raise DataError(
            found,
            where=long[0].where,
            hint="raise max_length, or set on_overlong to drop or truncate_prompt",
        )
    if policy == "drop":
        say(f"{found}: dropped, the first at {long[0].where}")
        return [row for row in rows if row.tokens <= limit]
    kept = [row if row.tokens <= limit else row.without_start(row.tokens - limit) for row in rows]
    done = [row for row in kept if row is not None]
    say(f"{found}: prompts cut from the left, {len(kept) - len(done)} dropped")
    return done


def _pair_row(record: Preference, encoder: Encoder) -> PairRow:
    return PairRow(
        place(record),
        encoder.prompt_ids(record.prompt),
        encoder.completion_ids(record.prompt, record.chosen),
        encoder.completion_ids(record.prompt, record.rejected),
        record.weight,
    )


def _ranking_row(record: Ranking, encoder: Encoder) -> RankingRow:
    ranked = [c for c in record.candidates if c.cid in record.ranks]
    scored = all(c.score is not None for c in ranked)
    return RankingRow(
        place(record),
        encoder.prompt_ids(record.prompt),
        [encoder.completion_ids(record.prompt, c.messages) for c in ranked],
        [record.ranks[c.cid] for c in ranked],
        _number(record, "margin", 0.0),
        _number(record, "weight", 1.0),
        [float(c.score) for c in ranked if c.score is not None] if scored else None,
    )


def _number(record: Ranking, name: str, usual: float) -> float:
    """A number of the preference that a ranking of two was made from."""
    value = record.extra.get(name)
    return float(value) if isinstance(value, int | float) else usual


def _located(record: Record, make: Callable[..., Made], *arguments: Any) -> Made:
    """`make(*arguments)`, its errors given the file and line of the record."""
    try:
        return make(*arguments)
    except DataError as error:
        raise error.at(place(record)) from None
