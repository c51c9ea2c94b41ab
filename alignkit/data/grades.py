"""Rank completions that were graded one by one: those of one prompt are compared by grade."""

from __future__ import annotations

import json
from collections.abc import Iterable

import orjson

from alignkit.data.formats.fields import ranks_by_score
from alignkit.data.records import Candidates, Demonstration, Ranking, template_keys


def is_graded(record: Candidates) -> bool:
    """Return whether every candidate has a score and nobody ranked them."""
    return all(candidate.score is not None for candidate in record.candidates)


def rankings_from_grades(records: Iterable[Candidates]) -> list[Ranking]:
    """Build one ranking per prompt with two or more completions, in order of first appearance.

    A higher score is better, equal scores tie. Prompts with a single completion give none.
    """
    prompts: dict[bytes, list[Candidates]] = {}
    for record in records:
        key = orjson.dumps([message.model_dump() for message in record.prompt])
        # A completion written with other tools or documents was written for another prompt.
        key += json.dumps(template_keys(record), sort_keys=True).encode()
        prompts.setdefault(key, []).append(record)
    return [ranking for together in prompts.values() if (ranking := _ranking(together)) is not None]


def _ranking(records: list[Candidates]) -> Ranking | None:
    graded = [candidate for record in records for candidate in record.candidates]
    if len(graded) < 2:
        return None
    named = [
        candidate.model_copy(update={"cid": f"c{position}"})
        for position, candidate in enumerate(graded)
    ]
    ranks = ranks_by_score([candidate.score for candidate in named])
    first = records[0]
    return Ranking(
        id=first.id,
        item=first.id,
        prompt=first.prompt,
        candidates=named,
        ranks={c.cid: rank for c, rank in zip(named, ranks, strict=True) if rank is not None},
        source=first.source,
        **template_keys(first),
    )


def demonstration_of(record: Candidates) -> Demonstration | None:
    """Return the record's only graded completion as a demonstration; None if it has several."""
    if len(record.candidates) != 1 or not is_graded(record):
        return None
    (candidate,) = record.candidates
    earlier = [
        message.model_copy(update={"train": False}) if message.role == "assistant" else message
        for message in record.prompt
    ]
    return Demonstration(
        id=record.id,
        messages=[*earlier, *candidate.messages],
        source=record.source,
        extra=record.extra | {"score": _plain(candidate.score)},
        **template_keys(record),
    )


def _plain(score: float | None) -> float | int | None:
    """Return 9 rather than 9.0, as most files write it."""
    return int(score) if score is not None and score.is_integer() else score
