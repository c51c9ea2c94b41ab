"""Check that a model's files hold what its architecture needs, by loading tensors without contents.

transformers gives a weight that it does not find random values, and ignores one that it does not
know. Here it loads, under its own rules for renamed and merged weights, tensors that have sizes but
no contents. That takes a fraction of a second for any model, before a byte of the real weights is
read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from alignkit.errors import ModelError, RecipeError
from alignkit.model.files import (
    CONFIG,
    EMBEDDED,
    ModelFiles,
    StoredTensor,
    obeyed_settings,
    read_json,
    staged,
    stored_tensors,
    weight_files,
)

ALL_LINEAR = ("all-linear",)
SHOWN = 3
HELD = 2_000  # keys compared to find a prefix
LONGEST_PART = 4  # most names between dots that a wrapper adds to a key
MAX_BUFFERS = 4 << 30
MAX_EXPERTS = 1 << 16
DEPTH = re.compile(r"num_hidden_layers|n(um)?_layers?|depth|(num_)?(en|de)coder_layers|n_block")
EXPERTS = re.compile(r"(num|n|num_local|n_routed|n_shared)_experts")
# Building a model from a configuration fails in as many ways as there are settings in it.
UNBUILDABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
OTHER_HEADS = re.compile(r"(model\.)?(score|classifier|qa_outputs)\.")
OTHER_TASK = re.compile(r"For(SequenceClassification|TokenClassification|QuestionAnswering)$")
# Tables that old checkpoints store and later versions compute.
COMPUTED = re.compile(r"(^|\.)(inv_freq|masked_bias|position_ids)$")
INDEX = re.compile(r"(?<=\.)\d+(?=\.)")
FIRST_LAYER = re.compile(r"([^0-9]*?)\.?\w+\.0")
QUANTIZED_4BIT = re.compile(
    r"\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+)$"
)
QUANTIZED_8BIT = re.compile(r"\.(SCB|weight_format)$")
RENAME = (
    'python -c "import sys; from safetensors.torch import load_file, save_file; '
    "save_file({{k.replace('{part}', '', 1): v for k, v in load_file(sys.argv[1]).items()}}, "
    "sys.argv[2], {{'format': 'pt'}})\" {file} renamed.safetensors"
)


@dataclass(frozen=True)
class Fit:
    """What an architecture needs and what the files hold, by name.

    `needed` is how many tensors the architecture has. `misshapen` are (name, sizes in the files,
    sizes needed). `layers` are the modules that can have an adapter. `trunks` are modules that hold
    a list of layers; whatever else they hold is another tower or head.
    """

    architecture: str
    needed: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    modules: frozenset[str]
    trunks: frozenset[str]
    layers: tuple[str, ...]


def check_architecture(files: ModelFiles, targets: Sequence[str]) -> None:
    """Raise ModelError for files that do not fit, RecipeError for target layers that do not exist.

    The embedded model is known to fit.
    """
    if files.path in EMBEDDED.values() and tuple(targets) == ALL_LINEAR:
        return
    check_targets(targets, check_fit(files).layers)


def check_fit(files: ModelFiles) -> Fit:
    """Return how the files fit the architecture. Raises ModelError naming what does not."""
    return _fit(files, files.fingerprint)


@lru_cache(maxsize=8)
def _fit(files: ModelFiles, fingerprint: str) -> Fit:
    """Do the same, once per content."""
    del fingerprint  # only part of the cache's key
    stored = stored_tensors(files.path)
    fit = _load_without_contents(files, stored)
    check_complete(fit, files.path, stored)
    return fit


def check_complete(fit: Fit, path: Path, stored: Collection[str]) -> None:
    """Raise ModelError unless everything needed is there and nothing is left over.

    Heads and towers next to the language model may be left over; weights inside it may not.
    """
    head = _other_head(fit, path, stored)
    if head:
        raise ModelError(
            f"1 weight that {fit.architecture} needs is missing: lm_head.weight; the files hold "
            f"{head}, the head of another task",
            where=str(path),
            hint="Name the language model that it was made from",
        )
    if fit.missing:
        raise ModelError(
            f"{len(fit.missing):,} of {fit.needed:,} weights that {fit.architecture} needs are "
            f"missing: {_some(fit.missing)}",
            where=str(path),
            hint=_reason(fit, path, stored),
        )
    if fit.misshapen:
        name, stored_shape, needed_shape = fit.misshapen[0]
        more = f", and {len(fit.misshapen) - 1:,} more" if len(fit.misshapen) > 1 else ""
        raise ModelError(
            f"{name} is {_sizes(stored_shape)} in the files, and {_sizes(needed_shape)} by "
            f"config.json{more}",
            where=str(path),
            hint="Take the config.json that belongs to these weights",
        )
    inside = [name for name in fit.unexpected if _is_inside(name, fit, path)]
    if inside:
        raise ModelError(
            f"{len(inside):,} weights have no place in {fit.architecture} as config.json describes "
            f"it: {_some(inside)}",
            where=str(path),
            hint=_layers_differ(stored, path)
            or "Take the config.json that belongs to these weights",
        )


def check_targets(targets: Iterable[str], layers: Collection[str]) -> list[str]:
    """Return the names of layers to adapt; one text may hold several between commas.

    Raise RecipeError for a name that no layer has, with the nearest names.
    """
    names = [name.strip() for text in targets for name in text.split(",") if name.strip()]
    if names == ["all-linear"]:
        return names
    layer_names = sorted({layer.rpartition(".")[2] for layer in layers})
    for name in names:
        if any(layer == name or layer.endswith(f".{name}") for layer in layers):
            continue
        near = get_close_matches(name, layer_names, n=len(layer_names), cutoff=0.4)
        listed = [*near, *(other for other in layer_names if other not in near)]
        raise RecipeError(
            f"lora_target_modules: no layer called {name!r} that can have an adapter",
            hint=f"This model has {', '.join(listed)}; all-linear means all of them",
        )
    if not names:
        raise RecipeError("lora_target_modules names no layer", hint="all-linear means all of them")
    return names


# --- trying --------------------------------------------------------------------------------------


def _load_without_contents(files: ModelFiles, stored: Mapping[str, StoredTensor]) -> Fit:
    """Load tensors of the stored sizes, on the device that keeps no contents."""
    import torch

    _refuse_giant(files.path, len(stored))
    with staged(files) as place:
        config = load_config(place, files)
    vars(config).pop("quantization_config", None)  # sizes are compared as before quantization
    kind = _model_class(config, files)
    shapes = {name: shape for name, shape in _logical_shapes(files.path, stored)}
    state = {
        name: torch.empty(shape, dtype=torch.bfloat16, device="meta")
        for name, shape in shapes.items()
    }
    with quiet_loading(), built_from(files.path):
        model, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            device_map={"": "meta"},
            dtype=torch.bfloat16,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    size = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if size > MAX_BUFFERS:
        raise ModelError(
            f"config.json asks for tables of {size >> 30:,} GiB besides the weights",
            where=str(files.path / CONFIG),
        )
    return fit_of(model, info)


def fit_of(model: Any, info: Mapping[str, Any]) -> Fit:
    """Return what transformers reports about a model it has loaded."""
    modules = frozenset(name for name, _ in model.named_modules())
    missing = info["missing_keys"]
    # If both of two tied weights are missing, report one: the files lack a single weight.
    tied = {one for one, other in model.all_tied_weights_keys.items() if other in missing}
    return Fit(
        architecture=type(model).__name__,
        needed=len(model.state_dict().keys() - model.all_tied_weights_keys.keys()),
        missing=tuple(sorted(missing - tied, key=_in_order)),
        unexpected=tuple(sorted(info["unexpected_keys"], key=_in_order)),
        misshapen=tuple(
            (name, tuple(stored), tuple(needed))
            for name, stored, needed in sorted(info["mismatched_keys"])
        ),
        modules=modules,
        trunks=frozenset(match[1] for name in modules if (match := FIRST_LAYER.fullmatch(name))),
        layers=adaptable_layers(model),
    )


def adaptable_layers(model: Any) -> tuple[str, ...]:
    """Return the names of layers that can have an adapter: all linear ones but the output layer.

    The head is left out because log-probs are computed from its own weights.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    names = []
    for name, module in model.named_modules():
        layer = getattr(module, "base_layer", module)  # an adapter may sit on it already
        if isinstance(layer, nn.Linear | Conv1D) and module is not head and ".lora_" not in name:
            names.append(name)
    return tuple(name for name in names if not name.endswith(".base_layer"))


def stored_quantization(files: ModelFiles) -> str | None:
    """Return how the weights in the files are quantized: nf4, int8, another name, or None."""
    settings = read_json(files.path / CONFIG)
    text = settings.get("text_config")
    inner = text.get("quantization_config") if isinstance(text, dict) else None
    stored = settings.get("quantization_config") or settings.get("compression_config") or inner
    if not stored:
        return None
    if not isinstance(stored, dict):
        return "something unknown"
    if stored.get("load_in_4bit") and stored.get("bnb_4bit_quant_type") == "nf4":
        return "nf4"
    return "int8" if stored.get("load_in_8bit") else str(stored.get("quant_method"))[:40]


def load_config(place: Path, files: ModelFiles) -> Any:
    """Return the configuration in a staged directory. Raises ModelError if it makes no sense."""
    from transformers import AutoConfig

    with built_from(files.path):
        return AutoConfig.from_pretrained(place, trust_remote_code=False)


def _model_class(config: Any, files: ModelFiles) -> Any:
    """Return transformers' own class of causal LM for a configuration."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{config.model_type} is not a causal language model",
            where=str(files.path / CONFIG),
            hint="Take a model that continues text",
        )
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


@contextmanager
def built_from(path: Path) -> Iterator[None]:
    """Turn a failure caused by a model's configuration or weights into a ModelError."""
    import torch

    try:
        yield
    except (ModelError, torch.OutOfMemoryError):
        raise
    except UNBUILDABLE as error:
        lines = str(error).strip().splitlines() or [""]
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise ModelError(f"cannot be loaded: {kind}{lines[0]:.300}", where=str(path)) from error


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep progress bars and tables of keys off the terminal: our errors say what is wrong."""
    from transformers.utils import logging as noise

    level, bar = noise.get_verbosity(), noise.is_progress_bar_enabled()
    noise.set_verbosity_error()
    noise.disable_progress_bar()
    try:
        yield
    finally:
        noise.set_verbosity(level)
        if bar:
            noise.enable_progress_bar()


def _refuse_giant(path: Path, tensors: int) -> None:
    """Refuse layers that no file holds: they would be built one by one before they are missed."""
    for name, value in _numbers(obeyed_settings(path / CONFIG)):
        if value > tensors and DEPTH.fullmatch(name):
            raise ModelError(
                f"config.json asks for {value:,} layers ({name}), and the files hold {tensors:,} "
                "tensors",
                where=str(path),
                hint="Take the config.json that belongs to these weights",
            )
        if value > MAX_EXPERTS and EXPERTS.fullmatch(name):
            raise ModelError(f"config.json asks for {value:,} experts ({name})", where=str(path))


def _numbers(settings: Any) -> Iterator[tuple[str, int]]:
    """Yield whole numbers in settings by name, at any depth."""
    if isinstance(settings, list):
        for each in settings:
            yield from _numbers(each)
    elif isinstance(settings, dict):
        for name, value in settings.items():
            if type(value) is int:
                yield name, value
            else:
                yield from _numbers(value)


def _logical_shapes(
    path: Path, stored: Mapping[str, StoredTensor]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and sizes as before quantization, without tensors that quantization added."""
    packed = {
        match.string[: match.start()] + ".weight": name
        for name in stored
        if (match := re.search(r"\.weight\.quant_state\.bitsandbytes__\w+$", name))
    }
    for name, tensor in stored.items():
        if QUANTIZED_4BIT.search(name):
            continue
        match = QUANTIZED_8BIT.search(name)
        if match and f"{name[: match.start()]}.weight" in stored:
            continue
        yield name, _packed_shape(path, packed[name]) if name in packed else tensor.shape


def _packed_shape(path: Path, state: str) -> tuple[int, ...]:
    """Return the sizes of a weight packed into 4 bits, from the JSON stored with it."""
    from safetensors import safe_open

    for file in weight_files(path):
        with safe_open(file, "numpy") as opened:
            if state in opened.keys():  # noqa: SIM118 (not a dict)
                try:
                    shape = json.loads(opened.get_tensor(state).tobytes())["shape"]
                    return tuple(int(size) for size in shape)
                except (ValueError, KeyError, TypeError):
                    break
    raise ModelError(f"{state} does not give the sizes of its weight", where=str(path))


# --- explaining ----------------------------------------------------------------------------------


def _reason(fit: Fit, path: Path, stored: Collection[str]) -> str:
    """Return what most likely became of the missing weights, and how to mend it."""
    if any(".lora_A." in name for name in stored):
        return "An adapter was saved with the model: merge it (merge_and_unload) and save it again"
    part, lacking = _wrapper(fit.missing, fit.unexpected)
    if part and lacking:
        return f"The keys in the files lack {part!r}: save the whole model, or add it to the keys"
    if part:
        files = [file.name for file in weight_files(path)]
        command = RENAME.format(part=part, file=files[0])
        more = " for each file, and edit the index" if len(files) > 1 else ""
        return (
            f"The keys in the files contain {part!r}, likely the prefix of a wrapper: save the "
            f"model inside it, or rename the keys{more}: {command}"
        )
    near = get_close_matches(fit.missing[0], fit.unexpected[:HELD], n=1, cutoff=0.6)
    if near:
        return f"The nearest name in the files is {near[0]}: were weights renamed?"
    return _layers_differ(stored, path) or (
        "The files are incomplete, or config.json belongs to another model"
    )


def _wrapper(missing: Collection[str], unexpected: Collection[str]) -> tuple[str, bool]:
    """Return the part by which most unexpected keys differ from missing ones; True if they lack it.

    A part counts when removing it from one key gives another: `module.` before all of them, or
    `_checkpoint_wrapped_module.` in the middle.
    """
    for longer, shorter, lacking in ((unexpected, missing, False), (missing, unexpected, True)):
        targets = set(shorter)
        seen: Counter[str] = Counter()
        for key in list(longer)[:HELD]:
            seen.update(part for part, rest in _parts_removed(key) if rest in targets)
        if seen:
            part, times = seen.most_common(1)[0]
            if 2 * times >= min(len(longer), HELD):
                return part, lacking
    return "", False


def _parts_removed(key: str) -> Iterator[tuple[str, str]]:
    """Yield (part, rest) for each run of names removed from a key."""
    names = key.split(".")
    for start in range(len(names) - 1):
        for end in range(start + 1, min(start + LONGEST_PART, len(names) - 1) + 1):
            yield ".".join(names[start:end]) + ".", ".".join(names[:start] + names[end:])


def _layers_differ(stored: Collection[str], path: Path) -> str:
    """Return `config.json asks for 40 layers, the files hold 30` if that is so, else nothing."""
    stored_layers = {int(match[0]) for name in stored if (match := INDEX.search(name))}
    config = obeyed_settings(path / CONFIG)
    text = config.get("text_config")
    configured = next(
        (
            value
            for settings in (config, text if isinstance(text, dict) else {})
            for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
            if isinstance(value := settings.get(name), int)
        ),
        None,
    )
    if not stored_layers or configured is None:
        return ""
    if configured != max(stored_layers) + 1:
        return (
            f"config.json asks for {configured:,} layers, the files hold "
            f"{max(stored_layers) + 1:,}: take the config.json that belongs to these weights"
        )
    gaps = sorted(set(range(configured)) - stored_layers)
    return f"Layer {gaps[0]} is not in the files: copy the model again" if gaps else ""


def _other_head(fit: Fit, path: Path, stored: Collection[str]) -> str:
    """Return the head of another task that a model has instead of a language model's."""
    if any(re.search(r"(^|\.)(lm_head|embed_out|output)\.weight$", name) for name in stored):
        return ""
    heads = [name for name in fit.unexpected if OTHER_HEADS.match(name)]
    if heads:
        return heads[0]
    kinds = obeyed_settings(path / CONFIG).get("architectures")
    kind = kinds[0] if isinstance(kinds, list) and kinds and isinstance(kinds[0], str) else ""
    return kind if OTHER_TASK.search(kind) else ""


def _is_inside(name: str, fit: Fit, path: Path) -> bool:
    """Return whether a key belongs to a module of the language model, not to one next to it."""
    if COMPUTED.search(name):
        return False
    holders = [name[: match.start()] for match in re.finditer(r"\.", name)]
    holder = max((each for each in holders if each in fit.modules), key=len, default="")
    return bool(holder) and holder not in fit.trunks and not _predicts_further(name, path)


def _predicts_further(name: str, path: Path) -> bool:
    """Return whether a key is of a layer after the last, for predicting tokens after the next."""
    config = obeyed_settings(path / CONFIG)
    extra, layers = config.get("num_nextn_predict_layers"), config.get("num_hidden_layers")
    match = INDEX.search(name)
    if not (isinstance(extra, int) and isinstance(layers, int) and match):
        return False
    return layers <= int(match[0]) < layers + extra


def _in_order(name: str) -> list[Any]:
    """Sort key that puts layer 2 before layer 10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]


def _some(names: Collection[str]) -> str:
    listed = list(names)
    more = f", and {len(listed) - SHOWN:,} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def _sizes(shape: Iterable[int]) -> str:
    return " by ".join(f"{size:,}" for size in shape) or "one number"
