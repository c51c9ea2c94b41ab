"""Find a model's files and check what they are, without importing torch.

A model is named by "tiny" (the embedded base), a directory, a run's directory (its base, and the
adapter to start from) or a hub id. Only safetensors weights are accepted, and no code that comes
with a model is ever run. Libraries may read one list of a model's files: the list that is
fingerprinted by content.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import Any

from alignkit.errors import ModelError, did_you_mean
from alignkit.files.kinds import as_model
from alignkit.store.content_hash import content_hash, content_hashes

EMBEDDED = {"tiny": Path(__file__).parent.parent / "tiny" / "model"}
MAX_HEADER = 100 * 1024 * 1024
MAX_JSON = 128 << 20
PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
# Besides weights: every file transformers looks for when it loads a causal LM and its tokenizer.
READ = re.compile(
    r"(config|generation_config|tokenizer_config|tokenizer|special_tokens_map|added_tokens"
    r"|chat_template|vocab|tekken)\.json"
    r"|chat_template\.jinja|additional_chat_templates/[^/]+\.jinja"
    r"|vocab\.txt|merges\.txt|[^/]+\.model|[^/]+\.tiktoken"
)
# Settings a configuration must not decide: code, kernels, other files, what a forward returns.
NOT_OBEYED = {
    CONFIG: re.compile(
        r"_?(attn|attention|experts)_implementation\w*|auto_map|custom_pipelines"
        r"|transformers_weights|fusion_config|use_kernels|kernel_config|distributed_config"
        r"|_?name_or_path|_commit_hash|torchscript|(use_)?return_dict|output_(attentions"
        r"|hidden_states)"
    ),
    TOKENIZER_CONFIG: re.compile(
        r"auto_map|init_inputs|from_slow|trust_remote_code|vocab|merges|tokenizer_object"
        r"|name_or_path|is_local|local_files_only|_commit_hash|\w*_files?"
    ),
}
WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "U16": 2, "I16": 2,
    "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class ModelFiles:
    """A base model on disk; `adapter` is set when a run's directory was named."""

    name: str
    path: Path
    revision: str | None
    adapter: Path | None = None

    @property
    def fingerprint(self) -> str:
        """sha256 over the name and content of every file that is read of the model."""
        files = model_file_list(self.path)
        digest = hashlib.sha256()
        for file, content in zip(files, content_hashes(files), strict=True):
            digest.update(f"{file.relative_to(self.path).as_posix()}\0{content}\0".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file of weights: dtype by safetensors' name, sizes, and where its bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @classmethod
    def read(cls, entry: dict[str, Any], offset: int) -> StoredTensor:
        """Read a header's entry, for a file whose data begin at `offset`. Raises ValueError."""
        begin, end = (offset + _size(value) for value in entry["data_offsets"])
        shape = tuple(_size(value) for value in entry["shape"])
        if end < begin or not isinstance(entry["dtype"], str):
            raise ValueError("a tensor ends before it begins")
        width = WIDTHS.get(entry["dtype"])
        if width is not None and end - begin != width * prod(shape):
            raise ValueError("a tensor has other bytes than its sizes need")
        return cls(entry["dtype"], shape, begin, end)


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("not a size")
    return value


def find_model(name: str, revision: str | None = None) -> ModelFiles:
    """Return the files of the model called `name`. Raises ModelError with the nearest match."""
    return _find(name, revision, frozenset())


def _find(name: str, revision: str | None, passed: frozenset[Path]) -> ModelFiles:
    """Find the model; `passed` are the runs already followed to their base."""
    if name in EMBEDDED:
        return _check_loadable(ModelFiles(name, EMBEDDED[name], None))
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
    """Return the files read of a model, which decide what it computes, in a fixed order.

    Raise ModelError for one that is not an ordinary file, or a list of weights that leaves `path`.
    """
    candidates = [*path.iterdir(), *path.glob("additional_chat_templates/*")]
    files = [file for file in candidates if READ.fullmatch(file.relative_to(path).as_posix())]
    for file in files:
        _refuse_unless_ordinary(file)
    weights = weight_files(path)
    index = [] if weights[0].name == WEIGHTS else [path / INDEX]
    return sorted([*files, *index, *weights])


def weight_files(path: Path) -> list[Path]:
    """Return the files that hold a model's weights: `model.safetensors`, or those its index lists.

    Raise ModelError if there are none, or an entry of the index leads out of the directory.
    """
    if os.path.lexists(path / WEIGHTS):
        _refuse_unless_ordinary(path / WEIGHTS)
        return [path / WEIGHTS]
    if not os.path.lexists(path / INDEX):
        _refuse_without_safetensors(path)
    _refuse_unless_ordinary(path / INDEX)
    listed = read_json(path / INDEX).get("weight_map")
    names = set(listed.values()) if isinstance(listed, dict) and _are_texts(listed) else set()
    if not names:
        raise ModelError("has no weight_map of names and files", where=str(path / INDEX))
    for name in sorted(names):
        if Path(name).name != name or "\0" in name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{name!r:.100} is not a *.safetensors file of this directory",
                where=str(path / INDEX),
                hint="Put all weights next to the index, and name them without a path",
            )
        _refuse_unless_ordinary(path / name)
    return [path / name for name in sorted(names)]


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a model by name. Raises ModelError for a name that two files have."""
    all_tensors: dict[str, StoredTensor] = {}
    for file in weight_files(path):
        tensors = check_safetensors(file)
        twice = all_tensors.keys() & tensors.keys()
        if twice:
            raise ModelError(f"{min(twice)} is in another file of this model too", where=str(file))
        all_tensors |= tensors
    return all_tensors


def _are_texts(listed: dict[str, Any]) -> bool:
    return all(isinstance(name, str) for name in listed.values())


def _refuse_unless_ordinary(file: Path) -> None:
    """Refuse a pipe, which would block forever, and a device; allow a link to an ordinary file."""
    if file.is_file():
        return
    reason = "not an ordinary file" if file.exists() else "missing"
    raise ModelError(f"{file.name} is {reason}", where=str(file.parent), hint="Copy it again")


@contextmanager
def staged(files: ModelFiles) -> Iterator[Path]:
    """Yield a directory for libraries to load from: the fingerprinted files and no other.

    Settings that would choose code, kernels or further files are removed from the two
    configurations; all other files are links.
    """
    with tempfile.TemporaryDirectory(prefix="alignkit-") as name:
        directory = Path(name)
        for file in model_file_list(files.path):
            target = directory / file.relative_to(files.path)
            target.parent.mkdir(exist_ok=True)
            if file.name in NOT_OBEYED:
                target.write_text(json.dumps(obeyed_settings(file)), encoding="utf-8")
            else:
                target.symlink_to(file.resolve())
        yield directory


def obeyed_settings(file: Path) -> dict[str, Any]:
    """Return a configuration's settings without those that a model must not decide."""
    try:
        settings: dict[str, Any] = _obeyed(read_json(file), NOT_OBEYED[file.name])
    except RecursionError:
        raise ModelError("nested too deeply", where=str(file)) from None
    return settings


def _obeyed(settings: Any, ignored: re.Pattern[str]) -> Any:
    """Return settings without those whose names match, at any depth."""
    if isinstance(settings, dict):
        return {
            name: _obeyed(value, ignored)
            for name, value in settings.items()
            if not ignored.fullmatch(name)
        }
    return [_obeyed(value, ignored) for value in settings] if type(settings) is list else settings


def _from_directory(path: Path, revision: str | None, passed: frozenset[Path]) -> ModelFiles:
    manifest = path / "manifest.json"
    adapter = path / "adapter" if (path / "adapter" / "adapter_config.json").exists() else None
    if adapter is None and (path / "adapter_config.json").exists():
        adapter = path
    if adapter is None:
        return _check_loadable(ModelFiles(str(path), path, revision))
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
    files = _find(base, revision, passed | {path})
    return ModelFiles(files.name, files.path, files.revision, adapter)


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
    return _check_loadable(ModelFiles(name, path, path.name))


def _known_names() -> list[str]:
    """Return the names to suggest: embedded models, hub ids in the cache, directories here."""
    names = list(EMBEDDED)
    cache = Path(os.environ.get("HF_HUB_CACHE", Path.home() / ".cache/huggingface/hub"))
    if cache.is_dir():
        names += [d.name[8:].replace("--", "/") for d in cache.glob("models--*")]
    return names + [d.name for d in Path.cwd().iterdir() if (d / "config.json").exists()]


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")


def _nearest_path(path: Path) -> str:
    """Return `; the nearest is runs/sft` if a directory near there has a similar name."""
    parent = path.parent
    if not os.path.isdir(parent):
        return _nearest_path(parent) if parent != path and parent.name else ""
    names = [child.name for child in parent.iterdir() if child.is_dir()]
    close = get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"; the nearest is {parent / close[0]}" if close else ""


def _check_loadable(files: ModelFiles) -> ModelFiles:
    """Refuse a model that cannot be loaded safely, or at all, naming the file."""
    path = files.path
    if not (path / CONFIG).is_file():
        if mistaken := as_model(str(path)):
            raise ModelError(mistaken[0], where=str(path), hint=mistaken[1])
        raise ModelError("no config.json: not a model's directory", where=str(path))
    model_file_list(path)
    stored_tensors(path)
    config = read_json(path / CONFIG)
    if not isinstance(config.get("model_type"), str):
        needs_code = "auto_map" in config
        raise ModelError(
            "this model needs code of its own, which is never run"
            if needs_code
            else "has no model_type",
            where=str(path / CONFIG),
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
    other = next(iter(sorted(path.glob("*.safetensors"))), None)
    raise ModelError(
        "no *.safetensors weights" if other is None else f"neither {WEIGHTS} nor {INDEX}",
        where=str(path),
        hint=f"{other.name} is not a name that is read: rename it" if other else None,
    )


def check_safetensors(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors in a file of weights. Raises ModelError for a truncated or lying file."""
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
    if not _are_contiguous(tensors.values(), 8 + length):
        raise ModelError(
            "the header's tensors overlap or leave gaps", where=str(file), hint="copy it again"
        )
    expected = max((tensor.end for tensor in tensors.values()), default=8 + length)
    if size != expected:
        raise ModelError(
            f"file is {size:,} of {expected:,} bytes", where=str(file), hint="copy it again"
        )
    return tensors


def _are_contiguous(tensors: Iterable[StoredTensor], start: int) -> bool:
    """Return whether each tensor begins where the one before it ends."""
    places = sorted((tensor.begin, tensor.end) for tensor in tensors)
    begins, ends = [begin for begin, _ in places], [end for _, end in places]
    return begins == [start, *ends][: len(begins)]


def _tensors(header: bytes, file: Path) -> dict[str, StoredTensor]:
    """Return the tensors that a header lists, with where each lies in the file."""
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
    """Return the JSON object in a file of a model. Raises ModelError for anything else."""
    _refuse_unless_ordinary(file)
    try:
        if file.stat().st_size > MAX_JSON:
            raise ModelError(f"larger than {MAX_JSON >> 20} MiB", where=str(file))
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot be read: {str(error):.200}", where=str(file)) from None
    if not isinstance(content, dict):
        raise ModelError("expected a JSON object", where=str(file))
    return content


def sha256_of(files: Iterable[Path]) -> str:
    """Return one hash over the names and contents of several files."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name}\0{content_hash(file)}\0".encode())
    return digest.hexdigest()
