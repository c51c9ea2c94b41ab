"""What a name stands for when it is not what is due: a model as data, data as a recipe, a hub id.

A person who gives the wrong thing knows what they meant; the message says what was given and what
to type. Looks at names and at the first entries of directories, and opens nothing but manifests.
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
# What the last suffix of a file's name says it is.
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


# What a slip of the keyboard may look like: a file of a similar name is the better guess.
PERHAPS = ("hub id", "word")


def as_data(name: str) -> tuple[str, str] | None:
    """What to say of a name that was given where a file of rows is due; None if it may be one.

    Of a directory that is nothing else, whoever reads data decides.
    """
    return _said(AS_DATA, name)


def as_recipe(name: str) -> tuple[str, str] | None:
    """What to say of a name that was given where a recipe is due; None if it may be one."""
    return _said(AS_RECIPE, name)


def as_model(name: str) -> tuple[str, str] | None:
    """What to say of a name that was given where a model is due; None if it may be one."""
    return _said(AS_MODEL, name)


def guessed(name: str) -> bool:
    """Whether nothing but the look of a name says what it is: it may be a misspelt file."""
    return what_is(name) in PERHAPS


def what_is(name: str) -> str:
    """One word for what a name stands for; empty when nothing tells."""
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
    """Names of the first entries; none of a directory that may not be read."""
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
    """The names that are of data files, but not of what lies in every model's directory."""
    return sorted(name for name in names if _suffix(name) in DATA and _suffix(name) != ".txt")


Table = dict[str, tuple[str, str]]


def _said(table: Table, name: str) -> tuple[str, str] | None:
    row = table.get(what_is(name))
    if row is None:
        return None
    facts = _facts(name)
    return row[0].format(**facts), row[1].format(**facts)


def _facts(name: str) -> dict[str, str]:
    """What the tables may mention."""
    path = Path(name)
    page = HUB_PAGE.fullmatch(name) or HUB_ID.fullmatch(name)
    hub = page[1] if page else name
    facts = {"name": name, "stem": path.stem, "suffix": path.suffix, "hub": hub}
    facts |= {"short": hub.rpartition("/")[2], "parent": str(path.parent)}
    facts |= {"first": "", "kind": "", "own": "Name the file of rows", "each": ""}
    if os.path.isdir(name):
        found = _data_in(_names_in(path))
        facts["first"] = str(path / found[0]) if found else ""
        facts["kind"] = _kind_of_run(path)
        if own := OUTPUTS.get(facts["kind"]):
            facts["own"] = f"The rows it made are in {path / own}"
    facts["each"] = ", ".join(part.strip() for part in name.split(",") if part.strip())
    return facts


def _kind_of_run(path: Path) -> str:
    try:
        kind = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "of alignkit"
    return kind if isinstance(kind, str) and kind.isalpha() else "of alignkit"


# What tells a directory apart: the first of these files that is in it.
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

LOCAL = "data come from files on this machine, and there is none of this name"
FROM_HUB = (
    "For a data set of the hub, two lines of Python make one:\n"
    "    from datasets import load_dataset\n"
    '    load_dataset("{hub}", split="train").to_json("{short}.jsonl")'
)

AS_DATA: Table = {
    "hub id": (LOCAL, FROM_HUB),
    "hub page": (LOCAL, FROM_HUB),
    "word": ("no such file", FROM_HUB),
    "address": ("data come from files on this machine", "Download it and name the file"),
    "embedded": (
        "embedded data are there for stages, in recipes and in the commands that train",
        "Name a file",
    ),
    "pattern": ("no file of this name; patterns are not expanded here", "Name each file"),
    "list": ("no file of this name", "If these are several files, give each by itself: {each}"),
    "run": ("a finished run ({kind}), not data", "{own}; a run is given as --policy or --model"),
    "runs": ("a directory of runs, not data", "Name a file of rows"),
    "adapter": ("an adapter, not data", "Give it as --model {name}, and a file of rows as data"),
    "model": ("a model, not data", "Give it as --model {name}, and a file of rows as data"),
    "saved data set": (
        "a data set as save_to_disk or the cache of datasets leaves it",
        "Two lines of Python make a file of it:\n"
        "    from datasets import load_from_disk\n"
        '    load_from_disk("{name}").to_json("{stem}.jsonl")  # ["train"] of one with splits',
    ),
    "recipe": (
        "YAML, not rows",
        "A recipe is run by: alignkit run {name}; settings of one stage are given as --config",
    ),
    "settings": ("settings, not rows", "Name a file of rows: .jsonl, .json, .csv, .parquet …"),
    "program": ("a program, not rows", "Name a file of rows: .jsonl, .json, .csv, .parquet …"),
    "weights": ("weights of a model, not rows", "A model is given by its directory: --model"),
    "gguf": ("weights of a model, not rows", "A model is given by its directory: --model"),
    "arrow": (
        "an Arrow file of the datasets library",
        "Two lines of Python make JSONL of it:\n"
        "    from datasets import Dataset\n"
        '    Dataset.from_file("{name}").to_json("{stem}.jsonl")',
    ),
    "workbook": ("a workbook, not rows", "Save its sheet as CSV (UTF-8)"),
    "archive": (
        "an archive",
        "Unpack it, and name the file of rows in it; .gz, .zst, .bz2 and .xz are read",
    ),
    "pickle": (
        "pickled or numeric data, which are not read because loading them can run code",
        "Write them as JSONL where you trust their origin",
    ),
    "database": ("a database", "Export the table as CSV or JSONL"),
    "document": ("a document, not rows", "Rows are objects with prompts and answers: JSONL, CSV …"),
}

AS_RECIPE: Table = {
    "data": (
        "data, not a recipe",
        "To check it: alignkit data check {name}; to train one stage on it: alignkit sft --data "
        "{name}, or reward, dpo",
    ),
    "program": (
        "a program, not a recipe; recipes hold settings alone, and alignkit runs the stages",
        "alignkit demo shows one; settings of trainers are given by our names, see alignkit sft -h",
    ),
    "settings": ("not a recipe: recipes are YAML", "Write name: and stages: in a .yaml file"),
    "weights": ("weights of a model, not a recipe", "A model is named in a recipe, or by --model"),
    "gguf": ("weights of a model, not a recipe", "A model is named in a recipe, or by --model"),
    "run": (
        "a finished run ({kind}), not a recipe",
        "Give the recipe it came from; finished stages are reused",
    ),
    "runs": ("a directory of runs, not a recipe", "Give the recipe they came from"),
    "adapter": ("an adapter, not a recipe", "A model is named in a recipe, or by --model"),
    "model": ("a model, not a recipe", "A model is named in a recipe, or by --model"),
    "hub id": (
        "no file of this name; models and data of the hub are named in a recipe",
        "alignkit demo shows one",
    ),
}

AS_MODEL: Table = {
    "data": ("data, not a model", "Give it as --data {name}; a model is a directory or a hub id"),
    "recipe": ("YAML, not a model", "A recipe is run by: alignkit run {name}"),
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
    "directory of data": ("a directory of data, not a model", "Data are given as --data {first}"),
    "runs": ("a directory of runs", "Name one run in it"),
    "run": (
        "a finished run ({kind}) that left no model",
        "A run of sft, reward, dpo, ppo or rloo is one, or a directory, or a hub id",
    ),
}
