"""Describe where the segments of a packed row lie: index lists and masks, made once for all layers.

A row of two prompts, the first with two completions, is `[P P P|A A|B B B|Q Q]`:
  Segment(prompt=3, branches=(2, 3)), Segment(prompt=2, branches=())
A and B both attend to P, as if each followed it directly, and neither attends to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """A prompt of `prompt` tokens, followed by branches that do not see each other."""

    prompt: int
    branches: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of prompt and branches together."""
        return self.prompt + sum(self.branches)


@dataclass(frozen=True)
class Branch:
    """Row indices of one branch: its prompt, its own tokens, and the queries computed with it.

    A prompt's queries are computed once, with its first branch. There `queries` covers prompt and
    branch, without the first `unread` tokens.
    """

    prompt: range
    own: range
    is_first: bool
    unread: int = 0

    @property
    def queries(self) -> range:
        # In a first branch `own` follows `prompt` without a gap, so one range covers both.
        """Row indices of the queries computed with this branch."""
        first = self.prompt.start + self.unread
        return range(first, self.own.stop) if self.is_first else self.own

    @property
    def keys(self) -> list[int]:
        """Row indices of the keys this branch may see: all of its prompt, and its own tokens."""
        return [*self.prompt, *self.own]


@dataclass(frozen=True)
class VarlenCall:
    """One call of a varlen kernel: row indices of queries and keys, and lengths of their runs."""

    queries: list[int]
    keys: list[int]
    query_lengths: list[int]
    key_lengths: list[int]


class Layout:
    """The segments of one packed row, as the attention kernels need them.

    `ends_only` says that of a prompt with branches, only its last token's output of the last layer
    is used: it predicts the first token of every branch.
    """

    def __init__(self, segments: Sequence[Segment], *, ends_only: bool = False) -> None:
        self.segments = tuple(segments)
        self.ends_only = ends_only
        self._masks: dict[tuple[int, int, torch.dtype], Tensor] = {}
        self._sent: dict[tuple[str, torch.device], Tensor] = {}

    @cached_property
    def branches(self) -> list[Branch]:
        """Every branch of the row, in order; a prompt without branches counts as an empty one."""
        branches = []
        begins = accumulate((s.tokens for s in self.segments), initial=0)
        for start, segment in zip(begins, self.segments, strict=False):
            prompt = range(start, start + segment.prompt)
            stop = prompt.stop
            # A prompt alone gets an empty branch, which carries the prompt's queries.
            for number, length in enumerate(segment.branches or (0,)):
                branches.append(Branch(prompt, range(stop, stop + length), number == 0))
                stop += length
        return branches

    @cached_property
    def read_branches(self) -> list[Branch]:
        """Every branch, without the queries whose output of the last layer nothing uses."""
        if not self.ends_only:
            return self.branches
        # All but the last token of a prompt are skipped, and only of a prompt that has a branch:
        # a prompt alone is a whole sequence (SFT), each of whose tokens predicts the next.
        return [
            replace(b, unread=len(b.prompt) - 1) if b.is_first and b.own and b.prompt else b
            for b in self.branches
        ]

    @cached_property
    def key_lengths(self) -> list[int]:
        """Lengths that cut the row into runs of keys: each prompt, then each of its branches."""
        return [
            length
            for branch in self.branches
            for length in ((len(branch.prompt),) if branch.is_first else ()) + (len(branch.own),)
        ]

    @cached_property
    def padded_rows(self) -> tuple[list[int], list[int]]:
        """Index that gathers branches into padded rows (rows * width), and the one that undoes it.

        Padding repeats a row's last token. It comes after every real query, so causal attention
        hides it.
        """
        rows = [branch.keys for branch in self.branches]
        width = max(map(len, rows))
        gather = [i for row in rows for i in row + row[-1:] * (width - len(row))]
        # A prompt's token is in the row of every branch; the last of them wins, and all are equal.
        back = {i: r * width + at for r, row in enumerate(rows) for at, i in enumerate(row)}
        return gather, [back[i] for i in range(len(back))]

    @cached_property
    def varlen_calls(self) -> dict[str, VarlenCall]:
        """Prompts with their first branch in one call, all other branches in a second."""
        calls = {}
        for name, firsts in {"first": True, "others": False}.items():
            # Each query must be in exactly one call. A later branch that is empty has none, and
            # kernels take no run of length zero.
            chosen = [b for b in self.branches if b.is_first is firsts and b.queries]
            if chosen:
                calls[name] = VarlenCall(
                    queries=[i for b in chosen for i in b.queries],
                    keys=[i for b in chosen for i in b.keys],
                    query_lengths=[len(b.queries) for b in chosen],
                    key_lengths=[len(b.keys) for b in chosen],
                )
        return calls

    def mask(self, prompt: int, branch: int, like: Tensor) -> Tensor:
        """Return an additive causal mask (branch, prompt + branch) that shows all of the prompt."""
        key = prompt, branch, like.dtype
        if key not in self._masks:
            # Query i stands at column prompt + i and sees itself, so -inf starts one to its right:
            # `triu_(prompt)` would hide every token from itself.
            hidden = torch.full((branch, prompt + branch), float("-inf"), device=like.device)
            self._masks[key] = hidden.triu_(prompt + 1).to(like.dtype)
        return self._masks[key]

    def sent(self, name: str, numbers: Sequence[int], device: torch.device) -> Tensor:
        """Return `numbers` as a tensor on `device`, copied once per row and not once per layer."""
        if (name, device) not in self._sent:
            self._sent[name, device] = torch.tensor(numbers).to(device, non_blocking=True)
        return self._sent[name, device]
