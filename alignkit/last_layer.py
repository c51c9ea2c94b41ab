"""The last layer's MLP on the positions that somebody reads.

No position looks at another behind the last attention, so what the last MLP and the final norm make
of a prompt's inner tokens, or of a rejected row's, is thrown away. In a packed row at least the
prompts are such: the MLP, most of a layer's work, takes the other positions alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MOST_ROWS = 0.9  # a larger share is not worth gathering


@contextmanager
def read_positions(base: Any, states: Tensor, row: int) -> Iterator[None]:
    """Inside, the last MLP of `base` leaves positions out that are not in `states` (picked,).

    What it would have added there is zero; `row` is how many positions there are. Layers that
    gradient checkpointing computes again later are left as they are.
    """
    mlp = _last_mlp(base)
    wanted = torch.unique(states)
    if mlp is None or len(wanted) > MOST_ROWS * row or base.is_gradient_checkpointing:
        yield
        return
    own = mlp.forward

    def forward(hidden: Tensor) -> Tensor:
        part = own(hidden.index_select(1, wanted.to(hidden.device)))
        blank = part.new_zeros(*hidden.shape[:2], part.shape[-1])
        return torch.index_copy(blank, 1, wanted.to(part.device), part)

    mlp.forward = forward
    try:
        yield
    finally:
        mlp.__dict__.pop("forward")


def _last_mlp(base: Any) -> Any:
    """The MLP of the last decoder layer where it stands under the usual names, else None."""
    layers = getattr(base.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return None
    mlp = getattr(layers[-1], "mlp", None)
    return mlp if isinstance(mlp, nn.Module) and "forward" not in mlp.__dict__ else None
