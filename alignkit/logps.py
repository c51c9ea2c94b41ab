"""Token log-probs and hidden states of completions: the one forward that every trainer shares.

A `Group` is one prompt with its completions. What comes back covers completion tokens only, flat,
in the order of groups, then completions, then tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Path = Literal["auto", "shared", "padded"]


@dataclass(frozen=True)
class Group:
    """One prompt and its completions, as token ids; every completion holds at least one token."""

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]


@dataclass(frozen=True)
class CompletionLogps:
    """Log-probs of completion tokens.

    `per_token`: (tokens,) flat over all completions. `lengths`: (completions,) tokens in each.
    `sums`: (completions,) summed log-probs. `entropy`: (tokens,) or None.
    """

    per_token: Tensor
    lengths: Tensor
    sums: Tensor
    entropy: Tensor | None = None


def completion_logps(
    model: Any,
    groups: Sequence[Group],
    *,
    pad_token_id: int,
    temperature: float = 1.0,
    path: Path = "auto",
    entropy: bool = False,
) -> CompletionLogps:
    """Log-probs of every completion token given its prompt, with gradients when enabled."""
    del path
    rows = list(_rows(groups))
    hidden, positions = _padded_states(model, rows, pad_token_id)
    logits = model.get_output_embeddings()(hidden).float() / temperature
    targets = torch.tensor(
        [token for _, completion in rows for token in completion], device=hidden.device
    )
    logps = F.log_softmax(logits, dim=-1)
    per_token = logps.gather(1, targets[:, None]).squeeze(1)
    lengths = torch.tensor([len(c) for _, c in rows], device=hidden.device)
    owner = torch.repeat_interleave(torch.arange(len(rows), device=hidden.device), lengths)
    sums = torch.zeros(len(rows), device=hidden.device).index_add(0, owner, per_token)
    del positions
    return CompletionLogps(
        per_token, lengths, sums, -(logps.exp() * logps).sum(-1).detach() if entropy else None
    )


def completion_states(
    model: Any,
    groups: Sequence[Group],
    *,
    pad_token_id: int,
    which: Literal["last", "tokens"] = "last",
    path: Path = "auto",
) -> Tensor:
    """Final hidden states.

    `last`: (completions, hidden), the state at each completion's last token (what a reward head
    reads). `tokens`: (tokens, hidden), the state *before* each completion token (what a value
    head reads).
    """
    del path
    rows = list(_rows(groups))
    hidden, _ = _padded_states(model, rows, pad_token_id, last=which == "last")
    return hidden


def _rows(groups: Sequence[Group]) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    for group in groups:
        for completion in group.completions:
            yield group.prompt, completion


def _padded_states(
    model: Any,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    pad_token_id: int,
    last: bool = False,
) -> tuple[Tensor, None]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    device = next(base.parameters()).device
    width = max(len(p) + len(c) for p, c in rows)
    ids = torch.full((len(rows), width), pad_token_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, (prompt, completion) in enumerate(rows):
        ids[i, : len(prompt) + len(completion)] = torch.tensor([*prompt, *completion])
        mask[i, : len(prompt) + len(completion)] = 1
    states = base.base_model(
        input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
    ).last_hidden_state
    picked = [
        states[i, len(p) + len(c) - 1][None] if last else states[i, len(p) - 1 : len(p) + len(c) - 1]
        for i, (p, c) in enumerate(rows)
    ]
    return torch.cat(picked), None
