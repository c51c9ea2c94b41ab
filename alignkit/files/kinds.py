"""Explain a name of the wrong sort: a model given as data, data given as a recipe, a hub id.

Users who give the wrong thing know what they meant, so the message names what they gave and what to
type instead. Only names, the first entries of directories and manifests are read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from alignkit.files.containers import COMPRESSIONS
from alignkit.files.containers import SUFFIXES as CONTAINERS

DATA, COMPRESSED = tuple(CONTAINERS), tuple(COMPRESSIONS)
# What the last suffix of a file name implies.
SUFFIXES: dict[str, str] = {
    **dict.fromkeys(DATA, "data"),
    **dict.fromkeys((".yaml", ".yml"), "recipe"),
    **dict.fromkeys((".py", ".ipynb", ".sh", ".js"), "program"),
    **dict.fromkeys((".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx"), "weights"),
    ".gguf": "gguf",
    ".arrow": "arrow",
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), "workbook"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), "archive"),
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".npy", ".npz"), "pickle"),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3", ".duckdb"), "database"),
    **dict.fromkeys((".pdf", ".docx", ".doc", ".html", ".md", ".rtf", ".epub"), "document"),
    **dict.fromkeys((".toml", ".ini", ".cfg", ".conf"), "settings"),
}
HUB_ID = re.compile(r"(?:datasets/)?([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})")
HUB_PAGE = re.compile(
    r"(?:https?://(?:www\.)?huggingface\.co/(?:datasets/)?|hf://(?:datasets/)?)"
    r"([\w.-]+/[\w.-]+)(?:[/?#@].*)?"
)
URL = re.compile(r"[a-z][a-z0-9+]*://", re.IGNORECASE)
MOST_LOOKED_AT = 1_000  # entries of a directory


# What a typing slip may look like: a file of a similar name is then the better guess.
PERHAPS = ("hub id", "word")


def as_data(name: str) -> tuple[str, str] | None:
    """Explain a name given where a file of rows is expected; None if it may be one.

    A directory of no recognized sort is left to the readers of data.
    """
    return _explain(AS_DATA, name)


def as_recipe(name: str) -> tuple[str, str] | None:
    """Explain a name given where a recipe is expected; None if it may be one."""
    return _explain(AS_RECIPE, name)


def as_model(name: str) -> tuple[str, str] | None:
    """Explain a name given where a model is expected; None if it may be one."""
    return _explain(AS_MODEL, name)


def guessed(name: str) -> bool:
    """Return whether only the spelling suggests what a name is: it may be a misspelled file."""
    return what_is(name) in PERHAPS


def what_is(name: str) -> str:
    """Return one word for what a name stands for; empty when nothing tells."""
    if os.path.isdir(name):
        return _what_directory(Path(name))
    if os.path.exists(name):
        return SUFFIXES.get(_suffix(name), "")
    return _what_absent(name)


def _what_directory(path: Path) -> str:
    names = _names_in(path)
    for file, word in DIRECTORIES.items():
        if file in names:
            return word
    if any(Path(name).suffix == ".arrow" for name in names):
        return "saved data set"
    if _data_in(names):
        return "directory of data"
    if any((path / name / "manifest.json").is_file() for name in names):
        return "runs"
    return "directory"


def _names_in(path: Path) -> set[str]:
    """Return the names of the first entries; none if the directory cannot be read."""
    try:
        with os.scandir(path) as entries:
            return {entry.name for entry in islice(entries, MOST_LOOKED_AT)}
    except OSError:
        return set()


def _what_absent(name: str) -> str:
    if HUB_PAGE.fullmatch(name):
        return "hub page"
    if URL.match(name):
        return "address"
    if name.startswith("embedded:"):
        return "embedded"
    if any(letter in name for letter in "*?["):
        return "pattern"
    if "," in name:
        return "list"
    if _suffix(name) in SUFFIXES:
        return ""
    hub = HUB_ID.fullmatch(name)
    if hub and not os.path.isdir(name.partition("/")[0]):
        return "hub id"
    return "word" if re.fullmatch(r"[A-Za-z][\w-]*", name) else ""


def _suffix(name: str) -> str:
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    if len(suffixes) > 1 and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _data_in(names: Iterable[str]) -> list[str]:
    """Return the names of data files, except .txt, which every model's directory holds too."""
    return sorted(name for name in names if _suffix(name) in DATA and _suffix(name) != ".txt")


Table = dict[str, tuple[str, str]]


def _explain(table: Table, name: str) -> tuple[str, str] | None:
    row = table.get(what_is(name))
    if row is None:
        return None
    facts = _facts(name)
    return row[0].format(**facts), row[1].format(**facts)


def _facts(name: str) -> dict[str, str]:
    """Return the values that the messages in the tables may mention."""
    path = Path(name)
    page = HUB_PAGE.fullmatch(name) or HUB_ID.fullmatch(name)
    hub = page[1] if page else name
    facts = {"name": name, "stem": path.stem, "suffix": path.suffix, "hub": hub}
    facts |= {"short": hub.rpartition("/")[2], "parent": str(path.parent)}
    facts |= {"first": "", "kind": "", "own": "Name the file of rows", "each": ""}
    if os.path.isdir(name):
        data = _data_in(_names_in(path))
        facts["first"] = str(path / data[0]) if data else ""
        facts["kind"] = _kind_of_run(path)
        if own := OUTPUTS.get(facts["kind"]):
            facts["own"] = f"The rows it wrote are in {path / own}"
    facts["each"] = ", ".join(part.strip() for part in name.split(",") if part.strip())
    return facts


def _kind_of_run(path: Path) -> str:
    try:
        kind = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "of alignkit"
    return kind if isinstance(kind, str) and kind.isalpha() else "of alignkit"


# What identifies a directory: the first of these files that it holds.
DIRECTORIES: dict[str, str] = {
    "manifest.json": "run",
    "stage.json": "run",
    "adapter_config.json": "adapter",
    "config.json": "model",
    "state.json": "saved data set",
    "dataset_dict.json": "saved data set",
    "report.html": "runs",
}
OUTPUTS = {"split": "train.jsonl", "generate": "candidates.jsonl", "rank": "rankings.jsonl"}

LOCAL = "data are read from files on this machine, and no file has this name"
FROM_HUB = (
    "To use a data set of the hub, run two lines of Python:\n"
    "    from datasets import load_dataset\n"
    '    load_dataset("{hub}", split="train").to_json("{short}.jsonl")'
)

AS_DATA: Table = {
    "hub id": (LOCAL, FROM_HUB),
    "hub page": (LOCAL, FROM_HUB),
    "word": ("no such file", FROM_HUB),
    "address": ("data are read from files on this machine", "Download it and name the file"),
    "embedded": (
        "embedded data work only in recipes and in commands that train",
        "Name a file",
    ),
    "pattern": ("no file has this name; patterns are not expanded", "Name each file"),
    "list": ("no file has this name", "If these are several files, list them separately: {each}"),
    "run": ("a finished run ({kind}), not data", "{own}; pass a run as --policy or --model"),
    "runs": ("a directory of runs, not data", "Name a file of rows"),
    "adapter": ("an adapter, not data", "Pass it as --model {name}, and a file of rows as data"),
    "model": ("a model, not data", "Pass it as --model {name}, and a file of rows as data"),
    "saved data set": (
        "a data set in the format of save_to_disk or of the datasets cache",
        "Two lines of Python turn it into a file:\n"
        "    from datasets import load_from_disk\n"
        '    load_from_disk("{name}").to_json("{stem}.jsonl")  # with splits: pick ["train"] first',
    ),
    "recipe": (
        "YAML, not rows",
        "Run a recipe with: alignkit run {name}; pass the settings of one stage with --config",
    ),
    "settings": ("settings, not rows", "Name a file of rows: .jsonl, .json, .csv, .parquet …"),
    "program": ("a program, not rows", "Name a file of rows: .jsonl, .json, .csv, .parquet …"),
    "weights": ("model weights, not rows", "Pass the model's directory as --model"),
    "gguf": ("model weights, not rows", "Pass the model's directory as --model"),
    "arrow": (
        "an Arrow file of the datasets library",
        "Two lines of Python turn it into JSONL:\n"
        "    from datasets import Dataset\n"
        '    Dataset.from_file("{name}").to_json("{stem}.jsonl")',
    ),
    "workbook": ("a workbook, not rows", "Save its sheet as CSV (UTF-8)"),
    "archive": (
        "an archive",
        "Unpack it and name the file of rows inside; .gz, .zst, .bz2 and .xz files are read as is",
    ),
    "pickle": (
        "pickled or numeric data, which are not read because loading them can run code",
        "If you trust their origin, write them as JSONL",
    ),
    "database": ("a database", "Export the table as CSV or JSONL"),
    "document": (
        "a document, not rows",
        "Rows are objects with prompts and completions: JSONL, CSV …",
    ),
}

AS_RECIPE: Table = {
    "data": (
        "data, not a recipe",
        "To check it: alignkit data check {name}; to train one stage on it: alignkit sft --data "
        "{name}, or reward or dpo instead of sft",
    ),
    "program": (
        "a program, not a recipe; a recipe holds settings only, and alignkit runs the stages",
        "alignkit demo prints a recipe; alignkit sft -h lists the names of our settings",
    ),
    "settings": ("not a recipe: recipes are YAML", "Write name: and stages: in a .yaml file"),
    "weights": ("model weights, not a recipe", "Name the model in a recipe, or pass it as --model"),
    "gguf": ("model weights, not a recipe", "Name the model in a recipe, or pass it as --model"),
    "run": (
        "a finished run ({kind}), not a recipe",
        "Pass the recipe it came from; finished stages are reused",
    ),
    "runs": ("a directory of runs, not a recipe", "Pass the recipe they came from"),
    "adapter": ("an adapter, not a recipe", "Name the model in a recipe, or pass it as --model"),
    "model": ("a model, not a recipe", "Name the model in a recipe, or pass it as --model"),
    "hub id": (
        "no file has this name; name models and data of the hub inside a recipe",
        "alignkit demo prints a recipe",
    ),
}

AS_MODEL: Table = {
    "data": ("data, not a model", "Pass it as --data {name}; a model is a directory or a hub id"),
    "recipe": ("YAML, not a model", "Run a recipe with: alignkit run {name}"),
    "program": ("a program, not a model", "A model is a directory or a hub id"),
    "weights": (
        "one file of a model",
        "Name the directory that also holds its config.json: {parent}",
    ),
    "gguf": (
        "GGUF holds weights for llama.cpp, which cannot be trained",
        "Name the model it was made from: a directory of safetensors, or its hub id",
    ),
    "archive": ("an archive, not a model", "Unpack it and name the directory"),
    "hub page": ("an address, not a model's name", "Its hub id is {hub}"),
    "address": ("an address, not a model's name", "Download it and name the directory"),
    "saved data set": ("a data set, not a model", "A model is a directory or a hub id"),
    "directory of data": ("a directory of data, not a model", "Pass data as --data {first}"),
    "runs": ("a directory of runs", "Name one run in it"),
    "run": (
        "a finished run ({kind}) that saved no model",
        "Name a run of sft, reward, dpo, ppo or rloo, a directory, or a hub id",
    ),
}
