"""Decode token by token with little overhead, for Llama-shaped models.

`decoder_for` returns a `Decoder` when it recognises every part of a transformers model (wrapped by
PEFT or not): llama, mistral, qwen2 and qwen3 with full attention and static RoPE. Otherwise it
returns the reason as a string, and callers use transformers' own `generate`.

With `merge=True`, each linear layer becomes one dense matrix for the lifetime of the decoder: the
dequantized base weight plus the deltas of the active adapters, with q|k|v and gate|up fused. With
`merge=False` the layers run as they are, at no cost in memory. Sampling is in generation.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from alignkit.forward.half_embedding import HalfLinear, project
from alignkit.forward.lora import MERGEABLE_LAYERS

Layer = Callable[[Tensor], Tensor]

KNOWN_MODELS = ("llama", "mistral", "qwen2", "qwen3")
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
NORMED_HEADS = ("qwen3",)


@dataclass(frozen=True)
class Block:
    """One transformer layer; its linear parts are merged matrices or the model's own modules."""

    qkv: Layer
    output: Layer
    gate_up: Layer
    down: Layer
    attention_norm: Layer
    mlp_norm: Layer
    head_norms: tuple[Layer, Layer] | None
    activation: Layer


@dataclass(frozen=True)
class Shape:
    """The sizes of the attention, and the factor on its scores."""

    heads: int
    kv_heads: int
    head_dim: int
    scaling: float


class KeyValueCache:
    """Keys and values of every layer, allocated once: each (rows, kv_heads, capacity, head_dim)."""

    def __init__(self, layers: int, rows: int, capacity: int, shape: Shape, like: Tensor) -> None:
        size = (rows, shape.kv_heads, capacity, shape.head_dim)
        self.keys = [like.new_empty(size) for _ in range(layers)]
        self.values = [like.new_empty(size) for _ in range(layers)]
        self.length = 0

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) the given rows, in this order."""
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                # Copy the part that is filled, not the whole capacity.
                selected = tensor.new_empty((len(rows), *tensor.shape[1:]))
                selected[:, :, : self.length] = tensor[rows, :, : self.length]
                tensors[layer] = selected


class Decoder:
    """Computes the logits of the next token, for rows that grow together by one token per step.

    The cache is padded on the left, so that every row writes its next token to the same column.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        shape: Shape,
        embed: Layer,
        norm: Layer,
        head: Layer,
        rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        dtype: torch.dtype,
    ) -> None:
        self.blocks, self.shape = blocks, shape
        self.embed, self.norm, self.head, self.rotary, self.dtype = embed, norm, head, rotary, dtype
        self.cache: KeyValueCache
        self.padding: Tensor  # (rows,): left-pad positions of each row
        self.is_padded: bool
        self.rotations: tuple[Tensor, Tensor]  # cos and sin by position, (capacity, head_dim)

    def prefill(self, prompts: Sequence[Sequence[int]], room: int, device: torch.device) -> Tensor:
        """Read prompts (token ids) and return the logits (rows, vocab) of each one's next token.

        `room` is how many tokens the cache can take after the longest prompt.
        """
        lengths = [len(prompt) for prompt in prompts]
        width = max(lengths)
        # One row holds all prompts one after another, so only the cache is padded. Positions
        # restart at each prompt, and RoPE turns by position, not by column of the cache.
        ids = torch.tensor([[token for prompt in prompts for token in prompt]], device=device)
        hidden = self.embed(ids).to(self.dtype)
        self.cache = KeyValueCache(len(self.blocks), len(prompts), width + room, self.shape, hidden)
        self.padding = torch.tensor([width - length for length in lengths], device=device)
        self.is_padded = min(lengths) < width
        cos, sin = self.rotary(hidden, torch.arange(width + room, device=device)[None])
        self.rotations = (cos[0], sin[0])
        positions = torch.cat([torch.arange(length) for length in lengths])[None].to(device)
        ends = torch.tensor(lengths).cumsum(0).to(device) - 1
        attend = partial(self._attend_prompts, lengths=lengths)
        logits = self._run(hidden, positions, attend, ends)
        self.cache.length = width
        return logits

    def step(self, ids: Tensor) -> Tensor:
        """Append one token per row, (rows,), and return the logits (rows, vocab) of the next."""
        hidden = self.embed(ids[:, None]).to(self.dtype)
        width = self.cache.length + 1
        bias = None
        # Columns left of a row's first token are padding; without any, no mask is needed at all.
        if self.is_padded:
            hidden_keys = torch.arange(width, device=ids.device) < self.padding[:, None]
            bias = hidden.new_zeros(len(ids), 1, 1, width)
            bias.masked_fill_(hidden_keys[:, None, None, :], float("-inf"))
        # The new token's position: its column in the cache less the row's padding.
        positions = (self.cache.length - self.padding)[:, None]
        logits = self._run(hidden, positions, partial(self._attend_token, bias=bias))
        self.cache.length = width
        return logits

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) the given rows; the others have finished."""
        self.cache.select(rows)
        self.padding = self.padding[rows]
        self.is_padded = bool(self.padding.any())

    def _run(
        self,
        hidden: Tensor,
        positions: Tensor,
        attend: Callable[[int, Tensor], Tensor],
        ends: Tensor | None = None,
    ) -> Tensor:
        """Return logits (rows, vocab) of hidden (rows, 1, h), or of `ends` of (1, tokens, h)."""
        cos, sin = (angle[positions][:, :, None] for angle in self.rotations)
        for index, block in enumerate(self.blocks):
            mixed = attend(index, self._heads(block, block.attention_norm(hidden), cos, sin))
            # Only the last token of each prompt is needed, and nothing after the last attention
            # mixes tokens: drop the others before the last MLP and the head.
            if ends is not None and index == len(self.blocks) - 1:
                hidden, mixed = hidden[:, ends], mixed[:, ends]
            hidden = hidden + block.output(mixed)
            gate, up = block.gate_up(block.mlp_norm(hidden)).chunk(2, dim=-1)
            hidden = hidden + block.down(block.activation(gate) * up)
        return self.head(self.norm(hidden.flatten(0, 1)))

    def _heads(self, block: Block, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return rotated queries and keys, then values: (rows, width, heads + 2 kv_heads, d)."""
        shape = self.shape
        qkv = block.qkv(hidden)
        qkv = qkv.view(*qkv.shape[:2], -1, shape.head_dim)
        rotated = qkv[:, :, : shape.heads + shape.kv_heads]
        if block.head_norms is not None:  # normalise before the rotation, as qwen3 does
            query_norm, key_norm = block.head_norms
            rotated = torch.cat(
                [query_norm(rotated[:, :, : shape.heads]), key_norm(rotated[:, :, shape.heads :])],
                2,
            )
        # RoPE (arXiv:2104.09864, eq. 34) in transformers' layout: dimension i pairs with
        # i + head_dim / 2, not with i + 1.
        first, second = rotated.chunk(2, dim=-1)
        rotated = rotated * cos + torch.cat([-second, first], dim=-1) * sin
        return torch.cat([rotated, qkv[:, :, shape.heads + shape.kv_heads :]], dim=2)

    def _attend_prompts(self, index: int, qkv: Tensor, lengths: Sequence[int]) -> Tensor:
        """Let each prompt attend to itself; cache its keys and values, right-aligned in its row."""
        sizes = [self.shape.heads, self.shape.kv_heads, self.shape.kv_heads]
        keys, values, width = self.cache.keys[index], self.cache.values[index], max(lengths)
        outputs = []
        for row, part in enumerate(torch.split(qkv.transpose(1, 2), list(lengths), dim=2)):
            query, key, value = torch.split(part, sizes, dim=1)
            start = width - lengths[row]
            for cached, new in ((keys, key), (values, value)):
                # The mask adds -inf to the scores of padding; uninitialised memory could hold a
                # NaN, which no mask removes.
                cached[row, :, :start] = 0
                cached[row, :, start:width] = new[0]
            mixed = F.scaled_dot_product_attention(
                query,
                key,
                value,
                is_causal=True,
                scale=self.shape.scaling,
                enable_gqa=self.shape.heads != self.shape.kv_heads,
            )
            outputs.append(mixed.transpose(1, 2))
        return torch.cat(outputs, dim=1).flatten(2)

    def _attend_token(self, index: int, qkv: Tensor, bias: Tensor | None) -> Tensor:
        """Attend with one query per row: on a CPU two small products beat the general kernel."""
        sizes = [self.shape.heads, self.shape.kv_heads, self.shape.kv_heads]
        query, key, value = torch.split(qkv.transpose(1, 2), sizes, dim=1)
        width = self.cache.length + 1
        keys, values = self.cache.keys[index], self.cache.values[index]
        keys[:, :, width - 1 : width] = key
        values[:, :, width - 1 : width] = value
        keys, values = keys[:, :, :width], values[:, :, :width]
        # Grouped-query attention without copying keys: consecutive query heads share a key head.
        grouped = query.reshape(len(query), self.shape.kv_heads, -1, self.shape.head_dim)
        scores = grouped @ keys.transpose(2, 3) * self.shape.scaling
        if bias is not None:
            scores = scores + bias
        # The softmax is in fp32 whatever the dtype, as in transformers' eager attention.
        weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        return (weights @ values).flatten(1)[:, None]


def decoder_for(model: Any, *, merge: bool | None = None) -> Decoder | str:
    """Return a decoder for the model with the adapters active now, or the reason there is none.

    `merge=None` merges where that changes rounding only and the dense copy fits easily into free
    memory; otherwise the layers run unmerged.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    reason = _unknown_part(base)
    if reason:
        return reason
    body, head = base.model, base.lm_head
    if merge is None:
        merge = _can_merge(body, head) and _fits(body, base.device)
    dense = merge and _can_merge(body, head)
    attention = body.layers[0].self_attn
    shape = Shape(
        heads=base.config.num_attention_heads,
        kv_heads=base.config.num_key_value_heads,
        head_dim=attention.head_dim,
        scaling=attention.scaling,
    )
    blocks = [_block(layer, base.config.model_type, dense) for layer in body.layers]
    norm = body.norm
    return Decoder(
        blocks,
        shape,
        body.embed_tokens,
        norm,
        _head(head, dense),
        body.rotary_emb,
        norm.weight.dtype,
    )


def _unknown_part(model: Any) -> str | None:
    """Return the part of the model that the decoder does not implement, or None."""
    config = model.config
    if config.model_type not in KNOWN_MODELS:
        return f"model type {config.model_type!r} is not one of {', '.join(KNOWN_MODELS)}"
    if model.model.rotary_emb.rope_type not in STATIC_ROPE:
        return f"RoPE type {model.model.rotary_emb.rope_type!r} changes with the length"
    # Qwen configurations name a window even where no layer uses it; `layer_types` decides.
    windowed = (
        config.sliding_window is not None
        if config.model_type == "mistral"
        else config.model_type != "llama" and set(config.layer_types) != {"full_attention"}
    )
    return "sliding-window attention" if windowed else None


def _block(layer: Any, model_type: str, dense: bool) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    return Block(
        qkv=_linear([attention.q_proj, attention.k_proj, attention.v_proj], dense),
        output=_linear([attention.o_proj], dense),
        gate_up=_linear([mlp.gate_proj, mlp.up_proj], dense),
        down=_linear([mlp.down_proj], dense),
        attention_norm=layer.input_layernorm,
        mlp_norm=layer.post_attention_layernorm,
        head_norms=(attention.q_norm, attention.k_norm) if model_type in NORMED_HEADS else None,
        activation=mlp.act_fn,
    )


def _linear(modules: Sequence[nn.Module], dense: bool) -> Layer:
    """Join the modules side by side into one layer: one matrix if `dense`, else each as it is."""
    if not dense:
        if len(modules) == 1:
            return modules[0]
        return lambda hidden: torch.cat([module(hidden) for module in modules], dim=-1)
    parts = [_merged(module) for module in modules]
    if len(parts) == 1:
        weight, bias = parts[0]
        return partial(F.linear, weight=weight, bias=bias)
    biases = [bias for _, bias in parts if bias is not None]
    return partial(
        F.linear,
        weight=torch.cat([weight for weight, _ in parts]),
        bias=torch.cat(biases) if biases else None,
    )


def _head(module: nn.Module, dense: bool) -> Layer:
    """Return the output projection; a merged one is multiplied and upcast block by block."""
    if not dense:
        return module
    weight, bias = _merged(module)
    return partial(project, weight=weight, bias=bias)


def _merged(module: Any) -> tuple[Tensor, Tensor | None]:
    """Return weight (out, in) and bias with the active adapters folded in, in the compute dtype."""
    adapted = isinstance(module, LoraLayer)
    base: Any = module.base_layer if adapted else module
    weight = dequantize_module_weight(base).detach()
    bias = None if base.bias is None else base.bias.detach()
    names = _active(module) if adapted and not module.disable_adapters else []
    if not names:
        return weight, bias
    # Add in fp32 and round once: in half precision a small delta would be rounded away.
    deltas = [module.get_delta_weight(name) for name in names]
    return (weight.float() + sum(delta.float() for delta in deltas)).to(weight.dtype), bias


def _active(module: Any) -> list[str]:
    return [name for name in module.active_adapters if name in module.lora_A]


def _can_merge(body: Any, head: nn.Module) -> bool:
    """Return whether merging changes rounding only: no int8 activations, no DoRA."""
    linears = [
        module
        for layer in body.layers
        for part in (layer.self_attn, layer.mlp)
        for name, module in part.named_children()
        if name.endswith("_proj")
    ]
    return all(_mergeable(module) for module in [*linears, head])


def _mergeable(module: nn.Module) -> bool:
    if not isinstance(module, LoraLayer):
        return type(module).__name__ in MERGEABLE_LAYERS or type(module) is HalfLinear
    plain = not module.merged_adapters and not any(
        name in module.lora_variant or module.lora_bias.get(name) for name in _active(module)
    )
    return plain and type(module.get_base_layer()).__name__ in MERGEABLE_LAYERS


def _fits(body: Any, device: torch.device, share: float = 0.25) -> bool:
    """Return whether a dense copy of the layers takes at most `share` of the free memory."""
    width = body.norm.weight.element_size()
    numbers = 0  # of one layer; all layers have the same sizes
    for module in body.layers[0].modules():
        if isinstance(module, nn.Linear):
            numbers += module.in_features * module.out_features
    return numbers * width * len(body.layers) <= share * free_memory(device)


def free_memory(device: torch.device) -> int:
    """Return about how many bytes can still be allocated on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return int(psutil.virtual_memory().available)
