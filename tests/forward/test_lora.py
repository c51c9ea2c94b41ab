"""The one-product LoRA layer is PEFT's own layer: outputs, gradients, and when it steps aside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from alignkit.forward.lora import FEWEST_TOKENS, fuse_lora, split_lora
from alignkit.model.backbone import Backbone
from alignkit.recipe.settings import BackboneConfig

TOKENS = 96


def layer(*, quantized: bool = False, bias: bool = True, **settings: Any) -> Any:
    """A LoRA layer of 32 inputs and 48 outputs with adapters `default` and `other`, B not zero."""
    torch.manual_seed(3)
    plain: nn.Module = nn.Linear(32, 48, bias=bias)
    if quantized:
        import bitsandbytes as bnb

        stored = bnb.nn.Linear4bit(32, 48, bias=bias, compute_dtype=torch.float32, quant_type="nf4")
        stored.load_state_dict(plain.state_dict())
        stored.weight = stored.weight._quantize("cpu")
        stored.support_avx512bf16_for_cpu = False
        plain = stored
    model = get_peft_model(
        nn.Sequential(plain).requires_grad_(False),
        LoraConfig(r=4, lora_alpha=6, target_modules=["0"], **settings),
    )
    model.add_adapter("other", LoraConfig(r=2, lora_alpha=3, target_modules=["0"], **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def answers(model: Any, tokens: int = TOKENS) -> dict[str, torch.Tensor]:
    """Output and gradients of a fixed input under a fixed slope."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, tokens // 2, 32, generator=generator).requires_grad_()
    out = model(x)
    out.backward(torch.randn(out.shape, generator=generator))
    found = {"out": out.detach(), "x": x.grad}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad
    model.zero_grad(set_to_none=True)
    return found


def steps(model: Any, tokens: int = TOKENS) -> bool:
    """Whether the output of the layer came from the one-product forward."""
    function = model(torch.zeros(1, tokens, 32, requires_grad=True)).grad_fn
    return "MergedLora" in type(function).__name__


def assert_alike(fused: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> None:
    assert fused.keys() == own.keys()
    for name, expected in own.items():
        assert float((fused[name] - expected).norm() / expected.norm()) < 2e-6, name


@pytest.mark.parametrize("adapter", ["default", "other"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("quantized", [False, True], ids=["dense", "nf4"])
def test_outputs_and_gradients_are_pefts(quantized, bias, adapter):
    model = layer(quantized=quantized, bias=bias)
    model.set_adapter(adapter)
    own = answers(model)
    fuse_lora(model)
    assert steps(model)
    assert_alike(answers(model), own)
    assert len(own) == 4  # out, x, A, B
    split_lora(model)
    assert not steps(model)


def test_the_base_keeps_its_weights():
    model = layer()
    base = model.base_model.model[0].base_layer
    before = base.weight.clone()
    fuse_lora(model)
    answers(model)
    assert torch.equal(base.weight, before)


def test_a_frozen_adapter_passes_the_gradient_on_and_gets_none():
    model = layer()
    own = answers(model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(False)
    fuse_lora(model)
    found = answers(model)
    assert found.keys() == {"out", "x"}
    assert_alike(found, {name: own[name] for name in found})


@pytest.mark.parametrize(
    "change",
    ["disabled", "dropout", "dora", "few tokens", "autocast", "bf16", "trained base", "two active"],
)
def test_it_steps_aside_where_one_product_is_not_the_same(change):
    settings = {"dropout": {"lora_dropout": 0.5}, "dora": {"use_dora": True}}.get(change, {})
    model = layer(**settings).train()
    tokens = FEWEST_TOKENS - 2 if change == "few tokens" else TOKENS
    inner = model.base_model.model[0]
    if change == "bf16":
        model.to(torch.bfloat16)
        fuse_lora(model)
        assert model(torch.zeros(1, tokens, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
        return
    if change == "trained base":
        inner.base_layer.weight.requires_grad_(True)
    if change == "two active":
        model.base_model.set_adapter(["default", "other"])
    if change == "disabled":
        inner.enable_adapters(False)
    with torch.autocast("cpu", enabled=change == "autocast"):
        torch.manual_seed(1)
        own = answers(model, tokens)
        fuse_lora(model)
        assert not steps(model, tokens)
        torch.manual_seed(1)
        found = answers(model, tokens)
    assert all(torch.equal(found[name], own[name]) for name in own)


def test_dropout_in_evaluation_is_no_obstacle():
    model = layer(lora_dropout=0.5).eval()
    own = answers(model)
    fuse_lora(model)
    assert steps(model)
    assert_alike(answers(model), own)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_a_whole_model_has_pefts_gradients(tiny_model, quantization, checkpointing):
    config = BackboneConfig(
        model_name_or_path=str(tiny_model("qwen2")), quantization=quantization, lora_r=4
    )
    backbone = Backbone.load(config)
    backbone.new_adapter("default", seed=0)
    with torch.no_grad():
        for name, parameter in backbone.parameters_of("default").items():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(3, 3 + 80)[None]

    def gradients() -> dict[str, torch.Tensor]:
        with backbone.training("default") as model:
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            model(ids, labels=ids).loss.backward()
            model.gradient_checkpointing_disable()
            found = {k: p.grad.clone() for k, p in backbone.parameters_of("default").items()}
            model.zero_grad(set_to_none=True)
        return found

    fused = gradients()
    split_lora(backbone.model)
    own = gradients()
    assert len(own) == 28  # seven linear layers, two of them, A and B
    for name, expected in own.items():
        # This random model amplifies rounding: both are up to 5e-5 from float64's gradient.
        assert float((fused[name] - expected).norm() / expected.norm()) < 5e-4, name
