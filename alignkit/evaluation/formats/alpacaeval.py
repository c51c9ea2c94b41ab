"""AlpacaEval's annotations: one row is one instruction, answered by two generators."""

from __future__ import annotations

from collections.abc import Iterator

from alignkit.evaluation import judged_rows as fields
from alignkit.evaluation.formats.shape import TIE, Judged, JudgementFormat, Row, judge_of


def read(row: Row) -> Iterator[Judged]:
    """`preference` is 1 for output_1, 2 for output_2, between for a soft verdict; 0 is a draw."""
    preference = fields.need(row, "preference")
    score: float | None = None
    if preference is not None:
        is_draw = preference == 0 and not isinstance(preference, bool)
        score = TIE if is_draw else fields.number(preference, "preference", 1, 2) - 1.0
    yield Judged(
        prompt_id=None,
        a=fields.name(row, "generator_2"),
        b=fields.name(row, "generator_1"),
        score=score,
        judge=judge_of(row, "annotator"),
        prompt=fields.text(row, "instruction"),
        output_a=fields.text(row, "output_2"),
        output_b=fields.text(row, "output_1"),
    )


FORMAT = JudgementFormat(frozenset({"generator_1", "generator_2", "preference"}), read)
