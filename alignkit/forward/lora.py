"""Compute a LoRA layer as one matrix product, y = x (W + s B A)ᵀ: PEFT's function, up to rounding.

PEFT adds s (x Aᵀ) Bᵀ to x Wᵀ. On a CPU that costs two thin products and three passes over the
output, besides the one product that matters. Here B A (r * in * out multiplications, whatever the
number of tokens) is added to the weight for the duration of the product, in the forward and again
in the backward; no merged weight is kept. In fp32 the result changes by rounding only. In half
precision W + s B A would round most of B A away, so those layers stay as PEFT has them.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

MERGEABLE_LAYERS = ("Linear", "Linear4bit")
FEWEST_TOKENS = 64  # below this the merge costs more than the two thin products


def fuse_lora(model: nn.Module) -> None:
    """Give every LoRA layer in `model` the one-product forward; adapters stay PEFT's own."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module, nn.Module):
            module.forward = MethodType(_forward, module)


def split_lora(model: nn.Module) -> None:
    """Restore PEFT's own forward in every LoRA layer."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module, nn.Module):
            module.__dict__.pop("forward", None)


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return the output (…, out) for x (…, in); use PEFT's forward where merging is not exact."""
    name = None if args or kwargs else _mergeable_adapter(layer, x)
    if name is None:
        output: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return output
    merged: Any = _MergedLora.apply
    weights = layer.lora_A[name].weight, layer.lora_B[name].weight
    result: Tensor = merged(x, *weights, layer.base_layer, layer.scaling[name])
    return result


def _mergeable_adapter(layer: Any, x: Tensor) -> str | None:
    """Return the one active adapter if it is plain LoRA on frozen fp32 CPU weights, else None."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(active) != 1:
        return None
    name: str = active[0]
    base, dropout = layer.base_layer, layer.lora_dropout[name]
    plain = (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() >= FEWEST_TOKENS * x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
        and not (layer.training and getattr(dropout, "p", 0.0) > 0)
        and name not in layer.lora_variant
        and not layer.lora_bias.get(name)
        and layer.lora_A[name].weight.dtype == torch.float32
        and not base.weight.requires_grad
        and _is_fp32(base)
    )
    return name if plain else None


def _is_fp32(base: Any) -> bool:
    """Return whether a base layer multiplies in fp32."""
    kind = type(base).__name__
    if kind == "Linear4bit":
        computes: bool = base.compute_dtype == torch.float32
        return computes
    return kind == "Linear" and base.weight.dtype == torch.float32


def _merged_weight(base: Any, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Return W + s B A, (out, in)."""
    weight = dequantize_module_weight(base).detach()
    # In place only on a dequantized copy; a plain W is shared with every other adapter.
    if weight.data_ptr() == base.weight.data_ptr():
        return torch.addmm(weight, b, a, alpha=scaling)
    return weight.to(a.dtype).addmm_(b, a, alpha=scaling)


class _MergedLora(torch.autograd.Function):
    """y = x (W + s B A)ᵀ + bias, with gradients for x, A and B; W is frozen.

    With g = dL/dy: dL/dx = g (W + s B A); dL/dA = s (g B)ᵀ x; dL/dB = s gᵀ (x Aᵀ).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, base: Any, scaling: float) -> Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.base, ctx.scaling = base, scaling
        return nn.functional.linear(x, _merged_weight(base, a, b, scaling), base.bias)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b = ctx.saved_tensors
        wants_x, wants_a, wants_b = ctx.needs_input_grad[:3]
        dy, inputs = incoming[0].flatten(0, -2), x.flatten(0, -2)
        dx = da = db = None
        if wants_x:
            dx = torch.mm(dy, _merged_weight(ctx.base, a, b, ctx.scaling)).view_as(x)
        if wants_a:
            da = torch.mm(torch.mm(dy, b).t(), inputs).mul_(ctx.scaling)
        if wants_b:
            db = torch.mm(dy.t(), torch.mm(inputs, a.t())).mul_(ctx.scaling)
        return dx, da, db, None, None
