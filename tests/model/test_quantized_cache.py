"""A kept base is the quantized one to the bit, and never used when it is not whole."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.model import quantized_cache as quantized_base
from alignkit.model.backbone import Backbone
from alignkit.recipe.settings import BackboneConfig


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(quantized_base, "FEWEST_WEIGHTS", 1)
    return tmp_path / "cache" / "bases"


@pytest.fixture
def quantized(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each weight matrix that was quantized."""
    import bitsandbytes as bnb

    seen: list[int] = []
    own = bnb.functional.quantize_4bit

    def noting(weight: torch.Tensor, *rest: Any, **settings: Any) -> Any:
        seen.append(weight.numel())
        return own(weight, *rest, **settings)

    monkeypatch.setattr(bnb.functional, "quantize_4bit", noting)
    return seen


def load(model: Path, **settings: Any) -> Backbone:
    return Backbone.load(BackboneConfig(model_name_or_path=str(model), **settings))


def contents(backbone: Backbone) -> dict[str, torch.Tensor]:
    """Every tensor that is computed with, the quantization's own included."""
    found = dict(backbone.base.state_dict())
    for name, module in backbone.base.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            found |= {f"{name}:{k}": v for k, v in state.as_dict(packed=False).items()}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("shape", ["llama", "qwen2"])
def test_the_second_load_quantizes_nothing_and_is_the_same_to_the_bit(
    tiny_model, cache, quantized, shape
):
    first = load(tiny_model(shape))
    assert len(quantized) == 14
    again = load(tiny_model(shape))
    assert len(quantized) == 14
    left, right = contents(first), contents(again)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert first.fingerprint == again.fingerprint
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(first.base(ids).logits, again.base(ids).logits)


def test_what_changes_the_weights_changes_the_place(tiny_model, cache, quantized):
    load(tiny_model("llama"))
    load(tiny_model("qwen2"))
    load(tiny_model("llama"), dtype="bfloat16")
    assert len(list(cache.iterdir())) == 3
    load(tiny_model("llama"), quantization="none")
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("harm", ["flip", "cut", "missing", "list", "link"])
def test_a_base_that_is_not_whole_is_quantized_anew(tiny_model, cache, quantized, harm, caplog):
    load(tiny_model("llama"))
    place = next(cache.iterdir())
    weights = place / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if harm == "flip":
        data[-9] ^= 1
        weights.write_bytes(data)
    elif harm == "cut":
        weights.write_bytes(data[:-1])
    elif harm == "missing":
        weights.unlink()
    elif harm == "list":
        (place / "kept.json").write_text(json.dumps({"files": {}}))
    else:
        moved = weights.rename(cache.parent / "elsewhere")
        weights.symlink_to(moved)
    with caplog.at_level(logging.WARNING, "alignkit.model.quantized_cache"):
        load(tiny_model("llama"))
    assert len(quantized) == 28
    assert "is quantized again" in caplog.text
    load(tiny_model("llama"))
    assert len(quantized) == 28


def test_small_bases_are_not_kept(tiny_model, cache, monkeypatch):
    monkeypatch.setattr(quantized_base, "FEWEST_WEIGHTS", 10**6)
    load(tiny_model("llama"))
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_costs_a_warning(tiny_model, cache, caplog):
    cache.parent.write_text("a file where the directory would be")
    with caplog.at_level(logging.WARNING, "alignkit.model.quantized_cache"):
        load(tiny_model("llama"))
    assert "was not saved" in caplog.text


def test_what_is_kept_is_for_its_owner_alone(tiny_model, cache):
    load(tiny_model("llama"))
    place = next(cache.iterdir())
    assert os.stat(place).st_mode & 0o077 == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in place.iterdir())
