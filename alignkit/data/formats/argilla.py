"""Exports of Argilla, one ranking per annotator: records of both versions, hub data sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignkit.data.formats import prompt_columns
from alignkit.data.formats.fields import (
    Fields,
    Format,
    Row,
    as_number,
    either,
    expected,
    keys,
    not_text,
    only_text,
    prompt_text,
    ranks_by_score,
)
from alignkit.data.formats.literals import json_list
from alignkit.data.formats.sides import (
    PROMPT_KEYS,
    completion_series,
    named_side,
    prompt_among,
    ranks_of_winner,
    series_of,
)
from alignkit.data.records import Ranking
from alignkit.files.problems import RowError

Votes = dict[str, list[tuple[str | None, Any]]]  # question -> (annotator, value) per answer


def _submitted(answers: Sequence[Mapping[str, Any]]) -> list[tuple[str | None, Any]]:
    return [
        (None if answer.get("user_id") is None else str(answer["user_id"]), answer.get("value"))
        for answer in answers
        if answer.get("status", "submitted") in ("submitted", None)
    ]


def _argilla_votes(responses: Any) -> Votes:
    """Return the submitted answers to each question, in the layout of version 2 or 1."""
    if isinstance(responses, dict):
        return {question: _submitted(answers) for question, answers in responses.items()}
    if not isinstance(responses, list):
        raise expected(responses, "an object or an array", "responses")
    flat: dict[str, list[Mapping[str, Any]]] = {}
    for response in responses:
        about = {key: value for key, value in response.items() if key != "values"}
        for question, answer in (response.get("values") or {}).items():
            flat.setdefault(question, []).append({**about, "value": answer.get("value")})
    return {question: _submitted(answers) for question, answers in flat.items()}


def _rankings(fields: Mapping[str, Any], votes: Votes, where: str) -> list[Fields]:
    """Build one ranking per answer that orders the texts of a record.

    An answer orders them as a list of {value, rank}, as a list of fields from best to worst, or as
    the name of the best. Ratings order them together, if each text has a question of its own.
    """
    rankings: list[Fields] = []
    refused: list[str] = []
    for question, answers in votes.items():
        for annotator, value in answers:
            try:
                ranks = _ranks_of(value, fields, question)
            except RowError as error:
                refused.append(error.message)
                continue
            if ranks is not None:
                rankings.append(_ranked(fields, ranks, annotator, where))
    if not rankings:
        rankings = [_ranked(fields, *rated, where) for rated in _rated(fields, votes)]
    if not rankings and refused:
        raise RowError(
            "ranks",
            f"no answer tells which text is better: {refused[0]}",
            "name the field in the answer, or the sides: --map chosen=COLUMN,rejected=COLUMN",
            field=where,
        )
    if not rankings:
        raise RowError("ranks", "no submitted ranking in this record", "remove the row",
                       field="responses")  # fmt: skip
    return rankings


def _ranks_of(value: Any, fields: Mapping[str, Any], question: str) -> dict[str, int] | None:
    """Map field to rank; None if the value does not order texts (a rating, a comment)."""
    if isinstance(value, dict) and isinstance(value.get("value"), list):
        named, given = value["value"], value.get("rank")
        if not isinstance(given, list) or len(named) != len(given):
            return None
        value = [{"value": n, "rank": r} for n, r in zip(named, given, strict=True)]
    if isinstance(value, list) and value and all(_is_ranked(item) for item in value):
        return {item["value"]: item["rank"] for item in value}
    if (
        isinstance(value, list)
        and len(value) > 1
        and all(type(v) is str and v in fields for v in value)
    ):
        return {cid: position for position, cid in enumerate(value, start=1)}
    return _best_of(value, fields, question) if isinstance(value, str) and value else None


def _is_ranked(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("value"), str) and "rank" in item


def _best_of(value: str, fields: Mapping[str, Any], question: str) -> dict[str, int] | None:
    """Rank all candidates by the name of the best, or by a word for a tie."""
    names = [name for name in fields if isinstance(fields[name], str | list)]
    series = completion_series(names)
    if series is None:
        rest = [name for name in names if name not in PROMPT_KEYS]
        if value not in rest or len(rest) < 2:
            return None
        return {name: 1 if name == value else 2 for name in rest}
    ranks = ranks_of_winner(named_side(value, series, question), len(series.names))
    return {name: rank for name, rank in zip(series.names, ranks, strict=True) if rank}


def _rated(fields: Mapping[str, Any], votes: Votes) -> Iterator[tuple[dict[str, int], str | None]]:
    """Yield (ranks, annotator) for those who rated every text in questions numbered alike."""
    series = completion_series([name for name in fields if isinstance(fields[name], str | list)])
    if series is None:
        return
    for questions in series_of(votes):
        if questions.parts != series.parts:
            continue
        by_user = [
            {user: as_number(value) for user, value in votes[question]}
            for question in questions.names
        ]
        for annotator in by_user[0]:
            ranks = ranks_by_score([rated.get(annotator) for rated in by_user])
            named = zip(series.names, ranks, strict=True)
            yield {name: rank for name, rank in named if rank is not None}, annotator


def _ranked(
    fields: Mapping[str, Any], ranks: Mapping[str, int], annotator: str | None, where: str
) -> Fields:
    for cid in ranks:
        if not isinstance(fields.get(cid), str | list):
            raise not_text(fields.get(cid), f"{where}.{cid}" if where else cid)
    prompt = prompt_among(fields, [*ranks], where)
    result: Fields = {
        "prompt": either(fields[prompt], prompt, "user"),
        "candidates": [
            {"cid": cid, "messages": either(fields[cid], cid, "assistant")} for cid in ranks
        ],
        "ranks": dict(ranks),
        "annotator": annotator,
    }
    prompt_columns.add(result, fields, prompt_columns.names_in(fields, (prompt, *ranks)))
    return result


def _read_of_fields(fields: Mapping[str, Any]) -> list[str]:
    """Return the fields of a record that are read: candidates, prompt and prompt columns."""
    texts = [name for name, value in fields.items() if isinstance(value, str | list)]
    series = completion_series(texts)
    sides = series.names if series else [name for name in texts if name not in PROMPT_KEYS]
    prompts = [name for name in PROMPT_KEYS if name in texts] or [
        name for name in texts if name not in sides
    ]
    return [*sides, *prompts[:1], *prompt_columns.names_in(fields, (*sides, *prompts[:1]))]


def _read_of_argilla(row: Row) -> frozenset[str]:
    fields = row.get("fields")
    inside = _read_of_fields(fields) if isinstance(fields, dict) else []
    return frozenset(["fields", "responses", *(f"fields.{name}" for name in inside)])


def read_argilla(row: Row) -> list[Fields]:
    """Read prompt and candidates from `fields`, each annotator's answers from `responses`."""
    fields = row["fields"]
    if type(fields) is not dict:
        raise expected(fields, "an object", "fields")
    try:
        votes = _argilla_votes(row["responses"])
    except (AttributeError, TypeError):
        raise expected(row["responses"], "Argilla responses", "responses") from None
    return _rankings(fields, votes, "fields")


def write_argilla(record: Ranking) -> Fields:
    """Write fields and one response to the question `ranking`."""
    fields = {"prompt": prompt_text(record)}
    fields |= {c.cid: only_text(c.messages, c.cid) for c in record.candidates}
    value = [{"value": cid, "rank": rank} for cid, rank in record.ranks.items()]
    response = {"value": value, "user_id": record.annotator, "status": "submitted"}
    return {"fields": fields, "responses": {"ranking": [response]}}


def merge_argilla(rows: Sequence[Fields]) -> Fields:
    """Merge rows of one record: the responses of all."""
    answers = [answer for row in rows for answer in row["responses"]["ranking"]]
    return rows[0] | {"responses": {"ranking": answers}}


# A data set of Argilla on a hub: one column per field, three columns per question.


def _questions(row: Row) -> dict[str, tuple[str, ...]]:
    """Map question to its columns: `q.responses`, `.users` and `.status` after it, or `q`."""
    questions: dict[str, tuple[str, ...]] = {}
    for name, value in row.items():
        question = name.removesuffix(".responses")
        if question != name and f"{name}.users" in row:
            columns = (name, f"{name}.users", f"{name}.status")
            questions[question] = tuple(column for column in columns if column in row)
        elif f"{name}-suggestion" in row and isinstance(value, list):
            questions[name] = (name,)
    return questions


def _hub_votes(row: Row) -> Votes:
    votes: Votes = {}
    for question, columns in _questions(row).items():
        cells = [json_list(row[column]) or [] for column in columns]
        if len(columns) == 1:
            if any(not isinstance(answer, dict) for answer in cells[0]):
                raise expected(row[columns[0]], "an array of {user_id, value, status}", question)
            votes[question] = _submitted(cells[0])
            continue
        if len({len(cell) for cell in cells}) > 1:
            raise RowError("responses", f"{' and '.join(columns)} differ in length",
                           "correct or remove the row", field=columns[0])  # fmt: skip
        names = ("value", "user_id", "status")
        votes[question] = _submitted(
            [dict(zip(names, answer, strict=False)) for answer in zip(*cells, strict=True)]
        )
    return votes


NO_FIELDS = ("id", "status", "_server_id", "external_id", "inserted_at", "updated_at")


def _hub_fields(row: Row) -> dict[str, Any]:
    """Return the columns that are texts to look at, by name."""
    questions = _questions(row)
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, str | list)
        and name not in questions
        and name not in NO_FIELDS
        and not any(name.startswith((f"{q}.", f"{q}-suggestion")) for q in questions)
    }


def read_argilla_hub(row: Row) -> list[Fields]:
    """Read fields, and answers to questions, from columns."""
    return _rankings(_hub_fields(row), _hub_votes(row), "")


def _read_of_hub(row: Row) -> frozenset[str]:
    columns = [column for columns in _questions(row).values() for column in columns]
    return frozenset([*columns, *_read_of_fields(_hub_fields(row))])


def write_argilla_hub(record: Ranking) -> Fields:
    """Write fields, and the question `ranking` as columns: candidates from best to worst."""
    if len(set(record.ranks.values())) != len(record.ranks):
        raise RowError("ranks", "a list of fields cannot hold ties", "choose another format")
    row: Fields = {"prompt": prompt_text(record)}
    row |= {c.cid: only_text(c.messages, c.cid) for c in record.candidates}
    order = sorted(record.ranks, key=lambda cid: record.ranks[cid])
    return row | {
        "ranking.responses": [order],
        "ranking.responses.users": [record.annotator],
        "ranking.responses.status": ["submitted"],
    }


def merge_argilla_hub(rows: Sequence[Fields]) -> Fields:
    """Merge rows of one record: the answers of all."""
    names = [name for name in rows[0] if name.startswith("ranking.responses")]
    return rows[0] | {name: [answer for row in rows for answer in row[name]] for name in names}


FORMATS = [
    Format("argilla", "ranking", keys("fields", "responses"), read_argilla, write_argilla,
           reads=_read_of_argilla, inside="fields", merge=merge_argilla,
           about="Argilla records: rankings, the better text, ratings"),
    Format("argilla-hub", "ranking", keys(), read_argilla_hub, write_argilla_hub,
           when=lambda row: bool(_questions(row)), reads=_read_of_hub, merge=merge_argilla_hub,
           about="Argilla data set on a hub: columns of fields and responses"),
]  # fmt: skip
