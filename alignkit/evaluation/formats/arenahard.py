"""Arena-Hard's games of a model against the baseline."""

from __future__ import annotations

from collections.abc import Iterator

from alignkit.errors import DataError
from alignkit.evaluation import judged_rows as fields
from alignkit.evaluation.formats.shape import TIE, Judged, JudgementFormat, Row, judge_of

# P(A wins); a strong verdict counts once.
SCORES = {
    **dict.fromkeys(("A>>B", "A>B", "B<A", "B<<A"), 1.0),
    **dict.fromkeys(("A=B", "B=A"), TIE),
    **dict.fromkeys(("B>>A", "B>A", "A<B", "A<<B"), 0.0),
}


def read(row: Row) -> Iterator[Judged]:
    """Two games; A is the baseline in the first and the model in the second, and shown first."""
    uid = fields.name(row, "uid" if "uid" in row else "question_id")
    model, baseline = fields.name(row, "model"), fields.name(row, "baseline")
    games = fields.need(row, "games")
    if not isinstance(games, list) or len(games) != 2:
        raise DataError("'games' must be a list of two games")
    for game, first in zip(games, ("b", "a"), strict=True):
        if game is not None and not isinstance(game, dict):
            raise DataError("a game must be an object with 'score', or null")
        given = None if game is None else fields.need(game, "score")
        score = None if given is None else fields.choice(given, "score", SCORES)
        if score is not None and first == "b":
            score = 1.0 - score
        yield Judged(uid, model, baseline, score, first, judge_of(row))


FORMAT = JudgementFormat(frozenset({"model", "baseline", "games"}), read)
