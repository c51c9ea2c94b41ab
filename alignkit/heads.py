"""Scalar heads: full rank, fp32, never quantized, saved beside their adapter."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignkit.errors import ModelError
from alignkit.model_files import check_safetensors

FILE = "head.safetensors"


class ScalarHead(nn.Module):
    """A linear map from a hidden state to one number.

    Weights start from N(0, 1/(hidden + 1)), bias 0, as in arXiv:2403.17031 (detail 11).
    `gain` and `shift` normalise scores once training is over; they are not trained.
    """

    gain: Tensor
    shift: Tensor

    def __init__(self, hidden_size: int, *, seed: int = 0, zero: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
        generator = torch.Generator().manual_seed(seed)
        std = 0.0 if zero else 1.0 / math.sqrt(hidden_size + 1)
        with torch.no_grad():
            self.linear.weight.copy_(
                torch.randn(self.linear.weight.shape, generator=generator) * std
            )
            self.linear.bias.zero_()
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, states: Tensor) -> Tensor:
        """Hidden states (..., hidden) to scores (...), in fp32."""
        raw = self.linear(states.float()).squeeze(-1)
        return raw * self.gain + self.shift

    def save(self, directory: Path) -> None:
        """Write the head beside its adapter."""
        directory.mkdir(parents=True, exist_ok=True)
        state = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        save_file(state, str(directory / FILE))

    @classmethod
    def load(cls, directory: Path) -> ScalarHead:
        """The head saved beside an adapter. Raises ModelError when it is missing or broken."""
        file = directory / FILE
        if not file.exists():
            raise ModelError(
                "the scalar head is missing; scores would come from random weights",
                where=str(file),
                hint="copy the whole run directory, or train the reward model again",
            )
        check_safetensors(file)
        state = load_file(str(file))
        if "linear.weight" not in state:
            raise ModelError("holds no head", where=str(file))
        head = cls(state["linear.weight"].shape[1])
        head.load_state_dict(state)
        return head
