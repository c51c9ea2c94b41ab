"""Embedding and head stored in 16 bits, computing what fp32 computes, to the bit.

Checkpoints come in bf16 and a CPU computes in fp32, where each of their values is the same number:
the largest frozen weights need half the memory. The head is upcast some rows of the vocabulary at
a time. They stay in cache, and reading half the bytes from memory saves more than upcasting costs.
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
# Architectures that call embedding and head and read nothing of their weights; others are tried.
KNOWN_MODELS = ("llama", "mistral", "qwen2", "qwen3")
PROBE_TOKENS = 8


class HalfEmbedding(nn.Embedding):
    """An embedding stored in 16 bits that gives fp32."""

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.weight).float()


class HalfLinear(nn.Linear):
    """A head stored in 16 bits that multiplies in the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.is_autocast_enabled(input.device.type):
            return F.linear(input, self.weight.to(input.dtype), self.bias)
        return project(input, self.weight, self.bias)


def blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Rows of `weight` (vocabulary, hidden) in `dtype`, some at a time, with their places.

    What was given is overwritten by what comes next. Only fp32 on a CPU is cut into parts: half
    precision would round where they are summed.
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
    """hidden (…, hidden) on a head (vocabulary, hidden): (…, vocabulary) in the dtype of hidden."""
    flat = hidden.flatten(0, -2)
    logits = flat.new_empty(len(flat), len(weight))
    for part, rows in blocks(weight, flat.dtype):
        if bias is None:
            torch.mm(flat, rows.t(), out=logits[:, part])
        else:
            torch.addmm(bias[part], flat, rows.t(), out=logits[:, part])
    return logits.view(*hidden.shape[:-1], len(weight))


def store_in_half(model: Any) -> bool:
    """Store the frozen fp32 embedding and head of a causal LM in 16 bits where nothing is lost.

    Where they are tied they stay one tensor. A weight with a value that 16 bits do not hold stays
    as it is, and so does one that belongs to any other module or to a class of the model's own.
    """
    known = model.config.model_type in KNOWN_MODELS
    before = None if known else _answer(model)
    changed = False
    for weight, owners in _weights(model):
        half = _exact_half(weight)
        if half is not None:
            _replace(model, owners, nn.Parameter(half, requires_grad=False))
            changed = True
    if changed and before is not None and not _same(before, _answer(model)):
        store_in_full(model)
        return False
    return changed


def store_in_full(model: Any) -> None:
    """Back to plain fp32 modules, for whoever trains or adapts the embedding or the head."""
    for weight, owners in _weights(model):
        if weight.dtype in HALVES:
            _replace(model, owners, nn.Parameter(weight.detach().float(), requires_grad=False))


def half_modules(model: nn.Module) -> list[str]:
    """Names of the modules stored in 16 bits."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, HalfEmbedding | HalfLinear)
    ]


def _weights(model: Any) -> list[tuple[nn.Parameter, list[nn.Module]]]:
    """The weights of embedding and head that plain modules hold, each with all its holders."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    found = []
    for weight in {id(end.weight): end.weight for end in ends if end is not None}.values():
        owners = [m for m in model.modules() if any(p is weight for p in m.parameters(False))]
        if all(any(owner is end for end in ends) and _is_plain(owner) for owner in owners):
            found.append((weight, owners))
    return found


def _is_plain(module: nn.Module) -> bool:
    if type(module) in (nn.Embedding, HalfEmbedding):
        return module.max_norm is None
    return type(module) in (nn.Linear, HalfLinear)


def _exact_half(weight: Tensor) -> Tensor | None:
    """The same numbers in 16 bits, or None when some are not numbers of 16 bits."""
    if weight.dtype != FULL:
        return None
    for dtype in HALVES:
        if all(torch.equal(rows.to(dtype).float(), rows) for _, rows in blocks(weight, FULL)):
            return weight.detach().to(dtype)
    return None


def _replace(model: Any, owners: list[nn.Module], weight: nn.Parameter) -> None:
    """Modules that hold `weight` in the place of these, of the class that fits its dtype."""
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
def _answer(model: Any) -> Tensor | None:
    """Logits for a few tokens, or None where the model does not run."""
    try:
        logits: Tensor = model(torch.arange(PROBE_TOKENS)[None], use_cache=False).logits
    except (RuntimeError, TypeError):
        return None
    return logits


def _same(before: Tensor, after: Tensor | None) -> bool:
    return after is not None and torch.equal(before, after)
