"""Store the embedding and the head in 16 bits and compute the same bits as in fp32.

Checkpoints come in bf16, and a CPU computes in fp32, which holds each of those values exactly: the
largest frozen weights need half the memory. The head is upcast block by block of its vocabulary. A
block stays in cache, and reading half the bytes from memory saves more time than upcasting costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 1024  # rows of the vocabulary multiplied at a time
FULL = torch.float32
HALVES = (torch.bfloat16, torch.float16)
# Architectures that only call their embedding and head, and never read the weights directly. Any
# other one is run before and after, and must give the same logits.
KNOWN_MODELS = ("llama", "mistral", "qwen2", "qwen3")
PROBE_TOKENS = 8


class HalfEmbedding(nn.Embedding):
    """An embedding stored in 16 bits that returns fp32."""

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.weight).float()


class HalfLinear(nn.Linear):
    """A head stored in 16 bits that multiplies in the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.is_autocast_enabled(input.device.type):
            return F.linear(input, self.weight.to(input.dtype), self.bias)
        return project(input, self.weight, self.bias)


def blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of the rows of `weight` (vocabulary, hidden) in `dtype`, each with its slice.

    Each block overwrites the one before. Only fp32 on a CPU is cut into blocks: in half precision,
    summing over blocks would round differently.
    """
    if weight.device.type != "cpu" or dtype != FULL:
        yield slice(None), weight.to(dtype)
        return
    room = None if weight.dtype == dtype else weight.new_empty(BLOCK, weight.shape[1], dtype=dtype)
    for start in range(0, len(weight), BLOCK):
        rows = weight[start : start + BLOCK]
        yield (
            slice(start, start + len(rows)),
            rows if room is None else room[: len(rows)].copy_(rows),
        )


@torch.no_grad()
def project(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply hidden (…, hidden) by a head (vocabulary, hidden): (…, vocabulary), same dtype."""
    flat = hidden.flatten(0, -2)
    logits = flat.new_empty(len(flat), len(weight))
    for part, rows in blocks(weight, flat.dtype):
        if bias is None:
            torch.mm(flat, rows.t(), out=logits[:, part])
        else:
            torch.addmm(bias[part], flat, rows.t(), out=logits[:, part])
    return logits.view(*hidden.shape[:-1], len(weight))


def store_in_half(model: Any) -> bool:
    """Store the frozen fp32 embedding and head of a causal LM in 16 bits where that loses nothing.

    Return whether anything changed. Tied weights stay one tensor. A weight stays in fp32 when 16
    bits cannot hold one of its values, when another module shares it, or when its module is of a
    class of the model's own.
    """
    needs_trial = model.config.model_type not in KNOWN_MODELS
    before = _trial_logits(model) if needs_trial else None
    changed = False
    for weight, owners in _weights(model):
        half = _exact_half(weight)
        if half is not None:
            _replace(model, owners, nn.Parameter(half, requires_grad=False))
            changed = True
    if changed and before is not None and not _same(before, _trial_logits(model)):
        store_in_full(model)
        return False
    return changed


def store_in_full(model: Any) -> None:
    """Restore plain fp32 modules, for code that trains or adapts the embedding or the head."""
    for weight, owners in _weights(model):
        if weight.dtype in HALVES:
            _replace(model, owners, nn.Parameter(weight.detach().float(), requires_grad=False))


def half_modules(model: nn.Module) -> list[str]:
    """Return the names of the modules stored in 16 bits."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, HalfEmbedding | HalfLinear)
    ]


def _weights(model: Any) -> list[tuple[nn.Parameter, list[nn.Module]]]:
    """Return the weights that a plain embedding or head holds, each with all of its owners."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    weights = []
    for weight in {id(end.weight): end.weight for end in ends if end is not None}.values():
        owners = [m for m in model.modules() if any(p is weight for p in m.parameters(False))]
        if all(any(owner is end for end in ends) and _is_plain(owner) for owner in owners):
            weights.append((weight, owners))
    return weights


def _is_plain(module: nn.Module) -> bool:
    if type(module) in (nn.Embedding, HalfEmbedding):
        return module.max_norm is None
    return type(module) in (nn.Linear, HalfLinear)


def _exact_half(weight: Tensor) -> Tensor | None:
    """Return the same numbers in 16 bits, or None when 16 bits cannot hold one of them."""
    if weight.dtype != FULL:
        return None
    for dtype in HALVES:
        if all(torch.equal(rows.to(dtype).float(), rows) for _, rows in blocks(weight, FULL)):
            return weight.detach().to(dtype)
    return None


def _replace(model: Any, owners: list[nn.Module], weight: nn.Parameter) -> None:
    """Replace these owners of `weight` by modules of the class that fits its dtype."""
    is_half = weight.dtype in HALVES
    for owner in owners:
        if isinstance(owner, nn.Embedding):
            rows, size = weight.shape
            kind: Any = HalfEmbedding if is_half else nn.Embedding
            new = kind(rows, size, owner.padding_idx, device="meta")
            model.set_input_embeddings(new)
        else:
            kind = HalfLinear if is_half else nn.Linear
            new = kind(weight.shape[1], weight.shape[0], bias=False, device="meta")
            new.bias = owner.bias
            model.set_output_embeddings(new)
        new.weight = weight
        new.train(owner.training)


@torch.no_grad()
def _trial_logits(model: Any) -> Tensor | None:
    """Return the logits of a few tokens, or None when the model does not run."""
    try:
        logits: Tensor = model(torch.arange(PROBE_TOKENS)[None], use_cache=False).logits
    except (RuntimeError, TypeError):
        return None
    return logits


def _same(before: Tensor, after: Tensor | None) -> bool:
    return after is not None and torch.equal(before, after)
