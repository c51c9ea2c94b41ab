"""Turn records into token rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from alignkit.data.chat import Encoder
from alignkit.data.records import (
    Candidates,
    Demonstration,
    Preference,
    Prompt,
    Ranking,
    Record,
)
from alignkit.data.template_input import TemplateContext
from alignkit.errors import DataError, ModelError


@dataclass(frozen=True)
class SftRow:
    """Token ids of a conversation, and which of them are targets."""

    where: str
    ids: list[int]
    trained: list[bool]

    @property
    def tokens(self) -> int:
        """Length of the longest sequence in the row."""
        return len(self.ids)

    @property
    def size(self) -> int:
        """Token ids in the row."""
        return len(self.ids)

    def without_start(self, excess: int) -> SftRow | None:
        """Return the row without its first tokens; None when a target would go with them."""
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

    @property
    def size(self) -> int:
        """Token ids in the row."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)

    def without_start(self, excess: int) -> PairRow | None:
        """Return the row without the start of its prompt; None when that does not suffice."""
        if excess >= len(self.prompt):
            return None
        return replace(self, prompt=self.prompt[excess:])


@dataclass(frozen=True)
class RankingRow:
    """One ranking as token ids, without unranked completions.

    `margin`: the least score difference required of its pairs. `weight`: that of the preference it
    comes from, a share of its group's weight. `own_scores`: the scores that came with the
    candidates, if all have one.
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

    @property
    def size(self) -> int:
        """Token ids in the row."""
        return len(self.prompt) + sum(map(len, self.completions))

    def without_start(self, excess: int) -> RankingRow | None:
        """Return the row without the start of its prompt; None when that does not suffice."""
        if excess >= len(self.prompt):
            return None
        return replace(self, prompt=self.prompt[excess:])


Row = TypeVar("Row", SftRow, PairRow, RankingRow)


def place(record: Record) -> str:
    """Return `file:line` of a record, or its id when it came from no file."""
    if record.source is None:
        return record.id or "a record made in memory"
    return f"{record.source.file}:{record.source.row + 1}"


def sft_rows(record: Demonstration, encoder: Encoder, train_on: str) -> list[SftRow]:
    """Return a demonstration as rows: one, or one per assistant turn whose prompt differs.

    A template may render earlier turns differently later on. Then a turn's prompt is not a start of
    the next turn's, and each turn needs a row. Raise DataError when the demonstration has no
    target.
    """
    encoded = encoder.encode_demonstration(record, train_on)
    if not any(any(tokens.trained) for tokens in encoded):
        raise DataError(
            "no token to train",
            hint="each demonstration needs an assistant turn with text that is not train: false",
        )
    return [SftRow(place(record), tokens.ids, tokens.trained) for tokens in encoded]


@dataclass
class Answers:
    """Counts which of the assistant's turns are trained, and why the others are not."""

    conversations: int = 0
    rows: int = 0
    turns: int = 0
    unmarked: int = 0

    def count(self, record: Demonstration, rows: Sequence[SftRow], train_on: str) -> None:
        """Count a conversation and its rows."""
        turns = [turn for turn in record.messages if turn.role == "assistant"]
        self.conversations += 1
        self.rows += len(rows)
        self.turns += len(turns)
        self.unmarked += 0 if train_on == "all" else sum(turn.train is False for turn in turns)

    def lines(self) -> list[str]:
        """Return what to report: nothing if each conversation is one row with all turns trained."""
        lines = []
        if self.unmarked:
            lines.append(
                f"{self.unmarked} of {self.turns} assistant turns are not trained: they are marked "
                "train: false"
            )
        if self.rows > self.conversations:
            lines.append(
                f"{self.conversations} conversations became {self.rows} rows: the chat template "
                "renders earlier turns differently later on, so each assistant turn has its own "
                "prompt"
            )
        return lines


def pair_row(record: Preference, encoder: Encoder) -> PairRow | None:
    """Return a preference as a row; None for a tie, which does not say which side is better.

    Every token of a side is trained. So raise DataError for a side that holds others' turns, and
    for sides that are the same tokens.
    """
    if record.tie:
        return None
    context = TemplateContext.of(record)
    for name in ("chosen", "rejected"):
        others = {turn.role for turn in getattr(record, name)} - {"assistant"}
        if others:
            raise DataError(
                f"{name} holds a turn of role {min(others)}, which would be trained as well",
                hint="Fix: move all turns before the last assistant turn into the prompt",
            )
    chosen, rejected = (
        encoder.completion_ids(record.prompt, side, context=context)
        for side in (record.chosen, record.rejected)
    )
    if chosen == rejected:
        raise DataError(
            "both sides are the same tokens under this chat template",
            hint="Fix: remove the row, or use a template that renders what differs",
        )
    prompt = encoder.prompt_ids(record.prompt, context=context)
    return PairRow(place(record), prompt, chosen, rejected, record.weight)


def ranking_row(record: Ranking, encoder: Encoder) -> RankingRow | None:
    """Return a ranking as a row, without unranked completions; None if fewer than two are left."""
    ranked = [c for c in record.candidates if c.cid in record.ranks]
    if len(ranked) < 2:
        return None
    scored = all(c.score is not None for c in ranked)
    context = TemplateContext.of(record)
    return RankingRow(
        place(record),
        encoder.prompt_ids(record.prompt, context=context),
        [encoder.completion_ids(record.prompt, c.completion, context=context) for c in ranked],
        [record.ranks[c.cid] for c in ranked],
        _number(record, "margin", 0.0),
        _number(record, "weight", 1.0),
        [float(c.score) for c in ranked if c.score is not None] if scored else None,
    )


def check_row(record: Record, encoder: Encoder, train_on: str) -> None:
    """Raise what encoding a record raises, with its place."""
    try:
        if isinstance(record, Demonstration):
            sft_rows(record, encoder, train_on)
        elif isinstance(record, Preference):
            pair_row(record, encoder)
        elif isinstance(record, Ranking):
            ranking_row(record, encoder)
        elif isinstance(record, Prompt | Candidates):
            encoder.prompt_ids(record.prompt, context=TemplateContext.of(record))
    except (DataError, ModelError) as error:
        raise error.at(place(record)) from None


def _number(record: Ranking, name: str, default: float) -> float:
    """Return a number of the preference that a ranking of two was made from."""
    value = record.extra.get(name)
    return float(value) if isinstance(value, int | float) else default
