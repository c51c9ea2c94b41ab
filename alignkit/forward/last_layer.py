"""Run the last layer only where its output is used.

No token sees another token's query, nor anything computed after the last attention. So in the last
layer, a prompt's inner tokens matter by their keys and values alone, and all else computed for them
is thrown away. Here queries, attention output and MLP, which are most of a layer's work, run on the
other positions only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MOST_ROWS = 0.9  # above this share of used positions, gathering them costs more than it saves
TOKEN_WISE = ("self_attn.q_proj", "self_attn.o_proj", "mlp")


@contextmanager
def read_positions(base: Any, states: Tensor, row: int) -> Iterator[bool]:
    """Narrow the last layer of `base` to the positions in `states` (picked,) inside the block.

    At the other positions its output is zero. `row` is the number of positions in all. Yield True
    when the layer is narrowed. Yield False when it is left as it is: when most positions are used,
    when its parts do not have the usual names, or when gradient checkpointing will recompute it.
    """
    wanted = torch.unique(states)
    modules = _token_wise_parts(base)
    if not modules or len(wanted) > MOST_ROWS * row or base.is_gradient_checkpointing:
        yield False
        return
    with ExitStack() as narrowed:
        for module in modules:
            narrowed.enter_context(_narrow(module, wanted))
        yield True


@contextmanager
def _narrow(module: nn.Module, wanted: Tensor) -> Iterator[None]:
    """Make `module`, which treats tokens independently, return zero for those not in `wanted`."""
    own, patched = module.forward, module.__dict__.get("forward")

    def forward(hidden: Tensor) -> Tensor:
        part = own(hidden.index_select(1, wanted.to(hidden.device)))
        blank = part.new_zeros(*hidden.shape[:2], part.shape[-1])
        return torch.index_copy(blank, 1, wanted.to(part.device), part)

    module.forward = forward
    try:
        yield
    finally:
        if patched is None:
            del module.forward
        else:
            module.forward = patched


def _token_wise_parts(base: Any) -> list[nn.Module]:
    """Return the parts of the last decoder layer that treat tokens independently."""
    layers = getattr(base.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return []
    parts = dict(layers[-1].named_modules())
    return [parts[name] for name in TOKEN_WISE if name in parts]
