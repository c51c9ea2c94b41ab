"""Where a model's files are and what they are, found without importing torch.

A model is named by "tiny" (the embedded base), a directory, a run's directory (its base, and its
adapter to start from) or a hub id. Only safetensors weights are accepted, and no code that comes
with a model is ever run.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from alignkit.errors import ModelError, did_you_mean
from alignkit.what_is import as_model

EMBEDDED = {"tiny": Path(__file__).parent / "tiny" / "model"}
MAX_HEADER = 100 * 1024 * 1024
PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True)
class ModelFiles:
    """A base model on disk. `adapter` is set when a run's directory was named."""

    name: str
    path: Path
    revision: str | None
    adapter: Path | None = None

    @property
    def fingerprint(self) -> str:
        """sha256 over the configuration, the tokenizer and every weight."""
        digest = hashlib.sha256()
        for file in model_file_list(self.path):
            digest.update(f"{file.name}\0{_sha256(file)}\0".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file of weights: its type by safetensors' name, its sizes, its bytes' place."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @classmethod
    def read(cls, entry: dict[str, Any], offset: int) -> StoredTensor:
        """From a header's entry, in a file whose data begin at `offset`."""
        begin, end = (offset + _size(value) for value in entry["data_offsets"])
        shape = tuple(_size(value) for value in entry["shape"])
        if end < begin or not isinstance(entry["dtype"], str):
            raise ValueError("a tensor ends before it begins")
        return cls(entry["dtype"], shape, begin, end)


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("not a size")
    return value


def find_model(name: str, revision: str | None = None) -> ModelFiles:
    """The files of the model called `name`; ModelError with the nearest match if absent."""
    return _found(name, revision, frozenset())


def _found(name: str, revision: str | None, passed: frozenset[Path]) -> ModelFiles:
    """The model of that name; `passed` are the runs whose base it is, on the way here."""
    if name in EMBEDDED:
        return _checked(ModelFiles(name, EMBEDDED[name], None))
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):  # unlike Path's, false for a name too long for any file
        return _from_directory(path.resolve(), revision, passed)
    if mistaken := as_model(name):
        raise ModelError(mistaken[0], where=name, hint=mistaken[1])
    if _looks_like_path(name):
        raise ModelError(
            f"no model at {name}{_nearest_path(path)}",
            hint="Fix: name a model's directory, a run's directory or a hub id",
        )
    return _from_hub(name, revision)


def model_file_list(path: Path) -> list[Path]:
    """The files that decide what a model computes, in a fixed order."""
    wanted = {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    return sorted(
        file
        for file in path.iterdir()
        if file.name in wanted or (file.suffix == ".safetensors" and "adapter" not in file.name)
    )


def _from_directory(path: Path, revision: str | None, passed: frozenset[Path]) -> ModelFiles:
    manifest = path / "manifest.json"
    adapter = path / "adapter" if (path / "adapter" / "adapter_config.json").exists() else None
    if adapter is None and (path / "adapter_config.json").exists():
        adapter = path
    if adapter is None:
        return _checked(ModelFiles(str(path), path, revision))
    base = read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
    if manifest.exists():
        recorded = read_json(manifest).get("backbone")
        base = recorded.get("model", base) if isinstance(recorded, dict) else base
    if not isinstance(base, str) or not base or "\0" in base:
        raise ModelError(
            "the adapter does not name its base model",
            where=str(adapter / "adapter_config.json"),
            hint="add base_model_name_or_path",
        )
    if path in passed:
        raise ModelError("the adapter is its own base model", where=str(path))
    found = _found(base, revision, passed | {path})
    return ModelFiles(found.name, found.path, found.revision, adapter)


def _from_hub(name: str, revision: str | None) -> ModelFiles:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.errors import RepositoryNotFoundError as NotFound

    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except (HFValidationError, NotFound):
        raise ModelError(
            f"no model called {name!r} here or on the hub{did_you_mean(name, _known_names())}",
            hint="Give a directory, a hub id (owner/name), or tiny for the embedded model",
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"{name} has no revision {revision!r}") from None
    except (LocalEntryNotFoundError, OSError):
        offline = os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"}
        reason = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        raise ModelError(
            f"no model called {name!r} on this machine, and {reason}"
            f"{did_you_mean(name, _known_names())}",
            hint="Give a directory, a hub id that is in the cache, or tiny for the embedded model",
        ) from None
    return _checked(ModelFiles(name, path, path.name))


def _known_names() -> list[str]:
    """Embedded models, hub ids in the local cache and directories beside us."""
    names = list(EMBEDDED)
    cache = Path(os.environ.get("HF_HUB_CACHE", Path.home() / ".cache/huggingface/hub"))
    if cache.is_dir():
        names += [d.name[8:].replace("--", "/") for d in cache.glob("models--*")]
    return names + [d.name for d in Path.cwd().iterdir() if (d / "config.json").exists()]


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")


def _nearest_path(path: Path) -> str:
    """`; the nearest is runs/sft` when a sibling or an ancestor's child has a similar name."""
    parent = path.parent
    if not os.path.isdir(parent):
        return _nearest_path(parent) if parent != path and parent.name else ""
    names = [child.name for child in parent.iterdir() if child.is_dir()]
    close = get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"; the nearest is {parent / close[0]}" if close else ""


def _checked(files: ModelFiles) -> ModelFiles:
    """Refuse what cannot be loaded safely or at all, naming the file."""
    path = files.path
    if not (path / "config.json").exists():
        if mistaken := as_model(str(path)):
            raise ModelError(mistaken[0], where=str(path), hint=mistaken[1])
        raise ModelError("no config.json: not a model's directory", where=str(path))
    config = read_json(path / "config.json")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        _refuse_without_safetensors(path)
    for file in weights:
        check_safetensors(file)
    if "auto_map" in config and "model_type" not in config:
        raise ModelError(
            "this model needs code of its own, which is never run",
            where=str(path / "config.json"),
            hint="choose an architecture that transformers knows",
        )
    return files


def _refuse_without_safetensors(path: Path) -> None:
    pickled = sorted([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")])
    if pickled:
        raise ModelError(
            "pickle weights are refused, because loading them runs code",
            where=str(pickled[0]),
            hint="convert them to safetensors where you trust their origin",
        )
    raise ModelError("no *.safetensors weights", where=str(path))


def check_safetensors(file: Path) -> dict[str, StoredTensor]:
    """What a file of weights holds; refused when it is truncated, lies or is a Git LFS pointer."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start.startswith(b"version "):
            raise ModelError(
                "a Git LFS pointer, not weights", where=str(file), hint="run: git lfs pull"
            )
        if len(start) < 8:
            raise ModelError(f"only {size} bytes long", where=str(file), hint="copy it again")
        (length,) = struct.unpack("<Q", start)
        if length > MAX_HEADER or length + 8 > size:
            raise ModelError(
                f"the header claims {length:,} bytes in a file of {size:,}",
                where=str(file),
                hint="the file is truncated or not safetensors; copy it again",
            )
        tensors = _tensors(stream.read(length), file)
    expected = max((tensor.end for tensor in tensors.values()), default=8 + length)
    if size != expected:
        raise ModelError(
            f"file is {size:,} of {expected:,} bytes", where=str(file), hint="copy it again"
        )
    return tensors


def _tensors(header: bytes, file: Path) -> dict[str, StoredTensor]:
    """The tensors a header lists, with where each lies in the file."""
    broken = ModelError(
        "the header is not that of safetensors", where=str(file), hint="copy it again"
    )
    try:
        content = json.loads(header)
        entries = {name: entry for name, entry in content.items() if name != "__metadata__"}
        start = 8 + len(header)
        return {name: StoredTensor.read(entry, start) for name, entry in entries.items()}
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        raise broken from None


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file that came with a model; ModelError for anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot be read: {str(error):.200}", where=str(file)) from None
    if not isinstance(content, dict):
        raise ModelError("expected a JSON object", where=str(file))
    return content


def _sha256(file: Path) -> str:
    """Content hash; the hub's cache already names its blobs by it."""
    if file.is_symlink():
        blob = Path(os.readlink(file)).name
        if len(blob) == 64:
            return blob
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of(files: Iterable[Path]) -> str:
    """One hash over several files' names and contents."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name}\0{_sha256(file)}\0".encode())
    return digest.hexdigest()
