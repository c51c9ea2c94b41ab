"""Say in words what training changed, and what to change where it changed nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LOSS_MOVED = 0.01  # the share of the starting loss below which a run has learned next to nothing


def outcome_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What training did, and where it did nothing, what to change; none for other stages."""
    if "weight_change" not in metrics:
        return []
    moved = (
        f"the weights moved by {100 * metrics['weight_change']:.2g}% of the base weights' norm "
        f"({metrics['moved_share']:.1%} of the trainable entries changed)"
    )
    if "loss_before" not in metrics:
        return [moved]
    before, after = metrics["loss_before"], metrics["loss_after"]
    told = [f"loss on the same training rows {before:.4g} before, {after:.4g} after; {moved}"]
    little = LOSS_MOVED * abs(before)
    if after > before + little:
        told.append("the loss rose: lower learning_rate, or raise warmup_steps")
    elif after > before - little:
        told.append(
            f"the loss hardly moved in {metrics['steps']} steps: raise learning_rate, or the "
            "number of steps by max_steps or num_train_epochs"
        )
    return told
