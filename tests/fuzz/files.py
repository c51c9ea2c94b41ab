"""Valid files of every sort that some command takes: what mutations begin with.

A family is a sort of file; a command's parameter prefers some families, and gets others too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from alignkit.data.edit.convert import row_of
from alignkit.data.formats import FORMATS
from alignkit.data.records import KINDS, Record
from alignkit.errors import AlignkitError
from alignkit.files.problems import RowError
from alignkit.files.write import write_rows
from tests.fuzz.seeds import MESSAGES, RECIPE, ROWS

Rows = list[dict[str, Any]]

USER, SAID = MESSAGES[:1], MESSAGES[1:]
OTHER = [{"role": "assistant", "content": "Go away."}]
TWO = [
    {"cid": "a", "messages": SAID, "model": "x", "score": 1.5},
    {"cid": "b", "messages": OTHER, "model": "y", "score": -1.0},
]
RECORDS: dict[str, dict[str, Any]] = {
    "demonstration": {"messages": MESSAGES},
    "prompt": {"prompt": USER},
    "candidates": {"prompt": USER, "candidates": TWO, "gold": {"a": 1, "b": 2}},
    "ranking": {"prompt": USER, "candidates": TWO, "ranks": {"a": 1, "b": 2}, "annotator": "ann"},
    "preference": {"prompt": USER, "chosen": SAID, "rejected": OTHER, "margin": 1.0, "group": "g"},
    "label": {"prompt": USER, "completion": SAID, "label": True},
    "event": {
        "ts": "2026-01-01T00:00:00Z", "session": "s", "annotator": "ann", "item": "1",
        "action": "rank", "shown": ["b", "a"], "ranks": {"a": 1, "b": 2}, "seed": 3,
        "extra": {"prompt": USER, "candidates": TWO},
    },
    "judgement": {
        "prompt_id": "1", "a": "x", "b": "y", "verdict": "a", "first": "b", "judge": "j",
        "prompt": "Hi?", "output_a": "Hello.", "output_b": "Go.", "len_a": 6, "len_b": 3,
    },
}  # fmt: skip

# Shapes that some formats ask for: one candidate, candidates of certain names, one turn.
OTHER_SHAPES: dict[str, list[dict[str, Any]]] = {
    "candidates": [
        {"prompt": USER, "candidates": TWO[:1]},
        {"prompt": USER, "candidates": [TWO[0] | {"cid": "response"}, TWO[1] | {"cid": "target"}]},
    ],
    "demonstration": [{"messages": SAID}],
}

JUDGED: list[dict[str, Any]] = [
    {"instruction": "a", "output_1": "b", "output_2": "c", "generator_1": "x",
     "generator_2": "y", "annotator": "j", "preference": 1.6},
    {"question_id": 1, "model_1": "x", "model_2": "y", "g1_winner": "model_1",
     "g2_winner": "tie", "judge": ["gpt", "pair"], "turn": 1},
    {"question_id": "q", "model_a": "x", "model_b": "y", "winner": "tie (bothbad)",
     "judge": "u", "conversation_a": MESSAGES, "conversation_b": MESSAGES},
    {"uid": "u", "model": "x", "baseline": "y", "judge": "j",
     "games": [{"score": "A>B"}, {"score": "B>>A"}]},
]  # fmt: skip
REPLIES = [
    {"reply": "Hello there.", "policy": "x", "temperature": 1.0, "stopped": True,
     "prompt_id": "1", "reference": "Hello.", "log_ratio": 0.5, "prompt": "Hi?", "score": 1.0},
    {"output": "No.", "model": "y", "prompt_id": "2", "reference": "No!", "stopped": False},
]  # fmt: skip
LABELLED = [
    {"label": "good", "prediction": "bad", "group": "g", "text": "a"},
    {"label": 1, "prediction": 0, "group": "h"},
]
RETURNED = {
    "format": "alignkit-answers", "v": 1, "page": "p", "annotator": "ann", "seed": 17,
    "acts": [{"key": "k1", "action": "rank", "ts": "2026-01-01T00:00:00.000Z", "ticket": "t",
              "item_sha256": "0" * 64, "order": "1>2", "active_ms": 10}],
}  # fmt: skip
CHANGE_LOG: Rows = [
    {"position": 0, "line": 1, "id": "a", "repair": "unicode", "path": ["messages", 0, "content"],
     "before": "Hi 0?", "after": "Hi?"},
    {"position": 1, "line": 2, "id": "b", "repair": "duplicates",
     "dropped": {"kind": "demonstration", "messages": MESSAGES}},
    {"position": None, "line": 3, "id": None, "repair": "malformed", "message": "x"},
]  # fmt: skip
TEMPLATE = b"{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
SETTINGS = b"data: rows.jsonl\nmax_steps: 1\nlearning_rate: 1e-3\nbackbone: {lora_r: 4}\n"
FOREIGN = (
    b"base_model: x/y\ndatasets: [{path: a/b, type: alpaca}]\nmicro_batch_size: 2\nadapter: lora\n"
    b"sequence_len: 512\nlearning_rate: 2e-4\nnum_epochs: 3\nlora_r: 8\n"
)
RUNNABLE = b"""name: x
backbone: {quantization: none, lora_r: 4}
stages:
  - split: {data: rankings.jsonl, held_out: 0.4}
  - dpo: {data: split, beta: 0.2, max_steps: 1, max_length: 64, gate: {loss: "< 9"}}
"""
JUDGE_TEMPLATE = b"Which is better?\n{prompt}\n[A] {a}\n[B] {b}\nAnswer A, B or tie."


def records(kind: str) -> tuple[Record, ...]:
    """A few valid records of a kind, of several items and annotators."""
    return _made(kind, RECORDS[kind])


def _made(kind: str, shape: Mapping[str, Any]) -> tuple[Record, ...]:
    made = []
    for number in range(4):
        text = json.dumps({"kind": kind, "v": 1, "id": f"{kind}{number}", **shape})
        row = json.loads(text.replace("Hi?", f"Hi {number // 2}?").replace('"ann"', f'"p{number}"'))
        made.append(KINDS[kind].model_validate(row))
    return tuple(made)


@cache
def rows_of(kind: str) -> tuple[Rows, ...]:
    """Records of a kind in every format that can hold them: a new format is a new file here."""
    found: list[Rows] = []
    for form in FORMATS.values():
        for shape in (RECORDS[kind], *OTHER_SHAPES.get(kind, ())):
            try:
                found.append([row_of([record], form) for record in _made(kind, shape)])
            except (RowError, AlignkitError):
                continue  # this format holds no such records
            break
    return tuple(found)


@cache
def families() -> Mapping[str, Sequence[Rows | bytes]]:
    """Contents by family: rows, or bytes that are a file as they stand."""
    kinds = {kind: rows_of(kind) for kind in KINDS}
    return {
        **kinds,
        "records": [*(rows for found in kinds.values() for rows in found), *([r] for r in ROWS)],
        "votes": [*kinds["event"], *kinds["ranking"], *kinds["preference"]],
        "own": [[r.model_dump() for r in records(k)] for k in ("event", "ranking", "candidates")],
        "judged": [*kinds["judgement"] * 4, *([row, row] for row in JUDGED)],
        "replies": [[*REPLIES], [REPLIES[0]] * 3],
        "labelled": [LABELLED],
        "recipe": [RUNNABLE, RUNNABLE, RECIPE, FOREIGN, SETTINGS],
        "settings": [SETTINGS, RECIPE],
        "template": [TEMPLATE, JUDGE_TEMPLATE],
        "log": [CHANGE_LOG],
        "returned": [json.dumps(RETURNED).encode(), *kinds["event"]],
    }


SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".jsonl.gz", ".jsonl.zst")


def written(content: Rows | bytes, path: Path) -> bytes:
    """The bytes of a file of this name with these contents; JSONL where its container cannot."""
    if isinstance(content, bytes):
        return content
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in content)
    if path.name.endswith((".jsonl", ".txt", ".yaml", ".jinja")):
        return lines
    try:
        write_rows(path, content)
    except (AlignkitError, ValueError, TypeError):
        return lines
    made = path.read_bytes()
    path.unlink()
    return made
