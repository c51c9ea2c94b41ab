"""A lean decoding loop for Llama-shaped models: merged weights, preallocated cache, no overhead.

`decoder_for` looks at a transformers model (PEFT-wrapped or not) and returns a `Decoder` when it
knows every part of it: llama, mistral, qwen2 and qwen3 with full attention and static RoPE. It
returns the reason, as a string, when it does not; callers then use transformers' own `generate`.

With `merge=True` each linear layer becomes one dense matrix for the life of the decoder: base
weight (dequantized) plus the active adapters' deltas, with q|k|v and gate|up fused. The copy dies
with the decoder. With `merge=False` the layers run as they are, at no memory cost. No sampling
happens here; that is generation.py's part.
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
    """One transformer layer, its linear parts already merged or left as modules."""

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
    heads: int
    kv_heads: int
    head_dim: int
    scaling: float


class KeyValueCache:
    """Keys and values of every layer, allocated once: (rows, kv_heads, capacity, head_dim)."""

    def __init__(self, layers: int, rows: int, capacity: int, shape: Shape, like: Tensor) -> None:
        size = (rows, shape.kv_heads, capacity, shape.head_dim)
        self.keys = [like.new_empty(size) for _ in range(layers)]
        self.values = [like.new_empty(size) for _ in range(layers)]
        self.length = 0

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) the given rows, in this order."""
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                kept = tensor.new_empty((len(rows), *tensor.shape[1:]))
                kept[:, :, : self.length] = tensor[rows, :, : self.length]
                tensors[layer] = kept


class Decoder:
    """Logits of the next token, for rows that grow in step; their cache is padded on the left."""

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
        self.padding: Tensor  # (rows,): how many left-pad positions each row has
        self.is_padded: bool
        self.turns: tuple[Tensor, Tensor]  # cos and sin by position, (capacity, head_dim)

    def prefill(self, prompts: Sequence[Sequence[int]], room: int, device: torch.device) -> Tensor:
        """Read prompts (token ids) and leave room for more; logits (rows, vocab) of the next.

        They stand behind each other in one row, so that nothing is padded but the cache.
        """
        lengths = [len(prompt) for prompt in prompts]
        width = max(lengths)
        ids = torch.tensor([[token for prompt in prompts for token in prompt]], device=device)
        hidden = self.embed(ids).to(self.dtype)
        self.cache = KeyValueCache(len(self.blocks), len(prompts), width + room, self.shape, hidden)
        self.padding = torch.tensor([width - length for length in lengths], device=device)
        self.is_padded = min(lengths) < width
        cos, sin = self.rotary(hidden, torch.arange(width + room, device=device)[None])
        self.turns = (cos[0], sin[0])
        places = torch.cat([torch.arange(length) for length in lengths])[None].to(device)
        ends = torch.tensor(lengths).cumsum(0).to(device) - 1
        attend = partial(self._attend_prompts, lengths=lengths)
        logits = self._run(hidden, places, attend, ends)
        self.cache.length = width
        return logits

    def step(self, ids: Tensor) -> Tensor:
        """Append one token to each row (rows,); logits (rows, vocab) of the next."""
        hidden = self.embed(ids[:, None]).to(self.dtype)
        width = self.cache.length + 1
        bias = None
        if self.is_padded:
            hidden_keys = torch.arange(width, device=ids.device) < self.padding[:, None]
            bias = hidden.new_zeros(len(ids), 1, 1, width)
            bias.masked_fill_(hidden_keys[:, None, None, :], float("-inf"))
        places = (self.cache.length - self.padding)[:, None]
        logits = self._run(hidden, places, partial(self._attend_token, bias=bias))
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
        places: Tensor,
        attend: Callable[[int, Tensor], Tensor],
        read: Tensor | None = None,
    ) -> Tensor:
        """Logits (rows, vocab) of hidden (rows, 1, h), or of tokens `read` of (1, tokens, h)."""
        cos, sin = (turn[places][:, :, None] for turn in self.turns)
        for index, block in enumerate(self.blocks):
            mixed = attend(index, self._heads(block, block.attention_norm(hidden), cos, sin))
            if read is not None and index == len(self.blocks) - 1:
                hidden, mixed = hidden[:, read], mixed[:, read]
            hidden = hidden + block.output(mixed)
            gate, up = block.gate_up(block.mlp_norm(hidden)).chunk(2, dim=-1)
            hidden = hidden + block.down(block.activation(gate) * up)
        return self.head(self.norm(hidden.flatten(0, 1)))

    def _heads(self, block: Block, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries, keys (both rotated) and values: (rows, width, heads + 2 kv_heads, head_dim)."""
        shape = self.shape
        qkv = block.qkv(hidden)
        qkv = qkv.view(*qkv.shape[:2], -1, shape.head_dim)
        turned = qkv[:, :, : shape.heads + shape.kv_heads]
        if block.head_norms is not None:
            query_norm, key_norm = block.head_norms
            turned = torch.cat(
                [query_norm(turned[:, :, : shape.heads]), key_norm(turned[:, :, shape.heads :])], 2
            )
        first, second = turned.chunk(2, dim=-1)
        turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
        return torch.cat([turned, qkv[:, :, shape.heads + shape.kv_heads :]], dim=2)

    def _attend_prompts(self, index: int, qkv: Tensor, lengths: Sequence[int]) -> Tensor:
        """Each prompt on itself; keys and values go where its row of the cache ends."""
        sizes = [self.shape.heads, self.shape.kv_heads, self.shape.kv_heads]
        keys, values, width = self.cache.keys[index], self.cache.values[index], max(lengths)
        outputs = []
        for row, part in enumerate(torch.split(qkv.transpose(1, 2), list(lengths), dim=2)):
            query, key, value = torch.split(part, sizes, dim=1)
            start = width - lengths[row]
            for cached, new in ((keys, key), (values, value)):
                cached[row, :, :start] = 0  # masked later, and what is masked must be a number
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
        """One query a row: two small matrix products beat the general kernel on a CPU."""
        sizes = [self.shape.heads, self.shape.kv_heads, self.shape.kv_heads]
        query, key, value = torch.split(qkv.transpose(1, 2), sizes, dim=1)
        width = self.cache.length + 1
        keys, values = self.cache.keys[index], self.cache.values[index]
        keys[:, :, width - 1 : width] = key
        values[:, :, width - 1 : width] = value
        keys, values = keys[:, :, :width], values[:, :, :width]
        grouped = query.reshape(len(query), self.shape.kv_heads, -1, self.shape.head_dim)
        scores = grouped @ keys.transpose(2, 3) * self.shape.scaling
        if bias is not None:
            scores = scores + bias
        weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        return (weights @ values).flatten(1)[:, None]


def decoder_for(model: Any, *, merge: bool | None = None) -> Decoder | str:
    """A decoder for the model as it acts now (active adapters included), or why there is none.

    `merge=None` merges where that changes nothing but rounding and the dense copy is small beside
    the free memory; otherwise the layers run unmerged.
    """
    whole: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    reason = _unknown_part(whole)
    if reason:
        return reason
    body, head = whole.model, whole.lm_head
    if merge is None:
        merge = _can_merge(body, head) and _fits(body, whole.device)
    dense = merge and _can_merge(body, head)
    attention = body.layers[0].self_attn
    shape = Shape(
        heads=whole.config.num_attention_heads,
        kv_heads=whole.config.num_key_value_heads,
        head_dim=attention.head_dim,
        scaling=attention.scaling,
    )
    blocks = [_block(layer, whole.config.model_type, dense) for layer in body.layers]
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
    config = model.config
    if config.model_type not in KNOWN_MODELS:
        return f"model type {config.model_type!r} is not one of {', '.join(KNOWN_MODELS)}"
    if model.model.rotary_emb.rope_type not in STATIC_ROPE:
        return f"RoPE type {model.model.rotary_emb.rope_type!r} changes with the length"
    # Qwen configurations name a window even where no layer uses it; layer_types is the truth.
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
    """The modules side by side as one layer: one matrix if `dense`, else each as it is."""
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
    """The output projection; as one matrix it is multiplied by blocks, upcast on the way."""
    if not dense:
        return module
    weight, bias = _merged(module)
    return partial(project, weight=weight, bias=bias)


def _merged(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias with the active adapters folded in, in the compute dtype."""
    adapted = isinstance(module, LoraLayer)
    base: Any = module.base_layer if adapted else module
    weight = dequantize_module_weight(base).detach()
    bias = None if base.bias is None else base.bias.detach()
    names = _active(module) if adapted and not module.disable_adapters else []
    if not names:
        return weight, bias
    deltas = [module.get_delta_weight(name) for name in names]
    return (weight.float() + sum(delta.float() for delta in deltas)).to(weight.dtype), bias


def _active(module: Any) -> list[str]:
    return [name for name in module.active_adapters if name in module.lora_A]


def _can_merge(body: Any, head: nn.Module) -> bool:
    """Whether folding the adapters in changes rounding only: no int8 activations, no DoRA."""
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
    """Whether a dense copy of the layers takes at most `share` of the memory that is free."""
    width = body.norm.weight.element_size()
    numbers = 0
    for module in body.layers[0].modules():
        if isinstance(module, nn.Linear):
            numbers += module.in_features * module.out_features
    return numbers * width * len(body.layers) <= share * free_memory(device)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device, near enough."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return int(psutil.virtual_memory().available)
