"""The last layer on the positions that somebody reads.

No position looks at another's query, nor at anything behind the last attention, so what the last
layer makes of a prompt's inner tokens beyond their keys and values, or of a rejected row's, is
thrown away. In a packed row at least the prompts are such: the queries, the attention's output and
the MLP, most of a layer's work, take the other positions alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MOST_ROWS = 0.9  # a larger share is not worth gathering
TOKEN_WISE = ("self_attn.q_proj", "self_attn.o_proj", "mlp")


@contextmanager
def read_positions(base: Any, states: Tensor, row: int) -> Iterator[bool]:
    """Inside, the last layer of `base` leaves positions out that are not in `states` (picked,).

    What it would have computed there is zero; `row` is how many positions there are. True when it
    does; layers that gradient checkpointing computes again later are left as they are.
    """
    wanted = torch.unique(states)
    modules = _token_wise(base)
    if not modules or len(wanted) > MOST_ROWS * row or base.is_gradient_checkpointing:
        yield False
        return
    with ExitStack() as narrowed:
        for module in modules:
            narrowed.enter_context(_narrowed(module, wanted))
        yield True


@contextmanager
def _narrowed(module: nn.Module, wanted: Tensor) -> Iterator[None]:
    """`module`, which treats tokens one by one, answers zero for those not in `wanted`."""
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


def _token_wise(base: Any) -> list[nn.Module]:
    """Parts of the last decoder layer that stand under the usual names."""
    layers = getattr(base.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return []
    parts = dict(layers[-1].named_modules())
    return [parts[name] for name in TOKEN_WISE if name in parts]
