"""Attend within the segments of a packed row: a completion sees its prompt and itself only.

The kernels are registered through transformers' attention interface, so no model code is patched.
The layout of a row travels as an argument of the forward: a layer that gradient checkpointing
recomputes receives it again. `obstacle` names the models whose attention is not plainly causal;
those use padded rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_flash_attn_2_available

from alignkit.forward.layout import Layout

NAME = "alignkit_segments"

# Arguments by which a model changes attention itself. Ignoring one would give wrong numbers without
# an error, so they are refused.
UNSUPPORTED = ("softcap", "s_aux", "position_bias", "cache")

OBSTACLES = {
    "alibi": "it uses ALiBi",
    "attn_logit_softcapping": "it caps attention logits",
    "is_encoder_decoder": "it is an encoder-decoder",
    "attention_chunk_size": "its attention is chunked",
}

Kernel = Callable[[Tensor, Tensor, Tensor, Layout, float, float | None], Tensor]


def segment_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Layout | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within segments; transformers calls this for every attention layer.

    `query` is (1, heads, row, d); `key` and `value` are (1, kv heads, row, d). Return the output,
    (1, row, heads, d), and no attention weights. Without `segments`, call the model's own
    attention: that happens when the backward recomputes a row that was never packed. Raise
    TypeError for an argument that changes attention itself.
    """
    if segments is None:
        arguments = (module, query, key, value, attention_mask)
        return _own_function(module)(*arguments, dropout=dropout, scaling=scaling, **others)
    for name in UNSUPPORTED:
        if others.get(name) is not None:
            raise TypeError(f"segment attention takes no {name!r}")
    if query.device.type == "cpu":
        config: Any = module.config
        is_last = getattr(module, "layer_idx", None) == config.num_hidden_layers - 1
        return by_segment(query, key, value, segments, dropout, scaling, is_last), None
    return _accelerated(query)(query, key, value, segments, dropout, scaling), None


@contextmanager
def segment_attention(model: PreTrainedModel) -> Iterator[None]:
    """Make `model` attend by segments inside the block; restore its own attention on exit."""
    _switch_on(model.config)
    try:
        yield
    finally:
        _switch_off(model.config)


def keep_for_backward(model: PreTrainedModel, states: Any) -> None:
    """Use segment attention during the backward through `states`, for the layers it recomputes."""

    # Gradient checkpointing runs the layers again during the backward, long after the
    # `segment_attention` block has ended. The hook fires when the first gradient reaches `states`,
    # before any layer is recomputed; the engine's callback fires when the whole backward is done.
    def switch_on_until_done(_: Tensor) -> None:
        _switch_on(model.config)
        engine: Any = Variable._execution_engine
        engine.queue_callback(lambda: _switch_off(model.config))

    states.register_hook(switch_on_until_done)


def obstacle(model: PreTrainedModel, longest: int) -> str | None:
    """Return why `model` cannot take packed rows of sequences up to `longest` tokens, or None."""
    config = model.config
    settings = config.to_dict()
    if config.get_text_config() is not config:
        return "it is not a text-only model"
    if type(model)._is_stateful:
        return "it is recurrent"
    for key, reason in OBSTACLES.items():
        if settings.get(key):
            return reason
    if not model.base_model._supports_attention_backend:
        return "its attention cannot be replaced"
    return _layer_obstacle(settings, longest)


def _layer_obstacle(settings: dict[str, Any], longest: int) -> str | None:
    """Return which kind of layer is in the way, or None."""
    kinds = set(settings.get("layer_types") or ())
    if strange := kinds - {"full_attention", "sliding_attention"}:
        return f"it has {', '.join(sorted(strange))} layers"
    window = settings.get("sliding_window")
    slides = "sliding_attention" in kinds if kinds else window is not None
    # A window no shorter than the longest sequence hides nothing.
    if slides and window is not None and longest > window:
        return f"its attention slides over {window} tokens and a sequence has {longest}"
    return None


# For each config: its own attention, and how often it is switched on now. A depth and not a flag:
# one backward can pass through the states of several forwards, and each switches on and off.
_switched: dict[int, tuple[str, int]] = {}


def _switch_on(config: PreTrainedConfig) -> None:
    own, depth = _switched.get(id(config), (config._attn_implementation, 0))
    _switched[id(config)] = str(own), depth + 1
    config._attn_implementation = NAME


def _switch_off(config: PreTrainedConfig) -> None:
    own, depth = _switched.pop(id(config))
    if depth > 1:
        _switched[id(config)] = own, depth - 1
    else:
        config._attn_implementation = own


def _own_function(module: Any) -> Callable[..., tuple[Tensor, None]]:
    own, _ = _switched[id(module.config)]
    if own == "eager":  # not in the registry: every model file defines its own
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[own]


# Kernels. Each takes query (1, heads, row, d), key and value (1, kv heads, row, d), the layout,
# dropout and scale, and returns (1, row, heads, d). All three compute the same function.


def by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    dropout: float,
    scale: float | None,
    is_last: bool = False,
) -> Tensor:
    """Make one attention call per branch, on exactly the keys that branch may see.

    In the last layer (`is_last`) the output is zero for queries whose output nothing uses.
    """
    repeats = query.shape[1] // key.shape[1]
    branches = layout.read_branches if is_last else layout.branches
    # `split` and not slices: the backward of a split is one concatenation, that of each slice a
    # zero-filled gradient of the whole row. Queries are cut differently from keys: a prompt's
    # queries belong to its first branch, while its keys are shared by all of its branches.
    query_lengths = [n for branch in branches for n in (branch.unread, len(branch.queries))]
    queries = iter(torch.split(query, query_lengths, dim=2))
    keys = iter(torch.split(repeat_kv(key, repeats), layout.key_lengths, dim=2))
    values = iter(torch.split(repeat_kv(value, repeats), layout.key_lengths, dim=2))
    outputs = []
    of_prompt: tuple[Tensor, Tensor]
    for branch in branches:
        if branch.is_first:
            of_prompt = next(keys), next(values)
        skipped, asking, of_branch = next(queries), next(queries), (next(keys), next(values))
        if branch.unread:
            outputs.append(torch.zeros_like(skipped.transpose(1, 2)))
        if not branch.queries:
            continue
        if branch.own:
            k, v = (torch.cat(pair, dim=2) for pair in zip(of_prompt, of_branch, strict=True))
        else:
            k, v = of_prompt
        # `is_causal` aligns the triangle at the top left: right only where queries and keys start
        # at the same token. Where keys come first (a later branch, whose prompt was read before),
        # the triangle belongs at the bottom right, and only an explicit mask puts it there.
        mask = None
        before = k.shape[2] - len(branch.queries)
        if before:
            mask = layout.mask(before, len(branch.queries), query)
        outputs.append(
            F.scaled_dot_product_attention(
                asking, k, v, mask, dropout, is_causal=not before, scale=scale
            ).transpose(1, 2)
        )
    return torch.cat(outputs, dim=1)


def by_padded_rows(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float, scale: float | None
) -> Tensor:
    """Pad for the attention alone, one row per branch; linear layers stay packed.

    For accelerators without a varlen kernel: one large call, and no mask over the whole row.
    """
    repeats = query.shape[1] // key.shape[1]
    gather, back = layout.padded_rows
    index = layout.sent("gather", gather, query.device)

    def rows(states: Tensor) -> Tensor:
        """Gather (1, heads, row, d) into (branches, heads, width, d)."""
        heads, width = states.shape[1], len(gather) // len(layout.branches)
        return states[0, :, index].view(heads, -1, width, states.shape[3]).transpose(0, 1)

    out = F.scaled_dot_product_attention(
        rows(query),
        rows(repeat_kv(key, repeats)),
        rows(repeat_kv(value, repeats)),
        dropout_p=dropout,
        is_causal=True,
        scale=scale,
    )
    # A prompt is in the row of each of its branches, but `back` takes it from only one of them.
    # The gradient stays complete: its keys and values were gathered into all of those rows.
    return out.transpose(1, 2).flatten(0, 1)[layout.sent("back", back, query.device)][None]


def by_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    dropout: float,
    scale: float | None,
    kernel: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Call a varlen kernel twice: for prompts with their first branch, then for all other branches.

    The second call's keys are the prompt gathered in front of each branch. Where a sequence has
    fewer queries than keys, the kernel must align its causal mask at the bottom right, as
    flash_attn_varlen_func does from version 2.1. `kernel` has that function's signature: states
    (tokens, heads, d) with cumulative lengths.
    """
    varlen = kernel or _flash_kernel()
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    out = torch.empty_like(q)  # every row is a query of exactly one of the two calls
    for name, call in layout.varlen_calls.items():
        query_rows, key_rows, starts, key_starts = (
            layout.sent(f"{name} {what}", numbers, query.device)
            for what, numbers in {
                "queries": call.queries,
                "keys": call.keys,
                "starts": list(accumulate(call.query_lengths, initial=0)),
                "key starts": list(accumulate(call.key_lengths, initial=0)),
            }.items()
        )
        attended = varlen(
            q[query_rows],
            k[key_rows],
            v[key_rows],
            starts.int(),
            key_starts.int(),
            max(call.query_lengths),
            max(call.key_lengths),
            dropout_p=dropout,
            softmax_scale=scale,
            causal=True,
        )
        out = out.index_copy(0, query_rows, attended)
    return out[None]


def _flash_kernel() -> Callable[..., Tensor]:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func


def _accelerated(query: Tensor) -> Kernel:
    """Return the fastest exact kernel of an accelerator for this dtype."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    return by_varlen if half and is_flash_attn_2_available() else by_padded_rows


ALL_ATTENTION_FUNCTIONS.register(NAME, segment_attention_forward)
