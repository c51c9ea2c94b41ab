"""Read an adapter made elsewhere by an allow-list of what its files may hold.

PEFT obeys whatever stands in an adapter_config.json: patterns that never end, a thousand copies of
a layer, an initialisation that rewrites the base. Only plain LoRA is read here, in fields of
bounded size, and only its own tensors, so nothing of the base can be overwritten.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from alignkit.errors import ModelError
from alignkit.model.files import StoredTensor, check_safetensors, read_json

FILE, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG = 4 << 20
FACTOR = re.compile(
    r"base_model\.model\.(?P<layer>.+)\."
    r"(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?P<part>\.weight|\.bias)?"
)
# PEFT saves the base's own embedding or head together with an adapter on it.
OWN_WEIGHT = re.compile(r"base_model\.model\.(?P<layer>.+?)(\.base_layer)?\.weight")
FLOATS = ("F64", "F32", "F16", "BF16")
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

PLAIN = r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$"
Name = Annotated[str, StringConstraints(pattern=PLAIN, max_length=256)]
Names = Annotated[list[Name], Field(max_length=100_000)]
Rank = Annotated[int, Field(ge=1, le=16_384)]
Alpha = Annotated[int | float, Field(gt=0, le=1_000_000)]
Layer = Annotated[int, Field(ge=0, lt=100_000)]


class AdapterConfig(BaseModel):
    """The fields of an adapter's configuration that are obeyed; all others must be empty."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"] | None = None
    r: Rank = 8
    lora_alpha: Alpha = 8
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | Name | Names | None = None
    exclude_modules: Name | Names | None = None
    layers_to_transform: Layer | Annotated[list[Layer], Field(max_length=100_000)] | None = None
    layers_pattern: Name | Names | None = None
    rank_pattern: Annotated[dict[Name, Rank], Field(max_length=100_000)] | None = None
    alpha_pattern: Annotated[dict[Name, Alpha], Field(max_length=100_000)] | None = None
    bias: Literal["none"] = "none"
    lora_bias: bool = False
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    init_lora_weights: bool | Literal["gaussian", "orthogonal", "eva"] = True

    # Where an adapter comes from, and settings of its initialisation, which is over when an adapter
    # is read. Never obeyed.
    auto_mapping: Any = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    peft_version: str | None = None
    inference_mode: bool = False
    megatron_core: Literal["megatron.core"] | None = None
    qalora_group_size: Any = None
    eva_config: Any = None
    loftq_config: Any = None
    runtime_config: Any = None

    def settings(self, layers: Iterable[str]) -> dict[str, Any]:
        """Return the arguments of PEFT's LoraConfig for this adapter with weights of `layers`.

        How weights are initialised does not matter to an adapter that has some, so it is left out.
        """
        names = self.target_modules or sorted(layers)
        return {
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": [names] if isinstance(names, str) and names != ALL else names,
            "exclude_modules": _listed(self.exclude_modules),
            "layers_to_transform": self.layers_to_transform,
            "layers_pattern": self.layers_pattern,
            "rank_pattern": dict(self.rank_pattern or {}),
            "alpha_pattern": dict(self.alpha_pattern or {}),
            "lora_bias": self.lora_bias,
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "fan_in_fan_out": self.fan_in_fan_out,
            "task_type": "CAUSAL_LM",
        }


ALL = "all-linear"


def read_adapter_config(directory: Path) -> AdapterConfig:
    """Return an adapter's configuration. Raises ModelError naming the field that is not allowed."""
    file = directory / FILE
    if file.is_file() and file.stat().st_size > MAX_CONFIG:
        raise ModelError(f"larger than {MAX_CONFIG >> 20} MiB", where=str(file))
    content = read_json(file)
    _refuse_other_kinds(content, file)
    try:
        config = AdapterConfig.model_validate(content)
    except ValidationError as error:
        raise _refusal(error, content, file) from None
    for name, value in (config.model_extra or {}).items():
        if value not in (None, False, [], {}, ""):
            raise ModelError(
                f"{name!r:.60} is {_shown(value)}, which alignkit does not know how to obey",
                where=str(file),
                hint="Merge the adapter into its base with PEFT, and name the merged model",
            )
    return config


def check_factors(directory: Path, config: AdapterConfig) -> dict[str, dict[str, StoredTensor]]:
    """Return the LoRA tensors of an adapter by layer, then kind (`lora_A`, …).

    Raise ModelError for a tensor that is not LoRA's, and for sizes that do not match the rank in
    the configuration. A tensor that may be a copy of a weight of the base is left to `own_weights`.
    """
    file = directory / WEIGHTS
    layers: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in check_safetensors(file).items():
        match = FACTOR.fullmatch(name)
        if match is None and OWN_WEIGHT.fullmatch(name):
            continue
        if match is None or tensor.dtype not in FLOATS:
            raise ModelError(
                f"{name:.200} ({tensor.dtype}) is not a weight of a LoRA adapter",
                where=str(file),
                hint="Merge the adapter into its base with PEFT, and name the merged model",
            )
        part = ".bias" if match["part"] == ".bias" else ""
        layers.setdefault(match["layer"], {})[match["kind"] + part] = tensor
    if not layers:
        raise ModelError("holds no LoRA weights", where=str(file))
    for layer, factors in layers.items():
        _check_factors_of(layer, factors, config, file)
    _check_ranks(layers, config, directory)
    return layers


def own_weights(directory: Path) -> dict[str, str]:
    """Map the names of the base's own weights in an adapter's file to their layers' names."""
    layers = {}
    for name in check_safetensors(directory / WEIGHTS):
        match = OWN_WEIGHT.fullmatch(name)
        if match and not FACTOR.fullmatch(name):
            layers[name] = match["layer"]
    return layers


def _check_factors_of(
    layer: str, factors: dict[str, StoredTensor], config: AdapterConfig, file: Path
) -> None:
    embedding = "lora_embedding_A" in factors
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    first, second = (factors.get(name) for name in names)
    if first is None or second is None:
        lost = names[0] if first is None else names[1]
        raise ModelError(f"{layer:.200} has no {lost}", where=str(file), hint="Copy it again")
    expected = {*names}
    expected |= {"lora_magnitude_vector"} if config.use_dora else set()
    expected |= {f"{names[1]}.bias"} if config.lora_bias and not embedding else set()
    other = sorted(factors.keys() ^ expected)
    if other:
        verb = "lacks" if other[0] in expected else "has a"
        raise ModelError(
            f"{layer:.200} {verb} {other[0]}, which contradicts {FILE}", where=str(file)
        )
    if len(first.shape) != 2 or len(second.shape) != 2 or first.shape[0] != second.shape[1]:
        raise ModelError(
            f"the factors of {layer:.200} are {first.shape} and {second.shape}: not a product",
            where=str(file),
            hint="Copy it again",
        )


def _check_ranks(
    layers: dict[str, dict[str, StoredTensor]], config: AdapterConfig, directory: Path
) -> None:
    """Refuse a rank that no weight has: PEFT would allocate it, and it could be any size."""
    stored = {tensor.shape[0] for each in layers.values() for tensor in _firsts(each)}
    configured = {config.r} if not config.rank_pattern else set(config.rank_pattern.values())
    for rank in sorted(configured - stored):
        raise ModelError(
            f"has rank {rank:,}, but the weights next to it have {_ranks(stored)}",
            where=str(directory / FILE),
            hint="Copy both files again from the same place",
        )


def _firsts(factors: dict[str, StoredTensor]) -> Iterable[StoredTensor]:
    return [factors[name] for name in ("lora_A", "lora_embedding_A") if name in factors]


def _ranks(ranks: Iterable[int]) -> str:
    return ", ".join(f"{rank:,}" for rank in sorted(ranks)[:3])


def _refuse_other_kinds(content: dict[str, Any], file: Path) -> None:
    """Name what is no LoRA, or would change the base, before any single field."""
    kind = content.get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"a {_shown(kind)} adapter; alignkit reads LoRA"
            if isinstance(kind, str)
            else "names no peft_type; alignkit reads LoRA",
            where=str(file),
            hint="Merge it into its base with PEFT, and name the merged model",
        )
    start = content.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_THE_BASE):
        raise ModelError(
            f"was started by {_shown(start)}, which changes the base, and all roles share it",
            where=str(file),
            hint="Save it with PEFT's path_initial_model_for_weight_conversion, or merge it",
        )
    pattern = content.get("target_modules")
    if isinstance(pattern, str) and pattern != ALL and not re.fullmatch(r"[A-Za-z0-9_.]+", pattern):
        raise ModelError(
            f"target_modules is a pattern ({_shown(pattern)}); alignkit takes names",
            where=str(file),
            hint="Give a list of the layers' names, such as [q_proj, v_proj]",
        )


def _refusal(error: ValidationError, content: dict[str, Any], file: Path) -> ModelError:
    """Return the error for the first field that is wrong."""
    first = error.errors()[0]
    field = str(first["loc"][0])
    value = f" is {_shown(content[field])}" if field in content else " is missing"
    return ModelError(
        f"{field}{value}: {first['msg'][:1].lower()}{first['msg'][1:]:.120}",
        where=str(file),
        hint="alignkit reads plain LoRA adapters; merge others into their base with PEFT",
    )


def _listed(value: str | list[str] | None) -> list[str] | None:
    return [value] if isinstance(value, str) else value


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=True)
    return text if len(text) <= 60 else text[:57] + "…"
