"""Compute token log-probs and hidden states of completions: the forward that all trainers share.

A `Group` is one prompt with its completions. Results cover completion tokens only, flat, in the
order of groups, then completions, then tokens. A prompt is computed once for all of its
completions, rows hold no padding, and only positions that count reach the LM head. Models that do
not allow this use padded rows, and a warning gives the reason once per model.
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

    `per_token`: (tokens,) flat over all completions. `lengths`: (completions,) tokens of each.
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
    """Return the log-probs of every completion token given its prompt, with gradients if enabled.

    `path` is `auto` (packed rows if the model allows them), `shared` (packed, or raise ModelError)
    or `padded`. Raise DataError for an empty prompt or completion.
    """
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
    """Return final hidden states of completions.

    `last`: (completions, hidden), the state at each completion's last token, which a reward head
    reads. `tokens`: (tokens, hidden), the state *before* each completion token, which a value head
    reads. `all`: (tokens + completions, hidden), for each completion the states before its tokens
    and then the one at its last token, so that one forward serves both heads. Errors and `path` are
    those of `completion_logps`.
    """
    base = causal_lm(model)
    check_groups(groups)
    packs = _shares(base, _longest(groups), path)
    rows = pack(groups, which) if packs else pad(groups, pad_token_id, which)
    states, _ = _states(base, rows)
    return states if rows.copies is None else states[_to_device(rows.copies, states.device)]


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
    """Return the log-probs of the target tokens of independent sequences.

    `masks[i][j]` is true where token j of sequence i is a target. A first token never counts,
    because nothing predicts it. `lengths` and `sums` are (sequences,). Raise DataError when nothing
    is a target.
    """
    if not any(any(mask[1:]) for mask in masks):
        raise DataError("no token of this batch is trained", hint="Check `train_on` and the data.")
    base = causal_lm(model)
    packs = _shares(base, max(map(len, ids)), path)
    rows = pack_sequences(ids, masks) if packs else pad_sequences(ids, masks, pad_token_id)
    return _logps(base, rows, temperature, entropy)


def causal_lm(model: Any) -> PreTrainedModel:
    """Return the transformers model inside `model`, with its adapters in place."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return causal_lm(model.module)
    if isinstance(model, PreTrainedModel):
        return model
    from peft import PeftModel  # slow to import, and loaded already if `model` is one

    if isinstance(model, PeftModel):
        return causal_lm(model.get_base_model())
    raise ModelError(f"log-probs need a transformers or PEFT model, not {type(model).__name__}")


def obstacle_to_sharing(model: Any, longest: int) -> str | None:
    """Return why `model` needs padded rows for sequences up to `longest` tokens, or None."""
    base = causal_lm(model)
    return obstacle(base, longest) or _verdict(base)


def _shares(base: PreTrainedModel, longest: int, path: Path) -> bool:
    """Return whether to pack; warn about the reason once per model, or raise it for `shared`."""
    if path == "padded":
        return False
    reason = obstacle_to_sharing(base, longest)
    if reason and path == "shared":
        raise ModelError(
            f"{type(base).__name__} cannot share prompts: {reason}", hint="Use the padded path."
        )
    if reason and base not in _warned:
        _warned[base] = reason
        logger.warning("%s takes padded rows: %s", type(base).__name__, reason)
    return reason is None


def _longest(groups: Sequence[Group]) -> int:
    return max(len(g.prompt) + max(map(len, g.completions), default=0) for g in groups)


def _logps(
    base: PreTrainedModel, rows: PackedRow | PaddedRows, temperature: float, entropy: bool
) -> CompletionLogps:
    _check_head(base)
    states, device = _states(base, rows)
    targets = _to_device(rows.targets, device)
    per_token, entropies = token_logps(
        LmHead.of(base), states, targets, temperature=temperature, entropy=entropy
    )
    if rows.copies is not None:
        copies = _to_device(rows.copies, device)
        per_token, entropies = per_token[copies], None if entropies is None else entropies[copies]
    lengths = _to_device(rows.lengths, device)
    # Without output_size the device would have to report the sum of lengths to the host.
    owner = torch.repeat_interleave(lengths, output_size=len(per_token))
    sums = per_token.new_zeros(len(rows.lengths)).index_add(0, owner, per_token)
    return CompletionLogps(per_token, lengths, sums, entropies)


def _states(base: PreTrainedModel, rows: PackedRow | PaddedRows) -> tuple[Tensor, torch.device]:
    """Return the picked final hidden states (picked, hidden), and the device they are on."""
    device = _embedding(base).device
    inputs = {"input_ids": _to_device(rows.ids, device), "use_cache": False}
    if isinstance(rows, PackedRow):
        inputs["position_ids"] = _to_device(rows.positions, device)
        with (
            segment_attention(base),
            read_positions(base, rows.states, rows.ids.shape[1]) as ends_only,
        ):
            layout = Layout(rows.segments, ends_only=ends_only)
            states = base.base_model(**inputs, segments=layout).last_hidden_state
        if states.requires_grad and base.is_gradient_checkpointing:
            keep_for_backward(base, states)
    else:
        inputs["attention_mask"] = _to_device(rows.mask, device)
        states = base.base_model(**inputs).last_hidden_state
    return states.flatten(0, 1)[_to_device(rows.states, states.device)], states.device


def _embedding(base: PreTrainedModel) -> Tensor:
    weight = base.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


# By model: what the trial of packed rows showed, whether the trial of the head passed, and which
# reason for padded rows has been logged.
_verdicts: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()
_verified_heads: WeakSet[nn.Module] = WeakSet()
_warned: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()

PROBE = [Group([1, 2, 3, 4, 5], [[6, 7, 8], [9, 10], [3]]), Group([4, 2], [[11, 12]])]
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
HALF_TOLERANCE = 5e-2


def _verdict(base: PreTrainedModel) -> str | None:
    """Return why packed rows change this model's states, or None; try it once, on a dozen tokens.

    A configuration can be checked only for features we know of. An architecture that moves
    positions, or mixes tokens outside attention, shows up here.
    """
    if base not in _verdicts:
        with _evaluating(base):
            _verdicts[base] = _packing_changes(base)
    return _verdicts[base]


def _packing_changes(base: PreTrainedModel) -> str | None:
    """Compare the states of packed and padded rows; return how they differ, or None."""
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
    """Raise ModelError unless our reading of the LM head gives the model's own log-probs."""
    if base in _verified_heads:
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
            f"{type(base).__name__} changes its logits in a way that alignkit does not know",
            hint="Please report the architecture; its log-probs would be wrong.",
        )
    _verified_heads.add(base)


def _probe(base: PreTrainedModel) -> list[Group]:
    """Return the groups to try the model on, with token ids its vocabulary has."""
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
    """Refuse 4-bit layers whose weights an evaluation would repack: they lose their gradients.

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
    """Switch gradients, dropout and checkpointing off; restore every module's own mode on exit."""
    _refuse_repacking(model)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
