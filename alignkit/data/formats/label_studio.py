"""Exports of Label Studio, one ranking per annotator: JSON, JSON-MIN and CSV."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.data.formats import prompt_columns
from alignkit.data.formats.fields import (
    Fields,
    Format,
    Row,
    expected,
    keys,
    only_text,
    prompt_text,
    ranking,
    two_candidates,
    user,
)
from alignkit.data.formats.sides import (
    PROMPT_KEYS,
    completion_series,
    named_side,
    prompt_among,
)
from alignkit.data.records import Ranking
from alignkit.files.problems import RowError

# One decision: who decided, on which columns of the task, its type, and the decision.
Decision = tuple[Any, Sequence[str], str, Mapping[str, Any]]


def _studio_results(row: Row) -> list[Decision]:
    """Return (annotator, names of the compared parts, type, value) unless cancelled."""
    annotations = row["annotations"]
    if type(annotations) is not list:
        raise expected(annotations, "an array", "annotations")
    decisions: list[Decision] = []
    for annotation in annotations:
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        results = annotation.get("result") or []
        for result in results if isinstance(results, list) else []:
            if isinstance(result, dict) and result.get("type") in DECISIONS:
                value = result.get("value")
                if type(value) is not dict:
                    raise expected(value, "an object", "annotations.result.value")
                to = str(result.get("to_name") or "").split(",")
                decisions.append((annotation.get("completed_by"), to, result["type"], value))
    return decisions


DECISIONS = ("pairwise", "ranker", "choices")


def _studio_decisions(row: Row) -> list[Decision]:
    """Return the results that order texts; choices only if nothing else does."""
    decisions = _studio_results(row)
    ordered = [decision for decision in decisions if decision[2] != "choices"]
    return ordered or [each for each in decisions if _chosen_side(row["data"], each[3])]


def _chosen_side(data: Mapping[str, Any], value: Mapping[str, Any]) -> str | None:
    """Return `left`, `right` or `tie` for a choice that names one of two numbered texts."""
    choices = value.get("choices")
    texts = [key for key in data if isinstance(data[key], str) and key not in PROMPT_KEYS]
    series = completion_series(texts)
    if series is None or len(series.names) != 2 or not isinstance(choices, list) or not choices:
        return None
    try:
        side = named_side(choices[0], series, "choices")
    except RowError:
        return None  # a choice about something else
    return None if side is None else ("left", "right", "tie")[side]


def read_label_studio(row: Row) -> list[Fields]:
    """Read a task with pairwise or ranker annotations."""
    data = row["data"]
    if type(data) is not dict:
        raise expected(data, "an object", "data")
    decisions = _studio_decisions(row)
    if not decisions:
        raise RowError(
            "ranks",
            "no pairwise or ranker annotation in this task",
            "remove the row",
            field="annotations",
        )
    shown = _shown(row)
    return [_studio_ranking(data, decision, shown, "data") for decision in decisions]


def _studio_ranking(
    data: Mapping[str, Any], decision: Decision, shown: Mapping[str, str], where: str
) -> Fields:
    by, to, kind, value = decision
    if kind == "choices":
        to, kind, value = (), "pairwise", {"selected": _chosen_side(data, value)}
    named = [shown.get(name, name) for name in to]
    fields = _ranker(data, value) if kind == "ranker" else _pairwise(data, value, named, where)
    taken = _read_of_task(data, kind, named, where)
    prompt_columns.add(fields, data, prompt_columns.names_in(data, taken))
    if isinstance(by, dict):  # newer exports write the whole user
        by = by.get("email") or by.get("id")
    return fields | {"annotator": None if by is None else str(by)}


def _read_of_task(
    data: Mapping[str, Any], kind: str, named: Sequence[str], where: str
) -> list[str]:
    """Return the columns of a task that hold the compared texts and the prompt."""
    if kind == "ranker":
        sides: Sequence[str] = [key for key, value in data.items() if isinstance(value, list)][:1]
    else:
        sides = _compared_columns(data, named, where)
    return [*sides, prompt_among(data, sides, where)]


def _read_of_studio(row: Row) -> frozenset[str]:
    data = row.get("data")
    used = {"data", "annotations", "label_config", "project"}
    if not isinstance(data, dict):
        return frozenset(used)
    try:
        for _, to, kind, _ in _studio_decisions(row):
            named = [_shown(row).get(name, name) for name in to]
            inside = _read_of_task(data, kind, named, "data")
            inside += prompt_columns.names_in(data, inside)
            used |= {f"data.{name}" for name in inside}
    except RowError:
        return frozenset(used)  # the reader reports what is wrong
    return frozenset(used)


_TAG = re.compile(r"<\w+\s[^<>]{0,2000}>")
_ATTRIBUTE = re.compile(r"(\w+)\s*=\s*[\"']([^\"']*)[\"']")


def _shown(row: Row) -> dict[str, str]:
    """Map tag to the column it shows, by the labeling config, if the export has one."""
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
    """Read a choice between the left text and the right one."""
    left, right = _compared_columns(data, named, where)
    prompt = data[prompt_among(data, (left, right), where)]
    selected = value.get("selected")
    if not isinstance(selected, str) or selected not in SELECTED:
        raise RowError(
            "verdict",
            f'"selected" is {selected!r:.40}, expected one of {", ".join(SELECTED)}',
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
    """Return the columns shown on the left and on the right.

    The labeling config names them, or they are called left and right, or they are the only pair of
    numbered texts that can be completions. Order in the row proves nothing: model names are there
    too.
    """
    texts = [key for key in data if isinstance(data[key], str)]
    if len(named) == 2 and all(name in texts for name in named):
        return named[0], named[1]
    if {"left", "right"} <= set(texts):
        return "left", "right"
    series = completion_series([name for name in texts if name not in PROMPT_KEYS])
    if series is not None and len(series.names) == 2:
        return series.names[0], series.names[1]
    inside = f"{where}." if where else ""
    raise RowError(
        "missing-key",
        f"which texts were compared is unclear. Found: {', '.join(inside + key for key in data)}",
        f"name them: --map {inside}left={inside}COLUMN,{inside}right={inside}COLUMN",
        field=where or None,
    )


def _ranker(data: Mapping[str, Any], value: Mapping[str, Any]) -> Fields:
    """Read one bucket of ids in order, best first; the items are in the task."""
    buckets = value.get("ranker")
    if type(buckets) is not dict or not buckets:
        raise expected(buckets, "an object of id lists", "annotations.result.value.ranker")
    order = next(iter(buckets.values()))
    if type(order) is not list:
        raise expected(order, "an array of ids", "annotations.result.value.ranker")
    entries = next((v for v in data.values() if isinstance(v, list)), [])
    items = {str(i["id"]): i for i in entries if isinstance(i, dict) and "id" in i}
    cids = [str(cid) for cid in order]
    for cid in cids:
        if cid not in items:
            raise RowError(
                "ranks",
                f'ranker names "{cid}", which is not an item of the task',
                "export the task with its items",
                field="data",
            )
    completions = [_item_text(items[cid], cid) for cid in items]
    ranks = [cids.index(cid) + 1 if cid in cids else None for cid in items]
    prompt = data[prompt_among(data, [], "data")]
    return ranking([user(prompt)], completions, ranks, cids=list(items))


def _item_text(item: Mapping[str, Any], cid: str) -> str:
    for key in ("body", "text", "html", "title"):
        if isinstance(item.get(key), str):
            return str(item[key])
    raise expected(item, "an item with body, text, html or title", f"data.{cid}")


def write_label_studio(record: Ranking) -> Fields:
    """Write a task with one ranker annotation."""
    items = [{"id": c.cid, "body": only_text(c.messages, c.cid)} for c in record.candidates]
    ranked = sorted(record.ranks, key=lambda cid: record.ranks[cid])
    if len(set(record.ranks.values())) != len(ranked):
        raise RowError("ranks", "Label Studio's ranker cannot hold ties", "choose another format")
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
    """Merge rows of one task: the annotations of all."""
    return rows[0] | {"annotations": [a for row in rows for a in row["annotations"]]}


# The export JSON-MIN (and CSV): the task's columns and one column per decision.


def _decision_in(row: Row) -> str | None:
    """Return the column that holds the decision."""
    return next((name for name, value in row.items() if _decided(value) is not None), None)


def _decided(value: Any) -> tuple[str, Mapping[str, Any]] | None:
    """Return (type, value) of a decision: `left`, {selected: left}, {ranker: {…}}, or [one]."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict) and isinstance(value.get("selected"), str):
        return "pairwise", value
    if isinstance(value, dict) and isinstance(value.get("ranker"), dict):
        return "ranker", value
    return ("pairwise", {"selected": value}) if value in ("left", "right") else None


def read_label_studio_min(row: Row) -> Fields:
    """Read a task and one decision on it, in columns."""
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
    used = [name or "", "annotator"]
    try:
        if decided is not None:
            inside = _read_of_task(data, decided[0], (), "")
            used += inside + prompt_columns.names_in(data, inside)
    except RowError:
        return frozenset(key for key in used if key in row)  # the reader reports what is wrong
    return frozenset(key for key in used if key in row)


def write_label_studio_min(record: Ranking) -> Fields:
    """Write prompt, left, right, comparison and annotator."""
    first, second, order = two_candidates(record, "label-studio-min")
    row = {"prompt": prompt_text(record), "left": first, "right": second}
    selected = {"first": "left", "second": "right", "tie": "neither"}.get(order)
    if selected is None:
        raise RowError("ranks", "nothing was selected", "choose another format")
    return row | {"comparison": [{"selected": selected}], "annotator": record.annotator}


FORMATS = [
    Format("label-studio", "ranking", keys("data", "annotations"), read_label_studio,
           write_label_studio, reads=_read_of_studio, inside="data", merge=merge_label_studio,
           about="Label Studio export"),
    Format("label-studio-min", "ranking", keys(), read_label_studio_min, write_label_studio_min,
           when=_is_studio_min, reads=_read_of_studio_min, about="Label Studio JSON-MIN and CSV"),
]  # fmt: skip
