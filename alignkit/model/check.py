"""Check a model's files before anything is loaded or written.

A weight that is not finite or not there, a tokenizer without a chat template or with more tokens
than the model has rows, an architecture that nobody knows: each would end a run after minutes, or
spoil it without an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from alignkit.errors import ModelError, RecipeError
from alignkit.model.adapter_files import check_factors, read_adapter_config
from alignkit.model.files import (
    EMBEDDED,
    ModelFiles,
    StoredTensor,
    check_safetensors,
    read_json,
    stored_tensors,
    weight_files,
)
from alignkit.model.template_check import check_templates
from alignkit.model.tokenizer_check import check_tokenizer
from alignkit.store.content_hash import SMALL, content_hashes, recall, remember

EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in)\.weight$")
LORA = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
SIDES = {"A": "inputs", "B": "outputs"}
CHUNK = 16 << 20
MAX_TOKENIZER = 64 << 20
# By safetensors' name: the unsigned integer of a float's size, its bits without the sign, infinity.
FLOATS: dict[str, tuple[Any, int, int]] = {
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
    "F64": (np.uint64, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
    "F8_E5M2": (np.uint8, 0x7F, 0x7C),
}


def check_model(files: ModelFiles, chat_template: str | None) -> list[str]:
    """Raise ModelError for what loading would trip over; return lines about what is only odd."""
    check_templates(files.path, chat_template)
    if files.path in EMBEDDED.values():
        return []
    _check_kind(files.path)
    check_tokenizer(files.path)
    _check_vocabulary(files.path)
    check_weights(weight_files(files.path))
    return list(_oddities(files.path))


def check_weights(files: Sequence[Path]) -> None:
    """Raise ModelError naming the first weight that holds infinity or NaN."""
    for file, content in zip(files, content_hashes(files), strict=True):
        key = f"finite {content}"
        if recall(key) is None:
            _check_finite(file)
            if file.stat().st_size >= SMALL:
                remember(key, "yes")


def _check_finite(file: Path) -> None:
    tensors = check_safetensors(file)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        broken = threads.map(lambda each: _not_finite(file, each), tensors.values())
        for name, fault in zip(tensors, broken, strict=True):
            if fault:
                raise ModelError(
                    f"{name} holds values that are {fault}",
                    where=str(file),
                    hint="The training that made it diverged, or the file is damaged: take an "
                    "earlier one, or copy it again",
                )


def check_adapter(adapter: Path, base: ModelFiles) -> None:
    """Raise ModelError for an adapter that is not plain LoRA, is broken, or is another model's."""
    config = read_adapter_config(adapter)
    check_weights(sorted(adapter.glob("*.safetensors")))
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        return
    _check_sizes(adapter, weights, base)
    check_factors(adapter, config)


def _check_sizes(adapter: Path, weights: Path, base: ModelFiles) -> None:
    """Raise ModelError for an adapter of a model with other sizes."""
    sizes = {name: tensor.shape for name, tensor in stored_tensors(base.path).items()}
    for name, tensor in check_safetensors(weights).items():
        match = LORA.fullmatch(name)
        layer = sizes.get(f"{match['layer']}.weight", ()) if match else ()
        if match is None or len(layer) != 2 or len(tensor.shape) != 2:
            continue
        # Some models store a layer as outputs by inputs, some the other way round.
        has = tensor.shape[1 if match["side"] == "A" else 0]
        if has not in layer:
            base_name = read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
            raise ModelError(
                f"this adapter is for {base_name or 'another model'}, whose {match['layer']} has "
                f"{has:,} {SIDES[match['side']]}; that of {base.name} is {layer[0]:,} by "
                f"{layer[1]:,}",
                where=str(adapter),
                hint="Take the base it was trained on, or train it again",
            )


def check_kernels(quantization: str) -> None:
    """Raise RecipeError when the library that quantizes the backbone is not installed."""
    if quantization != "none" and find_spec("bitsandbytes") is None:
        raise RecipeError(
            f"quantization {quantization} needs bitsandbytes, which is not installed",
            hint="pip install bitsandbytes, or set quantization: none",
        )


def _not_finite(file: Path, tensor: StoredTensor) -> str:
    """Return what some values of a tensor are instead of finite, or an empty string."""
    if tensor.dtype not in FLOATS:
        return ""
    kind, bits, infinity = FLOATS[tensor.dtype]
    # IEEE floats without their sign sort like integers: infinity, then every NaN above it.
    largest = kind(0)
    with file.open("rb") as stream:
        stream.seek(tensor.begin)
        for start in range(tensor.begin, tensor.end, CHUNK):
            raw = stream.read(min(CHUNK, tensor.end - start))
            values = np.frombuffer(raw, kind)
            if values.size:
                largest = max(largest, (values & kind(bits)).max())
    if largest > infinity:
        return "not a number"
    return "infinite" if largest == infinity else ""


def _check_kind(model: Path) -> None:
    """Refuse a model that only its own code can build: that code is never run."""
    config = read_json(model / "config.json")
    if "auto_map" not in config:
        return
    from transformers import CONFIG_MAPPING

    if config.get("model_type") not in CONFIG_MAPPING:
        raise ModelError(
            "this model needs code of its own, which is never run",
            where=str(model / "config.json"),
            hint="choose an architecture that transformers knows",
        )


def _check_vocabulary(model: Path) -> None:
    """Raise ModelError unless every token has its row of the embedding."""
    tokens, rows = _tokens(model / "tokenizer.json"), _embedding_rows(model)
    if tokens and rows and tokens > rows:
        raise ModelError(
            f"the tokenizer has {tokens:,} tokens, the model's embedding {rows:,} rows",
            where=str(model),
            hint="Use the tokenizer that belongs to this model",
        )


def _tokens(path: Path) -> int:
    """Return one more than the highest id of a tokenizer; 0 when the file does not say."""
    if not path.is_file() or path.stat().st_size > MAX_TOKENIZER:
        return 0
    content = read_json(path)
    core = content.get("model")
    vocabulary = core.get("vocab") if isinstance(core, dict) else None
    ids: list[Any] = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    if isinstance(vocabulary, list):
        ids = [len(vocabulary) - 1]
    added = content.get("added_tokens")
    ids += [entry.get("id") for entry in _objects(added)]
    return 1 + max((value for value in ids if type(value) is int), default=-1)


def _embedding_rows(model: Path) -> int:
    for name, tensor in stored_tensors(model).items():
        if EMBEDDING.search(name) and tensor.shape:
            return tensor.shape[0]
    return 0


def _oddities(model: Path) -> Iterator[str]:
    path = model / "tokenizer_config.json"
    if not path.is_file():
        return
    config = read_json(path)
    pad, eos = (_token(config.get(name)) for name in ("pad_token", "eos_token"))
    if eos and pad == eos:
        yield (
            f"{path}: padding and the end of a completion are one token, {eos}. alignkit trains "
            "the end of every completion by its position; a tool that ignores padding by its id "
            "may train a model whose completions never end"
        )


def _token(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _objects(value: Any) -> Iterable[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
