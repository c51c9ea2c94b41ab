"""What the fuzzer calls: bytes in, nothing out, and no exception but an AlignkitError swallowed.

Each target puts the bytes where a user would have them, as a file, and reads it by the function
that the commands use. The seals of manifests are put right, or no input would get behind them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignkit.errors import AlignkitError

Target = Callable[[bytes, Path], None]

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".jsonl.gz", ".jsonl.zst")
ROW = '{"prompt": "a", "completion": "b"}\n'


def data(content: bytes, place: Path) -> None:
    """A data file: the first byte chooses its container, the rest is what is in it."""
    from alignkit.data.checks.file_check import check_file
    from alignkit.data.read import load_demonstrations, load_preferences, load_prompts

    path = place / f"d{SUFFIXES[content[0] % len(SUFFIXES)]}" if content else place / "d.jsonl"
    path.write_bytes(content[1:])
    try:
        check_file(path, near=False)
    finally:
        for load in (load_demonstrations, load_preferences, load_prompts):
            refused(lambda load=load: load(path, on_bad_row="drop"))
        path.unlink()


def recipe(content: bytes, place: Path) -> None:
    """A recipe, and behind NUL characters what would be given with --set."""
    from alignkit.recipe.file import read_recipe

    (place / "rows.jsonl").write_text(ROW)
    text, *settings = content.split(b"\0")
    (place / "r.yaml").write_bytes(text)
    read_recipe(place / "r.yaml", [part.decode(errors="replace") for part in settings[:4]])


def manifest(content: bytes, place: Path) -> None:
    """A finished stage: its manifest and its record, as bytes and sealed, and what plans read."""
    from alignkit.run.plan import read_record
    from alignkit.store.artifacts import differences, verify

    (place / "metrics.jsonl").write_text("{}\n")
    for name in ("manifest.json", "stage.json"):
        (place / name).write_bytes(sealed(content))
    differences(read_record(place) or {}, {"beta": 0.1})
    verify(place)


def checkpoint(content: bytes, place: Path) -> None:
    """A checkpoint: its manifest, and the trees in its files."""
    from alignkit.training.checkpoints import load_tree, newest_valid

    directory = place / "checkpoint-4"
    directory.mkdir(exist_ok=True)
    (directory / "MANIFEST.json").write_bytes(sealed(content))
    (directory / "tree.safetensors").write_bytes(with_header({"__metadata__": {"tree": content}}))
    refused(lambda: newest_valid(place, {"data": "abc"}))
    refused(lambda: load_tree(directory / "tree.safetensors"))
    (directory / "tree.safetensors").write_bytes(content)
    load_tree(directory / "tree.safetensors")


def model(content: bytes, place: Path) -> None:
    """A model's directory: configuration, tokenizer, manifest and weights, looked at by a plan."""
    from alignkit.model.check import check_weights
    from alignkit.model.files import find_model, weight_files
    from alignkit.model.template_check import templates_of
    from alignkit.run.estimate import read_shape

    directory = place / "model"
    directory.mkdir(exist_ok=True)
    good = {"config.json": b'{"model_type": "llama"}', "model.safetensors": with_header({})}
    names = [*good, "tokenizer_config.json", "adapter_config.json", "manifest.json"]
    for name in names:
        (directory / name).unlink(missing_ok=True)
    harmed = names[content[0] % len(names)] if content else "config.json"
    for name, whole in good.items():
        (directory / name).write_bytes(whole)
    (directory / harmed).write_bytes(content[1:])
    found = find_model(str(directory))
    templates_of(found.path, None)
    check_weights(weight_files(found.path))
    read_shape(found.path)


def refused(read: Callable[[], Any]) -> None:
    """Call, and let an AlignkitError pass as the refusal it is."""
    try:
        read()
    except AlignkitError:
        return


def sealed(content: bytes) -> bytes:
    """JSON with its seal put right; other bytes as they are."""
    from alignkit.store.artifacts import sealed_json

    try:
        value = json.loads(content)
        return sealed_json(value) if isinstance(value, dict) else content
    except (ValueError, RecursionError):
        return content


def with_header(header: dict[str, Any]) -> bytes:
    """A safetensors file of one tensor of four numbers, with these entries in its header."""
    texts = {
        key: {inner: text.decode(errors="replace") for inner, text in value.items()}
        for key, value in header.items()
    }
    entry = {"0": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    encoded = json.dumps(texts | entry).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(16)


TARGETS: dict[str, Target] = {
    "data": data,
    "recipe": recipe,
    "manifest": manifest,
    "checkpoint": checkpoint,
    "model": model,
}


def one_input(target: str, content: bytes, place: Path) -> None:
    """Give one target one input; whatever is raised is a crash."""
    refused(lambda: TARGETS[target](content, place))
