"""Report what training changed, and what to set differently where it changed nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LOSS_MOVED = 0.01  # share of the starting loss; a smaller change means next to nothing was learned


def outcome_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Return what training did, with advice if it did nothing; no lines for other stages."""
    if "weight_change" not in metrics:
        return []
    moved = (
        f"the weights moved by {100 * metrics['weight_change']:.2g}% of the base weights' norm "
        f"({metrics['moved_share']:.1%} of the trainable entries changed)"
    )
    if "loss_before" not in metrics:
        return [moved]
    before, after = metrics["loss_before"], metrics["loss_after"]
    lines = [f"loss on the same training rows {before:.4g} before, {after:.4g} after; {moved}"]
    little = LOSS_MOVED * abs(before)
    if after > before + little:
        lines.append("the loss rose: lower learning_rate, or raise warmup_steps")
    elif after > before - little:
        lines.append(
            f"the loss hardly moved in {metrics['steps']} steps: raise learning_rate, or the "
            "number of steps by max_steps or num_train_epochs"
        )
    return lines
