"""What every judgement format reads a row into, and what several of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from alignkit.evaluation import judged_rows as fields
from alignkit.evaluation.judged_rows import Row as Row

TIE = 0.5


class Judged(NamedTuple):
    """One judgement of any format. `score` is P(a wins), None when the judge failed."""

    prompt_id: str | None  # None: the row is a prompt of its own
    a: str
    b: str
    score: float | None
    first: str | None = None  # "a" or "b": the side shown first
    judge: str = ""
    prompt: str | None = None
    output_a: str | None = None
    output_b: str | None = None
    len_a: int | None = None
    len_b: int | None = None
    error: str | None = None
    injects_a: bool | None = None  # whether the completion talks to the judge
    injects_b: bool | None = None
    worth_a: float | None = None  # the judge's score of each completion by itself
    worth_b: float | None = None
    log_ratio_a: float | None = None  # log p(output_a) by its own model minus by the other, nats
    log_ratio_b: float | None = None
    prompt_tokens: float | None = None  # what asking a judge took
    completion_tokens: float | None = None
    cost: float | None = None


class JudgementFormat(NamedTuple):
    """A format is known by a row's keys; `read` gives the judgements of one row."""

    keys: frozenset[str]
    read: Callable[[Row], Iterator[Judged]]


def judge_of(row: Row, key: str = "judge") -> str:
    """The judge's name; MT-bench gives a list of model and template."""
    if isinstance(row.get(key), list):
        return "/".join(fields.texts(row, key))
    return fields.label(row, key) or ""
