"""Compute log-probs of given tokens from final hidden states, without keeping logits.

While the head is frozen, d logp / d hidden is computed in the forward, from the chunk of logits
that exists at that moment: the backward recomputes nothing, and at most `CHUNK_BYTES` of logits
exist at a time. On a CPU the head is multiplied by blocks of the vocabulary, whether it is stored
in fp32 or in 16 bits: both give the same bits. A trained or adapted head uses plain autograd,
checkpointed chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignkit.forward.half_embedding import HalfLinear, blocks

CHUNK_BYTES = 32 * 2**20  # fp32 logits alive at a time; larger chunks fall out of the CPU's caches


@dataclass(frozen=True)
class LmHead:
    """A model's output projection, and what the model does to its logits.

    logits = softcap * tanh(scale * module(hidden) / softcap), without the tanh when softcap is
    None.
    """

    module: nn.Linear
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, model: Any) -> LmHead:
        """Read the head of a transformers model and its configuration."""
        settings = model.config.get_text_config().to_dict()
        return cls(
            model.get_output_embeddings(), _scale(settings), settings.get("final_logit_softcapping")
        )

    @property
    def is_frozen(self) -> bool:
        """Whether the head's weights are constants: a plain linear layer that needs no gradient.

        Other subclasses of nn.Linear are quantized or adapted, and compute something else than x @
        W.T.
        """
        return type(self.module) in (nn.Linear, HalfLinear) and not any(
            parameter.requires_grad for parameter in self.module.parameters()
        )


def token_logps(
    head: LmHead, hidden: Tensor, targets: Tensor, *, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Return log-probs (tokens,) of `targets` (tokens,) given `hidden` (tokens, hidden), in fp32.

    Logits are divided by `temperature` first. With `entropy`, also return the entropy (tokens,) of
    each distribution, without gradient; else None.
    """
    if head.is_frozen:
        linear = head.module
        scale = head.scale / temperature
        # Fold the temperature T into scale and softcap, so that the kernel knows no temperature:
        # softcap * tanh(x / softcap) / T == (softcap / T) * tanh((x / T) / (softcap / T))
        softcap = None if head.softcap is None else head.softcap / temperature
        frozen: Any = _FrozenHead.apply
        logps, entropies = frozen(
            hidden, linear.weight, linear.bias, targets, scale, softcap, entropy
        )
        return logps, entropies if entropy else None
    return _trained_head(head, hidden, targets, temperature, entropy)


def chunk_rows(vocabulary: int) -> int:
    """Return how many rows of fp32 logits fit in one chunk."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


class _FrozenHead(torch.autograd.Function):
    """Log-probs whose gradient d logp / d hidden, (tokens, hidden), is computed in the forward.

    With z = scale * W h, p = softmax(z) and target t: logp = z_t - log Z, and

      d logp / d h = scale * (W_t - sum_v p_v W_v) = -scale * sum_v (p_v - 1[v = t]) W_v.

    The softmax needed for it is at hand in the forward; the backward only multiplies by dL / d
    logp.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return log-probs (tokens,) and entropies (tokens,), the latter empty unless asked for."""
        compute = _compute_dtype(hidden, weight)
        if compute != torch.float32:  # cast once here; in fp32, `blocks` casts block by block
            weight = weight.to(compute)
        logps = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        entropies = torch.empty_like(logps) if entropy else logps.new_empty(0)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        rows = max(1, min(chunk_rows(len(weight)), len(hidden)))
        # One buffer holds the logits of every chunk in turn.
        room = torch.empty(rows, len(weight), dtype=torch.float32, device=hidden.device)
        minus_one = room.new_full((rows, 1), -1.0)
        # Whether logits are linear in `hidden`, and the gradient exact enough to read E[z] from it.
        is_linear = (
            gradient is not None and softcap is None and bias is None and compute == torch.float32
        )
        # Autocast would cast the operands of each product again; `compute` is already its dtype.
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), rows):
                part = slice(start, start + rows)
                # From here on every step overwrites the same buffer, so their order is fixed:
                # logits, capped logits, softmax p, then p - 1[v = t].
                logits = _logits(hidden[part].to(compute), weight, bias, scale, room)
                slope = None if softcap is None else _cap(logits, softcap)
                if entropy and not is_linear:
                    entropies[part] = _entropy(logits)
                logps[part] = _to_softmax(logits, targets[part])
                if gradient is None:
                    continue
                weights = logits.scatter_add_(1, targets[part, None], minus_one[: len(logits)])
                if slope is not None:  # chain rule through the cap
                    weights.mul_(slope)
                gradient[part] = _sum_rows(weights, weight, compute).mul_(-scale)
                if entropy and is_linear:
                    # H = log Z - E[z] = (z_t - E[z]) - logp, and where z is linear in h the bracket
                    # is <h, d logp / d h>: the entropy costs no pass over the vocabulary.
                    entropies[part] = (hidden[part] * gradient[part]).sum(1) - logps[part]
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply the stored gradient by dL / d logp; only `hidden` has one."""
        (gradient,) = ctx.saved_tensors
        return gradient * incoming[0].to(gradient.dtype)[:, None], *[None] * 6


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, room: Tensor
) -> Tensor:
    """Return fp32 logits (rows, vocabulary) in `room`, the one large tensor that lives long."""
    logits = room[: len(hidden)]
    for part, block in blocks(weight, hidden.dtype):
        if hidden.dtype == torch.float32:
            torch.mm(hidden, block.t(), out=logits[:, part])
        else:  # `out` must have the dtype of the operands, so multiply in theirs and upcast
            logits[:, part] = torch.mm(hidden, block.t())
    if bias is not None:
        logits.add_(bias)
    return logits if scale == 1.0 else logits.mul_(scale)


def _sum_rows(weights: Tensor, weight: Tensor, compute: torch.dtype) -> Tensor:
    """Return the rows of the head summed by weights (rows, vocabulary): (rows, hidden)."""
    total = torch.zeros(len(weights), weight.shape[1], dtype=compute, device=weight.device)
    for part, block in blocks(weight, compute):
        total.addmm_(weights[:, part].to(compute), block)
    return total


def _cap(logits: Tensor, softcap: float) -> Tensor:
    """Cap `logits` in place and return the slope 1 - tanh², of the same shape."""
    logits.div_(softcap).tanh_()
    slope = 1 - logits.square()
    logits.mul_(softcap)
    return slope


def _to_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log-probs (rows,) of `targets` (rows,) and turn `logits` into their softmax, in place.

    The softmax works row by row, each in cache, where separate steps would go through memory.
    """
    highest = logits.amax(1)
    chosen = logits.gather(1, targets[:, None]).squeeze(1)
    torch.softmax(logits, 1, out=logits)
    # The largest probability is exp(0) / Z with Z = sum exp(z - highest), so its log is -log Z. The
    # log of the target's own probability would be -inf where that underflows.
    return chosen - highest + logits.amax(1).log()


def _entropy(logits: Tensor) -> Tensor:
    """Return H = log Z - E[z] of each row, (rows,)."""
    return logits.logsumexp(1) - (logits.softmax(1) * logits).sum(1)


def _compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype in which the head multiplies: autocast's, or the wider of its operands'."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(hidden.dtype, weight.dtype)


def _trained_head(
    head: LmHead, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute the same by autograd, one checkpointed chunk at a time."""

    def chunk(states: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        logits = head.module(states).float() * head.scale
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        logps = (logits / temperature).log_softmax(-1)
        entropies = -(logps.exp() * logps).sum(-1).detach() if entropy else logps.new_empty(0)
        return logps.gather(1, chosen[:, None]).squeeze(1), entropies

    rows = chunk_rows(head.module.weight.shape[0])
    chunks = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    parts = [checkpoint(chunk, states, chosen, use_reentrant=False) for states, chosen in chunks]
    logps = torch.cat([part[0] for part in parts])
    return logps, torch.cat([part[1] for part in parts]) if entropy else None


def _scale(settings: dict[str, Any]) -> float:
    """Return the factor by which the architecture multiplies its logits, from its configuration."""
    for key, factor in LOGIT_SCALES.items():
        value = settings.get(key)
        if value is not None:
            return factor(value)
    return 1.0


LOGIT_SCALES: dict[str, Callable[[float], float]] = {
    "logit_scale": float,  # Cohere
    "output_multiplier": float,
    "lm_head_multiplier": float,  # Falcon-H1
    "logits_scaling": lambda divisor: 1.0 / divisor,  # Granite
}
