"""Rename keys of rows: `--map`, and LLaMA-Factory's dataset_info.json.

`prompt=question` reads the value under `question` as `prompt`; dots reach into objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from alignkit.errors import DataError, RecipeError, did_you_mean
from alignkit.files.rows import Row

DATASET_INFO = "dataset_info.json#"


@dataclass(frozen=True)
class Columns:
    """Maps each new key to its path in the row; `tags` renames keys and roles in messages."""

    paths: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)

    def applied(self, row: Row) -> Row:
        """Return the row under its new keys, without its bytes, which no longer match."""
        value = row.value
        if self.paths:
            value = {key: cell for key, cell in value.items() if key not in self.paths.values()}
            for new, old in self.paths.items():
                exists, cell = _get(row.value, old)
                if exists:
                    _set(value, new, cell)
        if self.tags:
            value = {key: self._retagged(cell) for key, cell in value.items()}
        return Row(row.line, row.number, value, None, row.file)

    def _retagged(self, cell: Any) -> Any:
        """Rewrite a turn, or a list of turns, with keys `from` and `value` and our roles."""
        if isinstance(cell, list):
            return [self._retagged(item) for item in cell]
        role, content = self.tags.get("role_tag", "from"), self.tags.get("content_tag", "value")
        if not isinstance(cell, dict) or role not in cell or content not in cell:
            return cell
        rest = {key: inner for key, inner in cell.items() if key not in (role, content)}
        roles = {self.tags[name]: role for name, role in SPEAKERS.items() if name in self.tags}
        tag = cell[role]
        speaker = roles.get(tag, tag) if isinstance(tag, str) else tag
        return {"from": speaker, "value": cell[content], **rest}


SPEAKERS = {
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
    "function_tag": "function_call",
    "observation_tag": "observation",
}


def parse_columns(text: str) -> Columns:
    """Parse `prompt=question,chosen=answer_a` into a column map."""
    paths: dict[str, str] = {}
    for part in text.split(","):
        new, equals, old = part.strip().partition("=")
        if not (new and equals and old):
            raise RecipeError(
                f"--map {part.strip()!r} is not NEW=OLD",
                hint="Fix: --map prompt=question,chosen=answer_a",
            )
        paths[new] = old
    return Columns(paths)


def _get(value: Any, path: str) -> tuple[bool, Any]:
    """Return (exists, value) at a dotted path; a key equal to the whole path wins."""
    if isinstance(value, dict) and path in value:
        return True, value[path]
    head, dot, rest = path.partition(".")
    if dot and isinstance(value, dict) and head in value:
        return _get(value[head], rest)
    return False, None


def _set(value: dict[str, Any], path: str, cell: Any) -> None:
    head, dot, rest = path.partition(".")
    if not dot:
        value[head] = cell
        return
    inner = value.get(head)
    value[head] = dict(inner) if isinstance(inner, dict) else {}
    _set(value[head], rest, cell)


# --- LLaMA-Factory ------------------------------------------------------------------------------

# Column names in dataset_info.json -> ours, by `formatting`.
ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
SHAREGPT_COLUMNS = {"messages": "conversations"}


def resolve(path: str) -> tuple[str, Columns | None]:
    """Return the file and column map of `FOLDER/dataset_info.json#NAME`; else the path itself."""
    head, marker, name = path.rpartition(DATASET_INFO)
    if not marker or not name:
        return path, None
    info_path = Path(head) / DATASET_INFO.removesuffix("#")
    try:
        entries = orjson.loads(info_path.read_bytes())
    except FileNotFoundError:
        raise DataError("no such file", where=str(info_path)) from None
    except orjson.JSONDecodeError as error:
        raise DataError(f"not JSON: {error}", where=str(info_path)) from None
    if not isinstance(entries, dict) or not isinstance(entries.get(name), dict):
        named = entries if isinstance(entries, dict) else {}
        raise DataError(f"no data set {name!r}{did_you_mean(name, named)}", where=str(info_path))
    return _entry(info_path, name, entries[name])


def _entry(info_path: Path, name: str, entry: Mapping[str, Any]) -> tuple[str, Columns]:
    file_name = entry.get("file_name")
    if not isinstance(file_name, str):
        raise DataError(
            f"data set {name!r} has no file_name",
            where=str(info_path),
            hint="Fix: download the data and name the file",
        )
    shared = entry.get("formatting", "alpaca") == "sharegpt"
    names = SHAREGPT_COLUMNS if shared else ALPACA_COLUMNS
    given = entry.get("columns") or ({} if shared else {})
    paths = {
        names.get(key, key): column
        for key, column in given.items()
        if isinstance(column, str) and names.get(key, key) != column
    }
    tags = dict(entry.get("tags") or {}) if shared else {}
    return str(info_path.parent / file_name), Columns(paths, tags)
