"""Map hidden states to scalars: full-rank fp32 heads, never quantized, saved with their adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignkit.errors import ModelError
from alignkit.model.files import check_safetensors

FILE = "head.safetensors"
MOST_HIDDEN = 1 << 20


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of raw scores, by which PPO normalises them."""

    mean: float = 0.0
    std: float = 1.0

    def normalise(self, scores: Tensor) -> Tensor:
        """Scale raw scores to mean 0 and variance 1."""
        return (scores - self.mean) / self.std


class ScalarHead(nn.Module):
    """A linear map from a hidden state to one number, plus a small network if it has a `width`.

    Weights start from N(0, 1/(hidden + 1)) and bias 0, as in arXiv:2403.17031 (detail 11). `scale`
    is not trained; it is saved with the weights.
    """

    def __init__(
        self, hidden_size: int, *, seed: int = 0, zero: bool = False, width: int = 0
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
        self.network = _network(hidden_size, width, seed) if width else None
        self.scale = Scale()
        generator = torch.Generator().manual_seed(seed)
        std = 0.0 if zero else 1.0 / math.sqrt(hidden_size + 1)
        with torch.no_grad():
            self.linear.weight.copy_(
                torch.randn(self.linear.weight.shape, generator=generator) * std
            )
            self.linear.bias.zero_()

    def forward(self, states: Tensor) -> Tensor:
        """Map hidden states (..., hidden) to scores (...), in fp32."""
        states = states.float()
        scores: Tensor = self.linear(states)
        if self.network is not None:
            scores = scores + self.network(states)
        return scores.squeeze(-1)

    def widened(self, width: int, seed: int) -> ScalarHead:
        """Return a head with a network of this width that computes the same until trained."""
        hidden = self.linear.in_features
        wide = ScalarHead(hidden, seed=seed, width=width).to(self.linear.weight.device)
        wide.linear.load_state_dict(self.linear.state_dict())
        wide.scale = self.scale
        return wide

    def save(self, directory: Path) -> None:
        """Save the head next to its adapter."""
        directory.mkdir(parents=True, exist_ok=True)
        state = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        state["scale"] = torch.tensor([self.scale.mean, self.scale.std], dtype=torch.float64)
        save_file(state, str(directory / FILE))

    @classmethod
    def load(cls, directory: Path) -> ScalarHead:
        """Load the head saved with an adapter. Raises ModelError when it is missing or broken."""
        file = directory / FILE
        if not file.exists():
            raise ModelError(
                "the scalar head is missing; scores would come from random weights",
                where=str(file),
                hint="copy the whole run directory, or train the reward model again",
            )
        stored = check_safetensors(file)
        shape = stored["linear.weight"].shape if "linear.weight" in stored else ()
        if len(shape) != 2 or not 0 < shape[1] <= MOST_HIDDEN:
            raise ModelError("holds no head", where=str(file))
        inner = stored["network.0.weight"].shape if "network.0.weight" in stored else ()
        if inner and inner[1:] != shape[1:]:
            raise ModelError("its network reads states of another size", where=str(file))
        head = cls(shape[1], width=inner[0] if inner else 0)
        state = load_file(str(file))
        scale = state.pop("scale", torch.tensor([0.0, 1.0]))
        for name in sorted(state.keys() ^ head.state_dict().keys()):
            verb = "holds" if name in state else "lacks"
            raise ModelError(f"{verb} {name:.100}: not a scalar head", where=str(file))
        for name, expected in head.state_dict().items():
            if state[name].shape != expected.shape or not bool(state[name].isfinite().all()):
                raise ModelError(f"{name} is not what a scalar head has", where=str(file))
        if scale.shape != (2,) or not bool(scale.isfinite().all()) or scale[1] <= 0:
            raise ModelError("its scale is not a mean and a deviation", where=str(file))
        head.scale = Scale(*scale.tolist())
        head.load_state_dict(state)
        return head


def _network(hidden_size: int, width: int, seed: int) -> nn.Sequential:
    """Return linear, GELU, linear; the last starts at zero, so it adds nothing until trained."""
    inner = nn.Linear(hidden_size, width, dtype=torch.float32)
    outer = nn.Linear(width, 1, bias=False, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        drawn = torch.randn(inner.weight.shape, generator=generator)
        inner.weight.copy_(drawn / math.sqrt(hidden_size))
        inner.bias.zero_()
        outer.weight.zero_()
    return nn.Sequential(inner, nn.GELU(), outer)
