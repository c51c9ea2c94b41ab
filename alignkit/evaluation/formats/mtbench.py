"""MT-bench's pairwise judgements: one row holds two games, in either order."""

from __future__ import annotations

from collections.abc import Iterator

from alignkit.evaluation import judged_rows as fields
from alignkit.evaluation.formats.shape import TIE, Judged, JudgementFormat, Row, judge_of

WINNERS = {"model_1": 1.0, "tie": TIE, "model_2": 0.0, "error": None}


def read(row: Row) -> Iterator[Judged]:
    """Two judgements; model_1 is shown first in g1. A turn is a prompt of its own."""
    question = fields.name(row, "question_id")
    turn = row.get("turn")
    prompt_id = question if turn is None else f"{question} turn {fields.name(row, 'turn')}"
    a, b = fields.name(row, "model_1"), fields.name(row, "model_2")
    for key, first in (("g1_winner", "a"), ("g2_winner", "b")):
        winner = fields.need(row, key)
        score = None if winner is None else fields.choice(winner, key, WINNERS)
        yield Judged(prompt_id, a, b, score, first, judge_of(row))


FORMAT = JudgementFormat(frozenset({"model_1", "model_2", "g1_winner"}), read)
