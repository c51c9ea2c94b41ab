"""Exports of annotation tools: Argilla, Label Studio, Prodigy. One ranking per annotator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.data.formats.shape import (
    Fields,
    Format,
    Row,
    assistant,
    expected,
    keys,
    not_text,
    only_text,
    optional_text,
    prompt_text,
    ranking,
    system_turn,
    text,
    user,
)
from alignkit.data.problems import RowError
from alignkit.data.records import Preference, Ranking

PROMPT_KEYS = ("prompt", "instruction", "question", "input", "context", "text")


def _prompt_among(fields: Mapping[str, Any], taken: Sequence[str], where: str) -> str:
    """The key that holds the prompt: a well-known name, else the one text that is no candidate."""
    rest = [key for key in fields if key not in taken and isinstance(fields[key], str)]
    known = [key for key in PROMPT_KEYS if key in rest]
    if known or len(rest) == 1:
        return (known or rest)[0]
    raise RowError(
        "missing-key",
        f'no prompt in "{where}". Found: {", ".join(fields)}',
        f"name it with --map, e.g. --map {where}.prompt={where}.KEY",
        field=where,
    )


# --- Argilla ------------------------------------------------------------------------------------


def _argilla_votes(row: Row) -> list[tuple[str | None, list[dict[str, Any]]]]:
    """(annotator, [{value, rank}]) of each submitted ranking, in the v2 and the v1 layout."""
    responses = row["responses"]
    flat: list[tuple[Any, Mapping[str, Any]]] = []
    if isinstance(responses, dict):
        flat = [(r.get("value"), r) for answers in responses.values() for r in answers]
    elif isinstance(responses, list):
        flat = [(v.get("value"), r) for r in responses for v in r.get("values", {}).values()]
    else:
        raise expected(responses, "an object or an array", "responses")
    return [
        (None if r.get("user_id") is None else str(r["user_id"]), value)
        for value, r in flat
        if _is_ranking(value) and r.get("status", "submitted") == "submitted"
    ]


def _is_ranking(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(item, dict) and isinstance(item.get("value"), str) and "rank" in item
            for item in value
        )
    )


def read_argilla(row: Row) -> list[Fields]:
    """`fields` hold prompt and candidates, `responses` the ranks each annotator gave them."""
    fields = row["fields"]
    if type(fields) is not dict:
        raise expected(fields, "an object", "fields")
    try:
        votes = _argilla_votes(row)
    except (AttributeError, TypeError):
        raise expected(row["responses"], "Argilla responses", "responses") from None
    if not votes:
        raise RowError(
            "ranks", "no submitted ranking in this record", "remove the row", field="responses"
        )
    result = []
    for annotator, vote in votes:
        cids = [item["value"] for item in vote]
        for cid in cids:
            if not isinstance(fields.get(cid), str):
                raise not_text(fields.get(cid), f"fields.{cid}")
        prompt = fields[_prompt_among(fields, cids, "fields")]
        ranks = [item["rank"] for item in vote]
        completions = [fields[cid] for cid in cids]
        result.append(
            ranking([user(prompt)], completions, ranks, cids=cids) | {"annotator": annotator}
        )
    return result


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


# --- Label Studio -------------------------------------------------------------------------------


def _studio_results(row: Row) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(annotation, result) of each pairwise or ranker result that was not cancelled."""
    annotations = row["annotations"]
    if type(annotations) is not list:
        raise expected(annotations, "an array", "annotations")
    return [
        (annotation, result)
        for annotation in annotations
        if isinstance(annotation, dict) and not annotation.get("was_cancelled")
        for result in annotation.get("result") or []
        if isinstance(result, dict) and result.get("type") in ("pairwise", "ranker")
    ]


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
    return [_studio_ranking(data, annotation, result) for annotation, result in found]


def _studio_ranking(
    data: Mapping[str, Any], annotation: Mapping[str, Any], result: Mapping[str, Any]
) -> Fields:
    value = result.get("value")
    if type(value) is not dict:
        raise expected(value, "an object", "annotations.result.value")
    read = _pairwise if result["type"] == "pairwise" else _ranker
    by = annotation.get("completed_by")
    return read(data, value) | {"annotator": None if by is None else str(by)}


def _pairwise(data: Mapping[str, Any], value: Mapping[str, Any]) -> Fields:
    """The two last texts of the task are the sides; left is the first."""
    given = [key for key in data if isinstance(data[key], str)]
    sides = [key for key in given if key not in PROMPT_KEYS][-2:]
    if len(sides) != 2:
        raise RowError(
            "missing-key",
            f'no two texts in "data". Found: {", ".join(data)}',
            "name them: --map data.left=data.a",
            field="data",
        )
    prompt = data[_prompt_among(data, sides, "data")]
    ranks = {"left": [1, 2], "right": [2, 1]}.get(str(value.get("selected")), [1, 1])
    return ranking([user(prompt)], [data[side] for side in sides], ranks, cids=sides)


def _ranker(data: Mapping[str, Any], value: Mapping[str, Any]) -> Fields:
    """One bucket of ids in order, best first; the items stand in the task."""
    buckets = value.get("ranker")
    if type(buckets) is not dict or not buckets:
        raise expected(buckets, "an object of id lists", "annotations.result.value.ranker")
    order = next(iter(buckets.values()))
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
            "prompt": [*system_turn(optional_text(row, "system")), user(text(row, prompt_key))],
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
        also=keys("system"),
        when=lambda row: not isinstance(row[prompt_key], dict),
        about=f"Axolotl: {prompt_key}, {chosen_key}, {rejected_key}",
    )


FORMATS = [
    Format("argilla", "ranking", keys("fields", "responses"), read_argilla, write_argilla,
           merge=merge_argilla, about="Argilla export with ranking questions"),
    Format("label-studio", "ranking", keys("data", "annotations"), read_label_studio,
           write_label_studio, merge=merge_label_studio, about="Label Studio export"),
    Format("prodigy", "ranking", keys("options", "accept"), read_prodigy, write_prodigy,
           also=keys("text", "answer", "mapping", "_annotator_id"), about="Prodigy choice"),
    axolotl("axolotl", "prompt", "chosen_response", "rejected_response"),
    axolotl("axolotl-instruction", "instruction", "chosen_response", "rejected_response"),
    axolotl("axolotl-question", "question", "chosen", "rejected"),
    axolotl("axolotl-input", "input", "chosen", "rejected"),
]  # fmt: skip
