"""Exports of annotation tools: Argilla, Label Studio, Prodigy. One ranking per annotator."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignkit.data.formats.shape import (
    Fields,
    Format,
    Row,
    as_number,
    assistant,
    either,
    expected,
    json_list,
    keys,
    not_text,
    only_text,
    prompt_text,
    ranking,
    ranks_by_score,
    text,
    two_candidates,
    user,
)
from alignkit.data.formats.sides import answers_in, named_side, ranks_of_winner, series_of
from alignkit.data.problems import RowError
from alignkit.data.records import Preference, Ranking

PROMPT_KEYS = ("prompt", "instruction", "question", "input", "context", "text")


def _prompt_among(fields: Mapping[str, Any], taken: Sequence[str], where: str) -> str:
    """The key that holds the prompt: a well-known name, else the one text that is no candidate."""
    rest = [key for key in fields if key not in taken and isinstance(fields[key], str)]
    known = [key for key in PROMPT_KEYS if key in rest]
    if known or len(rest) == 1:
        return (known or rest)[0]
    inside = f"{where}." if where else ""
    raise RowError(
        "missing-key",
        f"no prompt{f' in {chr(34)}{where}{chr(34)}' if where else ''}. Found: {', '.join(fields)}",
        f"name it with --map, e.g. --map {inside}prompt={inside}COLUMN",
        field=where or None,
    )


# --- Argilla ------------------------------------------------------------------------------------

Votes = dict[str, list[tuple[str | None, Any]]]  # question -> (annotator, value) of each answer


def _submitted(answers: Sequence[Mapping[str, Any]]) -> list[tuple[str | None, Any]]:
    return [
        (None if answer.get("user_id") is None else str(answer["user_id"]), answer.get("value"))
        for answer in answers
        if answer.get("status", "submitted") in ("submitted", None)
    ]


def _argilla_votes(responses: Any) -> Votes:
    """The submitted answers to each question, in the layout of version 2 and of version 1."""
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
    """One ranking for each answer that orders the texts of a record.

    An answer does so as a list of {value, rank}, as a list of fields from best to worst, or as the
    name of the best. Ratings do so together, when each text has a question of its own.
    """
    found: list[Fields] = []
    refused: list[str] = []
    for question, answers in votes.items():
        for annotator, value in answers:
            try:
                ranks = _ranks_of(value, fields, question)
            except RowError as error:
                refused.append(error.message)
                continue
            if ranks is not None:
                found.append(_ranked(fields, ranks, annotator, where))
    if not found:
        found = [_ranked(fields, *rated, where) for rated in _rated(fields, votes)]
    if not found and refused:
        raise RowError(
            "ranks",
            f"no answer says which text is better: {refused[0]}",
            "name the field in the answer, or the sides: --map chosen=COLUMN,rejected=COLUMN",
            field=where,
        )
    if not found:
        raise RowError("ranks", "no submitted ranking in this record", "remove the row",
                       field="responses")  # fmt: skip
    return found


def _ranks_of(value: Any, fields: Mapping[str, Any], question: str) -> dict[str, int] | None:
    """Field -> rank; null when the value is no order of texts (a rating, a comment)."""
    if isinstance(value, dict) and isinstance(value.get("value"), list):
        named, given = value["value"], value.get("rank")
        if not isinstance(given, list) or len(named) != len(given):
            return None
        value = [{"value": n, "rank": r} for n, r in zip(named, given, strict=True)]
    if isinstance(value, list) and value and all(_is_ranked(item) for item in value):
        return {item["value"]: item["rank"] for item in value}
    if isinstance(value, list) and len(value) > 1 and all(type(v) is str and v in fields for v in value):
        return {cid: position for position, cid in enumerate(value, start=1)}
    return _best_of(value, fields, question) if isinstance(value, str) and value else None


def _is_ranked(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("value"), str) and "rank" in item


def _best_of(value: str, fields: Mapping[str, Any], question: str) -> dict[str, int] | None:
    """The ranks of all candidates by the name of the best, or by a word for a tie."""
    names = [name for name in fields if isinstance(fields[name], str | list)]
    series = answers_in(names)
    if series is None:
        rest = [name for name in names if name not in PROMPT_KEYS]
        if value not in rest or len(rest) < 2:
            return None
        return {name: 1 if name == value else 2 for name in rest}
    ranks = ranks_of_winner(named_side(value, series, question), len(series.names))
    return {name: rank for name, rank in zip(series.names, ranks, strict=True) if rank}


def _rated(
    fields: Mapping[str, Any], votes: Votes
) -> Iterator[tuple[dict[str, int], str | None]]:
    """(ranks, annotator) of those who rated every text, by questions numbered as the texts are."""
    series = answers_in([name for name in fields if isinstance(fields[name], str | list)])
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
    prompt = _prompt_among(fields, [*ranks], where)
    return {
        "prompt": either(fields[prompt], prompt, "user"),
        "candidates": [
            {"cid": cid, "messages": either(fields[cid], cid, "assistant")} for cid in ranks
        ],
        "ranks": dict(ranks),
        "annotator": annotator,
    }


def read_argilla(row: Row) -> list[Fields]:
    """`fields` hold prompt and candidates, `responses` what each annotator said of them."""
    fields = row["fields"]
    if type(fields) is not dict:
        raise expected(fields, "an object", "fields")
    try:
        votes = _argilla_votes(row["responses"])
    except (AttributeError, TypeError):
        raise expected(row["responses"], "Argilla responses", "responses") from None
    return _rankings(fields, votes, "fields")


def write_argilla(record: Ranking) -> Fields:
    """fields and one response to the question `ranking`."""
    fields = {"prompt": prompt_text(record)}
    fields |= {c.cid: only_text(c.messages, c.cid) for c in record.candidates}
    value = [{"value": cid, "rank": rank} for cid, rank in record.ranks.items()]
    response = {"value": value, "user_id": record.annotator, "status": "submitted"}
    return {"fields": fields, "responses": {"ranking": [response]}}


def merge_argilla(rows: Sequence[Fields]) -> Fields:
    """One record with the responses of all."""
    answers = [answer for row in rows for answer in row["responses"]["ranking"]]
    return rows[0] | {"responses": {"ranking": answers}}


# A data set of Argilla on a hub: one column a field, three columns a question.


def _questions(row: Row) -> dict[str, tuple[str, ...]]:
    """Question -> its columns: `q.responses`, `q.responses.users`, `q.responses.status`, or `q`."""
    found: dict[str, tuple[str, ...]] = {}
    for name, value in row.items():
        question = name.removesuffix(".responses")
        if question != name and f"{name}.users" in row:
            columns = (name, f"{name}.users", f"{name}.status")
            found[question] = tuple(column for column in columns if column in row)
        elif f"{name}-suggestion" in row and isinstance(value, list):
            found[name] = (name,)
    return found


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
    """The columns that are texts to look at, by their names."""
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
    """Fields and the answers to questions as columns."""
    return _rankings(_hub_fields(row), _hub_votes(row), "")


def _read_of_hub(row: Row) -> frozenset[str]:
    fields = _hub_fields(row)
    texts = [name for name in fields if isinstance(fields[name], str)]
    series = answers_in(list(fields))
    sides = series.names if series else [n for n in texts if n not in PROMPT_KEYS]
    prompts = [n for n in PROMPT_KEYS if n in texts][:1] or [n for n in texts if n not in sides]
    columns = [column for columns in _questions(row).values() for column in columns]
    return frozenset([*columns, *sides, *prompts[:1]])


def write_argilla_hub(record: Ranking) -> Fields:
    """The fields, and the question `ranking` as columns: candidates from best to worst."""
    if len(set(record.ranks.values())) != len(record.ranks):
        raise RowError("ranks", "a list of fields has no ties", "choose another format")
    row: Fields = {"prompt": prompt_text(record)}
    row |= {c.cid: only_text(c.messages, c.cid) for c in record.candidates}
    order = sorted(record.ranks, key=lambda cid: record.ranks[cid])
    return row | {
        "ranking.responses": [order],
        "ranking.responses.users": [record.annotator],
        "ranking.responses.status": ["submitted"],
    }


def merge_argilla_hub(rows: Sequence[Fields]) -> Fields:
    """One row with the answers of all."""
    names = [name for name in rows[0] if name.startswith("ranking.responses")]
    return rows[0] | {name: [answer for row in rows for answer in row[name]] for name in names}


# --- Label Studio -------------------------------------------------------------------------------


# One decision: who decided, on which columns of the task, and the decision.
Decision = tuple[Any, Sequence[str], str, Mapping[str, Any]]


def _studio_results(row: Row) -> list[Decision]:
    """(annotator, names of the compared parts, type, value) of what was not cancelled."""
    annotations = row["annotations"]
    if type(annotations) is not list:
        raise expected(annotations, "an array", "annotations")
    found = []
    for annotation in annotations:
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        results = annotation.get("result") or []
        for result in results if isinstance(results, list) else []:
            if isinstance(result, dict) and result.get("type") in ("pairwise", "ranker"):
                value = result.get("value")
                if type(value) is not dict:
                    raise expected(value, "an object", "annotations.result.value")
                to = str(result.get("to_name") or "").split(",")
                found.append((annotation.get("completed_by"), to, result["type"], value))
    return found


def read_label_studio(row: Row) -> list[Fields]:
    """A task with pairwise or ranker annotations."""
    data = row["data"]
    if type(data) is not dict:
        raise expected(data, "an object", "data")
    found = _studio_results(row)
    if not found:
        raise RowError(
            "ranks",
            "no pairwise or ranker annotation in this task",
            "remove the row",
            field="annotations",
        )
    shown = _shown(row)
    return [_studio_ranking(data, decision, shown, "data") for decision in found]


def _studio_ranking(
    data: Mapping[str, Any], decision: Decision, shown: Mapping[str, str], where: str
) -> Fields:
    by, to, kind, value = decision
    if kind == "ranker":
        fields = _ranker(data, value)
    else:
        fields = _pairwise(data, value, [shown.get(name, name) for name in to], where)
    if isinstance(by, dict):  # newer exports write the whole user
        by = by.get("email") or by.get("id")
    return fields | {"annotator": None if by is None else str(by)}


_TAG = re.compile(r"<\w+\s[^<>]{0,2000}>")
_ATTRIBUTE = re.compile(r"(\w+)\s*=\s*[\"']([^\"']*)[\"']")


def _shown(row: Row) -> dict[str, str]:
    """Tag -> the column it shows, from the labelling config, where an export carries it."""
    project = row.get("project")
    config = row.get("label_config") or row.get("labeling_config")
    if not config and isinstance(project, dict):
        config = project.get("label_config")
    shown = {}
    for tag in _TAG.findall(config) if isinstance(config, str) else ():
        attributes = dict(_ATTRIBUTE.findall(tag))
        if attributes.get("value", "").startswith("$") and "name" in attributes:
            shown[attributes["name"]] = attributes["value"][1:]
    return shown


def _pairwise(
    data: Mapping[str, Any], value: Mapping[str, Any], named: Sequence[str], where: str
) -> Fields:
    """A choice between the left text and the right one."""
    left, right = _compared_columns(data, named, where)
    prompt = data[_prompt_among(data, (left, right), where)]
    selected = value.get("selected")
    if not isinstance(selected, str) or selected not in SELECTED:
        known = ", ".join(SELECTED)
        raise RowError(
            "verdict",
            f'"selected" is {selected!r:.40}, expected one of {known}',
            "correct or remove the annotation",
            field="annotations",
        )
    texts = [data[left], data[right]]
    return ranking([user(prompt)], texts, SELECTED[selected], cids=[left, right])


SELECTED: dict[str, list[int | None]] = {
    "left": [1, 2],
    "right": [2, 1],
    "neither": [1, 1],
    "none": [1, 1],
    "tie": [1, 1],
    "equal": [1, 1],
    "both": [1, 1],
}


def _compared_columns(data: Mapping[str, Any], named: Sequence[str], where: str) -> tuple[str, str]:
    """The columns shown on the left and on the right.

    The labelling config names them, or they are called left and right, or they are the one pair of
    numbered texts that can be answers. A place in the row says nothing: model names stand there too.
    """
    texts = [key for key in data if isinstance(data[key], str)]
    if len(named) == 2 and all(name in texts for name in named):
        return named[0], named[1]
    if {"left", "right"} <= set(texts):
        return "left", "right"
    series = answers_in([name for name in texts if name not in PROMPT_KEYS])
    if series is not None and len(series.names) == 2:
        return series.names[0], series.names[1]
    inside = f"{where}." if where else ""
    raise RowError(
        "missing-key",
        f'which texts were compared is unclear{f" in {where!r}" if where else ""}. '.replace("'", '"')
        + f"Found: {', '.join(data)}",
        f"name them: --map {inside}left={inside}COLUMN,{inside}right={inside}COLUMN",
        field=where or None,
    )


def _ranker(data: Mapping[str, Any], value: Mapping[str, Any]) -> Fields:
    """One bucket of ids in order, best first; the items stand in the task."""
    buckets = value.get("ranker")
    if type(buckets) is not dict or not buckets:
        raise expected(buckets, "an object of id lists", "annotations.result.value.ranker")
    order = next(iter(buckets.values()))
    if type(order) is not list:
        raise expected(order, "an array of ids", "annotations.result.value.ranker")
    listed = next((v for v in data.values() if isinstance(v, list)), [])
    items = {str(i["id"]): i for i in listed if isinstance(i, dict) and "id" in i}
    cids = [str(cid) for cid in order]
    for cid in cids:
        if cid not in items:
            raise RowError(
                "ranks",
                f'ranker names "{cid}", which is no item of the task',
                "export the task with its items",
                field="data",
            )
    completions = [_item_text(items[cid], cid) for cid in items]
    ranks = [cids.index(cid) + 1 if cid in cids else None for cid in items]
    prompt = data[_prompt_among(data, [], "data")]
    return ranking([user(prompt)], completions, ranks, cids=list(items))


def _item_text(item: Mapping[str, Any], cid: str) -> str:
    for key in ("body", "text", "html", "title"):
        if isinstance(item.get(key), str):
            return str(item[key])
    raise expected(item, "an item with body, text, html or title", f"data.{cid}")


def write_label_studio(record: Ranking) -> Fields:
    """A task with one ranker annotation."""
    items = [{"id": c.cid, "body": only_text(c.messages, c.cid)} for c in record.candidates]
    ranked = sorted(record.ranks, key=lambda cid: record.ranks[cid])
    if len(set(record.ranks.values())) != len(ranked):
        raise RowError("ranks", "Label Studio's ranker has no ties", "choose another format")
    return {
        "data": {"prompt": prompt_text(record), "items": items},
        "annotations": [
            {
                "result": [{"type": "ranker", "value": {"ranker": {"rank": ranked}}}],
                "completed_by": record.annotator,
            }
        ],
    }


def merge_label_studio(rows: Sequence[Fields]) -> Fields:
    """One task with the annotations of all."""
    return rows[0] | {"annotations": [a for row in rows for a in row["annotations"]]}


# The export JSON-MIN (and CSV): the task's columns and one column for each decision.


def _decision_in(row: Row) -> str | None:
    """The column that holds what was decided."""
    return next((name for name, value in row.items() if _decided(value) is not None), None)


def _decided(value: Any) -> tuple[str, Mapping[str, Any]] | None:
    """(type, value) of a decision: `left`, {selected: left}, {ranker: {…}}, or a list of one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict) and isinstance(value.get("selected"), str):
        return "pairwise", value
    if isinstance(value, dict) and isinstance(value.get("ranker"), dict):
        return "ranker", value
    return ("pairwise", {"selected": value}) if value in ("left", "right") else None


def read_label_studio_min(row: Row) -> Fields:
    """A task and one decision on it, in columns."""
    name = _decision_in(row)
    decision = _decided(row[name]) if name is not None else None
    if name is None or decision is None:
        raise RowError("ranks", "no pairwise or ranker decision in this row", "remove the row")
    data = {key: value for key, value in row.items() if key != name and key not in STUDIO_KEYS}
    return _studio_ranking(data, (row.get("annotator"), (), *decision), _shown(row), "")


STUDIO_KEYS = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time",
               "agreement", "label_config")  # fmt: skip


def _is_studio_min(row: Row) -> bool:
    name = _decision_in(row)
    if name is None:
        return False
    return "annotation_id" in row or "annotator" in row or not isinstance(row[name], str)


def _read_of_studio_min(row: Row) -> frozenset[str]:
    name = _decision_in(row)
    data = {key: value for key, value in row.items() if key != name and key not in STUDIO_KEYS}
    decided = _decided(row[name]) if name is not None else None
    used = [name, "annotator", "annotation_id", "lead_time"]
    try:
        if decided is not None and decided[0] == "pairwise":
            sides: tuple[str, ...] = _compared_columns(data, (), "")
        else:
            sides = tuple(key for key in data if isinstance(data[key], list))[:1]
        used += [*sides, _prompt_among(data, sides, "")]
    except RowError:
        return frozenset(key for key in used if key in row)  # the reader tells what is wrong
    return frozenset(key for key in used if key in row)


def write_label_studio_min(record: Ranking) -> Fields:
    """prompt, left, right, comparison, annotator."""
    first, second, order = two_candidates(record, "label-studio-min")
    row = {"prompt": prompt_text(record), "left": first, "right": second}
    selected = {"first": "left", "second": "right", "tie": "neither"}.get(order)
    if selected is None:
        raise RowError("ranks", "nothing was selected", "choose another format")
    return row | {"comparison": [{"selected": selected}], "annotator": record.annotator}


# --- Prodigy ------------------------------------------------------------------------------------


def read_prodigy(row: Row) -> Fields:
    """Options and the accepted ones: accepted beat the others; `mapping` tells who wrote which."""
    options = row["options"]
    if type(options) is not list or not all(
        isinstance(option, dict) and isinstance(option.get("text"), str) for option in options
    ):
        raise expected(options, "an array of {id, text}", "options")
    accepted = row["accept"]
    if type(accepted) is not list:
        raise expected(accepted, "an array of ids", "accept")
    cids = [str(option.get("id", position)) for position, option in enumerate(options)]
    chosen = {str(cid) for cid in accepted}
    voted = row.get("answer") == "accept" and bool(chosen)
    ranks = [(1 if cid in chosen else 2) if voted else None for cid in cids]
    mapping = row.get("mapping")
    names = mapping if isinstance(mapping, dict) else {}
    models = [names[cid] if isinstance(names.get(cid), str) else None for cid in cids]
    asked = _prodigy_prompt(row)
    fields = ranking([user(asked)], [o["text"] for o in options], ranks, cids=cids, models=models)
    session = row.get("_annotator_id", row.get("_session_id"))
    return fields | {"annotator": session if isinstance(session, str) else None}


def _prodigy_prompt(row: Row) -> str:
    asked = row.get("text")
    if asked is None and isinstance(row.get("input"), dict):
        asked = row["input"].get("text")
    if type(asked) is not str:
        raise not_text(asked, "text")
    return asked


def write_prodigy(record: Ranking) -> Fields:
    """text, options, accept, answer: two ranks are all that Prodigy's choice can say."""
    if set(record.ranks.values()) - {1, 2}:
        raise RowError("ranks", "Prodigy's choice holds two ranks", "choose another format")
    options = [{"id": c.cid, "text": only_text(c.messages, c.cid)} for c in record.candidates]
    row: Fields = {
        "text": prompt_text(record),
        "options": options,
        "accept": [cid for cid, rank in record.ranks.items() if rank == 1],
        "answer": "accept" if record.ranks else "ignore",
    }
    if record.annotator is not None:
        row["_annotator_id"] = record.annotator
    mapping = {c.cid: c.model for c in record.candidates if c.model is not None}
    return row | ({"mapping": mapping} if mapping else {})


# --- Axolotl ------------------------------------------------------------------------------------


def axolotl(name: str, prompt_key: str, chosen_key: str, rejected_key: str) -> Format:
    """A preference in three text columns and an optional system prompt."""

    def read(row: Row) -> Fields:
        return {
            "prompt": [user(text(row, prompt_key))],
            "chosen": [assistant(text(row, chosen_key))],
            "rejected": [assistant(text(row, rejected_key))],
        }

    def write(record: Preference) -> Fields:
        prompt = list(record.prompt)
        row: Fields = {}
        if len(prompt) > 1 and prompt[0].role == "system":
            row["system"] = prompt.pop(0).content
        row[prompt_key] = only_text(prompt, "prompt")
        row[chosen_key] = only_text(record.chosen, "chosen")
        row[rejected_key] = only_text(record.rejected, "rejected")
        return row

    wanted = keys(prompt_key, chosen_key, rejected_key)
    return Format(
        name,
        "preference",
        wanted,
        read,
        write,
        # A prompt beside it is the question, and an input or a question its context.
        when=lambda row: prompt_key == "prompt" or "prompt" not in row,
        asks=prompt_key,
        about=f"Axolotl: {prompt_key}, {chosen_key}, {rejected_key}",
    )


FORMATS = [
    Format("argilla", "ranking", keys("fields", "responses"), read_argilla, write_argilla,
           merge=merge_argilla, about="Argilla export with ranking questions"),
    Format("argilla-hub", "ranking", keys(), read_argilla_hub, write_argilla_hub,
           when=lambda row: bool(_questions(row)), reads=_read_of_hub, merge=merge_argilla_hub,
           about="Argilla data set on a hub: columns of fields and responses"),
    Format("label-studio", "ranking", keys("data", "annotations"), read_label_studio,
           write_label_studio, merge=merge_label_studio, about="Label Studio export"),
    Format("label-studio-min", "ranking", keys(), read_label_studio_min, write_label_studio_min,
           when=_is_studio_min, reads=_read_of_studio_min, about="Label Studio JSON-MIN and CSV"),
    Format("prodigy", "ranking", keys("options", "accept"), read_prodigy, write_prodigy,
           also=keys("text", "answer", "mapping", "_annotator_id"), about="Prodigy choice"),
    axolotl("axolotl", "prompt", "chosen_response", "rejected_response"),
    axolotl("axolotl-instruction", "instruction", "chosen_response", "rejected_response"),
    axolotl("axolotl-question", "question", "chosen", "rejected"),
    axolotl("axolotl-input", "input", "chosen", "rejected"),
]  # fmt: skip
