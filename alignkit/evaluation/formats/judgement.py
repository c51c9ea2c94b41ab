"""Our own judgements, as `alignkit eval` writes them: `kind` is judgement."""

from __future__ import annotations

from collections.abc import Iterator

from alignkit.errors import DataError
from alignkit.evaluation import judged_rows as fields
from alignkit.evaluation.formats.shape import TIE, Judged, JudgementFormat, Row, judge_of

SCORES = {"a": 1.0, "tie": TIE, "b": 0.0}


def read(row: Row) -> Iterator[Judged]:
    """One judgement; `score` counts before `verdict`."""
    if row.get("kind") != "judgement":
        raise DataError(f"'kind' must be 'judgement', not {fields.shown(row.get('kind'))}")
    if "verdict" not in row and "score" not in row:
        raise DataError("'verdict' and 'score' are both missing", hint="One of them is needed")
    verdict, score, first = row.get("verdict"), row.get("score"), row.get("first")
    decided = None if verdict is None else fields.choice(verdict, "verdict", SCORES)
    if first is not None:
        fields.choice(first, "first", {"a": 1, "b": 0})
    yield Judged(
        prompt_id=fields.name(row, "prompt_id"),
        a=fields.name(row, "a"),
        b=fields.name(row, "b"),
        score=decided if score is None else fields.number(score, "score", 0, 1),
        first=first,
        judge=judge_of(row),
        prompt=fields.conversation_text(row.get("prompt")),
        output_a=fields.text(row, "output_a"),
        output_b=fields.text(row, "output_b"),
        len_a=fields.count(row, "len_a"),
        len_b=fields.count(row, "len_b"),
        error=fields.text(row, "error"),
        injects_a=_flag(row, "injection_a"),
        injects_b=_flag(row, "injection_b"),
        worth_a=_measure(row, "score_a"),
        worth_b=_measure(row, "score_b"),
        log_ratio_a=_measure(row, "log_ratio_a"),
        log_ratio_b=_measure(row, "log_ratio_b"),
        prompt_tokens=_measure(row, "prompt_tokens"),
        completion_tokens=_measure(row, "completion_tokens"),
        cost=_measure(row, "cost"),
    )


def _flag(row: Row, key: str) -> bool | None:
    """True or false of the row or its `extra`; None for another value, which is not ours."""
    value = fields.looked_up(row, key).get(key)
    return value if isinstance(value, bool) else None


def _measure(row: Row, key: str) -> float | None:
    """A number of the row or its `extra`; None for another value, which is not ours to refuse."""
    found = fields.looked_up(row, key)
    value = found.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return fields.measure(found, key) if is_number else None


FORMAT = JudgementFormat(frozenset({"prompt_id", "a", "b"}), read)
