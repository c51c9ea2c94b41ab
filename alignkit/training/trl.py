"""The parts of TRL that alignkit builds on: the one module that imports it.

Stages take the loop, the logging and the arguments of TRL's trainers; rows, forward and losses are
ours. `_prepare_dataset`, `_compute_loss` and `_metrics` are TRL's private names and may change with
any release, hence the narrow range in pyproject.toml. To widen it: `make test-newest` with the new
release, and put what differs here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trl.trainer.dpo_config import DPOConfig as DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig as SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


class _OnTokenRows(_Trainer):
    """Rows that are token ids already, and metrics that may be tensors until they are logged."""

    model: Any
    _metrics: Any

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def note(self, name: str, value: Any) -> None:
        """Add a value to those whose mean is logged next under this name.

        Reading a tensor from a GPU waits for all work queued there, so tensors stay tensors.
        """
        self._metrics["train" if self.model.training else "eval"][name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Turn what was noted into numbers before TRL averages it."""
        for values in self._metrics.values():
            for name, noted in values.items():
                values[name] = [float(value) for value in noted]
        super().log(logs, start_time)


class TokenSftTrainer(_OnTokenRows, SFTTrainer):
    """TRL's SFT trainer on rows of token ids."""


class TokenDpoTrainer(_OnTokenRows, DPOTrainer):
    """TRL's DPO trainer on pairs of token ids."""
