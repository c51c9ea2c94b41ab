"""A reward model: the backbone's adapter `reward` and a scalar head, as one module of scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from alignkit.data.chat import Encoder
from alignkit.forward.logps import Group, completion_states
from alignkit.model.backbone import REWARD, Backbone
from alignkit.model.heads import ScalarHead


class RewardModel(nn.Module):
    """score(prompt, completion) = head(hidden state at the completion's last token).

    The state is found by position, never by looking for padding, so a score does not depend on
    the batch it is computed in.
    """

    def __init__(self, backbone: Backbone, head: ScalarHead, adapter: str = REWARD) -> None:
        super().__init__()
        self.model = backbone.model
        self.head = head.to(backbone.device)
        self.backbone = backbone
        self.adapter = adapter
        self.pad = Encoder(backbone.tokenizer).pad_token_id

    @classmethod
    def load(cls, backbone: Backbone, directory: Path, adapter: str = REWARD) -> RewardModel:
        """The reward model a run left. Raises ModelError when its head is missing or unequal."""
        head = ScalarHead.load(directory / "adapter")
        if adapter in backbone.adapters:
            backbone.delete_adapter(adapter)
        backbone.load_adapter(adapter, directory / "adapter", head=head)
        return cls(backbone, head, adapter)

    def forward(self, groups: Sequence[Group]) -> Tensor:
        """Raw scores, (completions,), in the order of groups and their completions."""
        states = completion_states(self.model, groups, pad_token_id=self.pad, which="last")
        scores: Tensor = self.head(states)
        return scores

    @torch.no_grad()
    def scores(self, groups: Sequence[Group], batch_size: int = 16) -> list[float]:
        """Raw scores of all completions under the reward adapter, without gradients."""
        found: list[float] = []
        with self.backbone.role(self.adapter), evaluating(self.head):
            for start in range(0, len(groups), batch_size):
                found += self(groups[start : start + batch_size]).tolist()
        return found

    @torch.no_grad()
    def states(self, groups: Sequence[Group], batch_size: int = 16) -> Tensor:
        """States under the reward adapter: for each completion those before its tokens, then the
        one that its score is read from; (tokens + completions, hidden)."""
        with self.backbone.role(self.adapter):
            parts = [
                completion_states(
                    self.model,
                    groups[start : start + batch_size],
                    pad_token_id=self.pad,
                    which="all",
                )
                for start in range(0, len(groups), batch_size)
            ]
        return torch.cat(parts)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode as before outside."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode
