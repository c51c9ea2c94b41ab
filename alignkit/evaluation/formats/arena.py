"""Votes of Chatbot Arena: one row is one battle."""

from __future__ import annotations

from collections.abc import Iterator

from alignkit.evaluation import judged_rows as fields
from alignkit.evaluation.formats.shape import TIE, Judged, JudgementFormat, Row, judge_of

WINNERS = {
    "model_a": 1.0,
    "model_b": 0.0,
    "tie": TIE,
    "tie (bothbad)": TIE,
    "both_bad": TIE,
}


def read(row: Row) -> Iterator[Judged]:
    """One judgement; nothing says which side was shown first."""
    winner = fields.need(row, "winner")
    yield Judged(
        prompt_id=fields.name(row, "question_id"),
        a=fields.name(row, "model_a"),
        b=fields.name(row, "model_b"),
        score=None if winner is None else fields.choice(winner, "winner", WINNERS),
        judge=judge_of(row),
    )


FORMAT = JudgementFormat(frozenset({"model_a", "model_b", "winner"}), read)
