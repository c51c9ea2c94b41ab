"""Token log-probs and hidden states of completions: the one forward that every trainer shares.

A `Group` is one prompt with its completions. What comes back covers completion tokens only, flat,
in the order of groups, then completions, then tokens. Prompts are computed once, rows hold no
padding, and only positions that count reach the LM head; models that do not allow it take padded
rows, and the log says why once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignkit.errors import DataError, ModelError
from alignkit.forward.attention import keep_for_backward, obstacle, segment_attention
from alignkit.forward.last_layer import read_positions
from alignkit.forward.layout import Layout
from alignkit.forward.lm_head import LmHead, token_logps
from alignkit.forward.packing import (
    Group,
    PackedRow,
    PaddedRows,
    Which,
    check_groups,
    pack,
    pack_sequences,
    pad,
    pad_sequences,
)

__all__ = ["CompletionLogps", "Group", "completion_logps", "completion_states", "sequence_logps"]

logger = logging.getLogger(__name__)

Path = Literal["auto", "shared", "padded"]


@dataclass(frozen=True)
class CompletionLogps:
    """Log-probs of completion tokens, in fp32.

    `per_token`: (tokens,) flat over all completions. `lengths`: (completions,) tokens in each.
    `sums`: (completions,) summed log-probs. `entropy`: (tokens,) without gradient, or None.
    """

    per_token: Tensor
    lengths: Tensor
    sums: Tensor
    entropy: Tensor | None = None


def completion_logps(
    model: Any,
    groups: Sequence[Group],
    *,
    pad_token_id: int,
    temperature: float = 1.0,
    path: Path = "auto",
    entropy: bool = False,
) -> CompletionLogps:
    """Log-probs of every completion token given its prompt, with gradients when enabled."""
    base = causal_lm(model)
    check_groups(groups)
    rows = pack(groups) if _shares(base, _longest(groups), path) else pad(groups, pad_token_id)
    return _logps(base, rows, temperature, entropy)


def completion_states(
    model: Any,
    groups: Sequence[Group],
    *,
    pad_token_id: int,
    which: Which = "last",
    path: Path = "auto",
) -> Tensor:
    """Final hidden states.

    `last`: (completions, hidden), the state at each completion's last token (what a reward head
    reads). `tokens`: (tokens, hidden), the state *before* each completion token (what a value
    head reads). `all`: (tokens + completions, hidden), for each completion the states before its
    tokens and then the one at its last token, so that one forward serves both heads.
    """
    base = causal_lm(model)
    check_groups(groups)
    packs = _shares(base, _longest(groups), path)
    rows = pack(groups, which) if packs else pad(groups, pad_token_id, which)
    states, _ = _states(base, rows)
    return states if rows.copies is None else states[_moved(rows.copies, states.device)]


def sequence_logps(
    model: Any,
    ids: Sequence[Sequence[int]],
    masks: Sequence[Sequence[int]],
    *,
    pad_token_id: int,
    temperature: float = 1.0,
    path: Path = "auto",
    entropy: bool = False,
) -> CompletionLogps:
    """Log-probs of the target tokens of independent sequences, `lengths` and `sums` per sequence.

    `masks[i][j]` is true where token j of sequence i is a target; a first token never is, since
    nothing predicts it.
    """
    if not any(any(mask[1:]) for mask in masks):
        raise DataError("no token of this batch is trained", hint="Check `train_on` and the data.")
    base = causal_lm(model)
    packs = _shares(base, max(map(len, ids)), path)
    rows = pack_sequences(ids, masks) if packs else pad_sequences(ids, masks, pad_token_id)
    return _logps(base, rows, temperature, entropy)


def causal_lm(model: Any) -> PreTrainedModel:
    """The transformers model inside `model`, adapters in place."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return causal_lm(model.module)
    if isinstance(model, PreTrainedModel):
        return model
    from peft import PeftModel  # already imported by whoever made one; slow for who did not

    if isinstance(model, PeftModel):
        return causal_lm(model.get_base_model())
    raise ModelError(f"log-probs need a transformers or PEFT model, not {type(model).__name__}")


def obstacle_to_sharing(model: Any, longest: int) -> str | None:
    """Why `model` takes padded rows when sequences reach `longest` tokens, or None if it packs."""
    base = causal_lm(model)
    return obstacle(base, longest) or _verdict(base)


def _shares(base: PreTrainedModel, longest: int, path: Path) -> bool:
    if path == "padded":
        return False
    reason = obstacle_to_sharing(base, longest)
    if reason and path == "shared":
        raise ModelError(
            f"{type(base).__name__} cannot share prompts: {reason}", hint="Use the padded path."
        )
    if reason and base not in _said:
        _said[base] = reason
        logger.warning("%s takes padded rows: %s", type(base).__name__, reason)
    return reason is None


def _longest(groups: Sequence[Group]) -> int:
    return max(len(g.prompt) + max(map(len, g.completions), default=0) for g in groups)


def _logps(
    base: PreTrainedModel, rows: PackedRow | PaddedRows, temperature: float, entropy: bool
) -> CompletionLogps:
    _check_head(base)
    states, device = _states(base, rows)
    targets = _moved(rows.targets, device)
    per_token, spread = token_logps(
        LmHead.of(base), states, targets, temperature=temperature, entropy=entropy
    )
    if rows.copies is not None:
        copies = _moved(rows.copies, device)
        per_token, spread = per_token[copies], None if spread is None else spread[copies]
    lengths = _moved(rows.lengths, device)
    # output_size spares the device a round trip to the host for the sum of lengths.
    owner = torch.repeat_interleave(lengths, output_size=len(per_token))
    sums = per_token.new_zeros(len(rows.lengths)).index_add(0, owner, per_token)
    return CompletionLogps(per_token, lengths, sums, spread)


def _states(base: PreTrainedModel, rows: PackedRow | PaddedRows) -> tuple[Tensor, torch.device]:
    """The picked final hidden states (picked, hidden), and the device they are on."""
    device = _embedding(base).device
    inputs = {"input_ids": _moved(rows.ids, device), "use_cache": False}
    if isinstance(rows, PackedRow):
        inputs["position_ids"] = _moved(rows.positions, device)
        with (
            segment_attention(base),
            read_positions(base, rows.states, rows.ids.shape[1]) as ends_only,
        ):
            layout = Layout(rows.segments, ends_only=ends_only)
            states = base.base_model(**inputs, segments=layout).last_hidden_state
        if states.requires_grad and base.is_gradient_checkpointing:
            keep_for_backward(base, states)
    else:
        inputs["attention_mask"] = _moved(rows.mask, device)
        states = base.base_model(**inputs).last_hidden_state
    return states.flatten(0, 1)[_moved(rows.states, states.device)], states.device


def _embedding(base: PreTrainedModel) -> Tensor:
    weight = base.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


# What was found out about a model by trying, and what has been said about it.
_verdicts: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()
_known_heads: WeakSet[nn.Module] = WeakSet()
_said: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()

PROBE = [Group([1, 2, 3, 4, 5], [[6, 7, 8], [9, 10], [3]]), Group([4, 2], [[11, 12]])]
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
HALF_TOLERANCE = 5e-2


def _verdict(base: PreTrainedModel) -> str | None:
    """Whether packed rows give this model's own states, tried once on a dozen tokens.

    A configuration can only be checked for what is known; an architecture that moves positions or
    mixes tokens outside attention shows here.
    """
    if base not in _verdicts:
        with _evaluating(base):
            _verdicts[base] = _packing_changes(base)
    return _verdicts[base]


def _packing_changes(base: PreTrainedModel) -> str | None:
    groups = _probe(base)
    padded, _ = _states(base, pad(groups, 0))
    try:
        packed, _ = _states(base, pack(groups))
    except (TypeError, NotImplementedError, RuntimeError) as error:
        return f"it does not run packed rows ({error})"
    if _distance(packed, padded) > _tolerance(padded):
        return "its states change when completions are packed"
    return None


def _check_head(base: PreTrainedModel) -> None:
    """Our reading of the LM head gives the model's own log-probs, or the model is refused."""
    if base in _known_heads:
        return
    with _evaluating(base):
        rows = pad(_probe(base), 0)
        states, device = _states(base, rows)
        targets = rows.targets.to(device)
        ours, _ = token_logps(LmHead.of(base), states, targets, temperature=1.0, entropy=False)
        mask = rows.mask.to(device)
        logits = base(rows.ids.to(device), attention_mask=mask, use_cache=False).logits
    own = logits.flatten(0, 1)[rows.states.to(device)].float().log_softmax(-1)
    if _distance(ours, own.gather(1, targets[:, None]).squeeze(1)) > _tolerance(states):
        raise ModelError(
            f"{type(base).__name__} changes its logits in a way that is not understood",
            hint="Please report the architecture; its log-probs would be wrong.",
        )
    _known_heads.add(base)


def _probe(base: PreTrainedModel) -> list[Group]:
    size = len(_embedding(base))
    return [
        Group([i % size for i in g.prompt], [[i % size for i in c] for c in g.completions])
        for g in PROBE
    ]


def _tolerance(states: Tensor) -> float:
    half = torch.is_autocast_enabled(states.device.type)
    return HALF_TOLERANCE if half else TOLERANCE.get(states.dtype, HALF_TOLERANCE)


def _distance(left: Tensor, right: Tensor) -> float:
    return float((left.float() - right.float()).norm() / right.float().norm())


def _refuse_repacking(base: nn.Module) -> None:
    """4-bit layers whose weights an evaluation would repack lose their gradients in silence.

    Remove when bitsandbytes' CPU kernel has a backward.
    """
    for name, module in base.named_modules():
        repacks = getattr(module, "support_avx512bf16_for_cpu", False)
        if repacks and module.weight.device.type == "cpu":
            raise ModelError(
                f"4-bit layer {name} repacks its weights when evaluated, which breaks training",
                hint="Load the model with alignkit.model.backbone.Backbone.",
            )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients, dropout or checkpointing; every module's own flag comes back."""
    _refuse_repacking(model)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
