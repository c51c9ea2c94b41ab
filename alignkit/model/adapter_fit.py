"""Fit an adapter from disk to a base in memory: every weight has its place, and none is the base's.

PEFT loads whatever names it finds, the base's own included, and ignores what has no place. Here the
two sets of names must be equal, or the adapter is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from alignkit.errors import ModelError
from alignkit.model.adapter_files import ALL as ALL_LINEAR
from alignkit.model.adapter_files import FACTOR, check_factors, own_weights, read_adapter_config
from alignkit.model.check import check_weights
from alignkit.model.fit import adaptable_layers
from alignkit.model.heads import ScalarHead
from alignkit.store.artifacts import verify_part


def read_adapter(directory: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Return an adapter's configuration and weights. Raises ModelError naming the broken file."""
    verify_part(directory)
    weights = directory / "adapter_model.safetensors"
    if not weights.exists():
        pickled = directory / "adapter_model.bin"
        if pickled.exists():
            raise ModelError(
                "pickle weights are refused, because loading them runs code",
                where=str(pickled),
                hint="convert them to safetensors where you trust their origin",
            )
        raise ModelError("no adapter_model.safetensors", where=str(directory))
    config = read_adapter_config(directory)
    check_weights([weights])
    layers = check_factors(directory, config)
    return LoraConfig(**config.settings(layers)), load_file(str(weights))


def check_layers(
    base: Any, config: LoraConfig, weights: Mapping[str, torch.Tensor], directory: Path
) -> None:
    """Raise ModelError unless the adapter has weights for exactly the layers that it names."""
    bare = [name.replace(".base_layer", "") for name, _ in base.named_modules()]
    if config.target_modules == ALL_LINEAR:
        named = set(adaptable_layers(base))
    else:
        named = {name for name in bare if check_target_module_exists(config, name) is True}
    has = {match["layer"] for key in weights if (match := FACTOR.fullmatch(key))}
    for layer in sorted(has - named):
        in_base = layer in bare
        raise ModelError(
            f"has weights for {layer}, which "
            + ("its target_modules do not name" if in_base else "its base does not have"),
            where=str(directory),
            hint=None if in_base else "Name the base it was trained on",
        )
    for layer in sorted(named - has):
        raise ModelError(
            f"lacks the weights of {layer}, which its target_modules name",
            where=str(directory),
            hint="Copy both of its files again from the same place",
        )


def drop_copies_of_the_base(base: Any, weights: dict[str, torch.Tensor], directory: Path) -> None:
    """Drop weights that are copies of the base's own. Raises ModelError for one that differs."""
    for key, layer in own_weights(directory).items():
        copy = weights.pop(key)
        own = _weight_named(base, layer)
        if own is None or own.shape != copy.shape or not _equal_values(own, copy):
            raise ModelError(
                f"holds a {layer} of its own, but the base is shared and cannot change",
                where=str(directory),
                hint="Merge the adapter into its base with PEFT, and name the merged model",
            )


def fill_adapter(
    model: Any, name: str, weights: Mapping[str, torch.Tensor], directory: Path
) -> None:
    """Copy weights into a fresh adapter. Raises ModelError unless every one has its place."""
    places = weights_of(model, name)
    for key in sorted(places.keys() ^ weights.keys()):
        problem = "there is no place for" if key in weights else "it lacks"
        raise ModelError(f"does not fit its base: {problem} {key}", where=str(directory))
    for key, value in weights.items():
        if value.shape != places[key].shape:
            raise ModelError(
                f"does not fit its base: {key} is {tuple(value.shape)}, expected "
                f"{tuple(places[key].shape)}",
                where=str(directory),
            )
    set_peft_model_state_dict(model, dict(weights), adapter_name=name)


def check_head(base: Any, head: ScalarHead, directory: Path) -> None:
    """Raise ModelError for a head that reads states of another size than the base's."""
    size = base.config.get_text_config().hidden_size
    if head.linear.in_features != size:
        raise ModelError(
            f"its head reads states of size {head.linear.in_features:,}; its base has {size:,}",
            where=str(directory),
        )


def weights_of(model: Any, name: str) -> dict[str, torch.Tensor]:
    """Return an adapter's own weights, without copies of the embedding or head it may sit on."""
    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(
        model, adapter_name=name, save_embedding_layers=False
    )
    return weights


def _weight_named(base: nn.Module, layer: str) -> torch.Tensor | None:
    """Return the weight of a layer of the base, under an adapter or not; None if there is none."""
    modules = dict(base.named_modules())
    module = modules.get(f"{layer}.base_layer", modules.get(layer))
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, torch.Tensor) else None


def _equal_values(own: torch.Tensor, copy: torch.Tensor) -> bool:
    """Return whether two weights are the same numbers, in the coarser of their dtypes."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        if torch.equal(own.detach().cpu().to(dtype), copy.to(dtype)):
            return True
    return False
