"""Where the segments of a packed row lie: runs, masks and indices, made once for all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """A prompt of `prompt` tokens followed by branches that do not see each other."""

    prompt: int
    branches: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.prompt + sum(self.branches)


@dataclass(frozen=True)
class Branch:
    """Row indices of one branch: its prompt, its own tokens, and whose queries it answers.

    A prompt's queries go with its first branch, so `queries` is prompt and branch there, without
    the `unread` first ones.
    """

    prompt: range
    own: range
    is_first: bool
    unread: int = 0

    @property
    def queries(self) -> range:
        first = self.prompt.start + self.unread
        return range(first, self.own.stop) if self.is_first else self.own

    @property
    def keys(self) -> list[int]:
        return [*self.prompt, *self.own]


@dataclass(frozen=True)
class VarlenCall:
    """One call of a varlen kernel: row indices of queries and keys, and their run lengths."""

    queries: list[int]
    keys: list[int]
    query_lengths: list[int]
    key_lengths: list[int]


class Layout:
    """The segments of one packed row, for the attention kernels.

    `ends_only`: of a prompt with branches nobody reads more than the last layer's last state.
    """

    def __init__(self, segments: Sequence[Segment], *, ends_only: bool = False) -> None:
        self.segments = tuple(segments)
        self.ends_only = ends_only
        self._masks: dict[tuple[int, int, torch.dtype], Tensor] = {}
        self._sent: dict[tuple[str, torch.device], Tensor] = {}

    @cached_property
    def branches(self) -> list[Branch]:
        """Every branch of the row in order; a prompt without branches counts as an empty one."""
        found = []
        begins = accumulate((s.tokens for s in self.segments), initial=0)
        for start, segment in zip(begins, self.segments, strict=False):
            prompt = range(start, start + segment.prompt)
            stop = prompt.stop
            for number, length in enumerate(segment.branches or (0,)):
                found.append(Branch(prompt, range(stop, stop + length), number == 0))
                stop += length
        return found

    @cached_property
    def read_branches(self) -> list[Branch]:
        """Every branch, with the queries that somebody reads behind the last layer."""
        if not self.ends_only:
            return self.branches
        return [
            replace(b, unread=len(b.prompt) - 1) if b.is_first and b.own and b.prompt else b
            for b in self.branches
        ]

    @cached_property
    def key_lengths(self) -> list[int]:
        """The row cut into prompts and branches: each prompt, then each of its branches."""
        return [
            length
            for branch in self.branches
            for length in ((len(branch.prompt),) if branch.is_first else ()) + (len(branch.own),)
        ]

    @cached_property
    def padded_rows(self) -> tuple[list[int], list[int]]:
        """Gather index of branches as padded rows (rows * width), and the index that undoes it.

        Padding repeats a row's last token: causal attention keeps it out of every real query.
        """
        rows = [branch.keys for branch in self.branches]
        width = max(map(len, rows))
        gather = [i for row in rows for i in row + row[-1:] * (width - len(row))]
        back = {i: r * width + at for r, row in enumerate(rows) for at, i in enumerate(row)}
        return gather, [back[i] for i in range(len(back))]

    @cached_property
    def varlen_calls(self) -> dict[str, VarlenCall]:
        """Prompts with their first branch in one call, all other branches in a second."""
        calls = {}
        for name, firsts in {"first": True, "others": False}.items():
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
        """Additive mask (branch, prompt + branch): all of the prompt, the branch causally."""
        key = prompt, branch, like.dtype
        if key not in self._masks:
            blank = torch.full((branch, prompt + branch), float("-inf"), device=like.device)
            self._masks[key] = blank.triu_(prompt + 1).to(like.dtype)
        return self._masks[key]

    def sent(self, name: str, numbers: Sequence[int], device: torch.device) -> Tensor:
        """`numbers` as a tensor on `device`, sent once per row and not once per layer."""
        if (name, device) not in self._sent:
            self._sent[name, device] = torch.tensor(numbers).to(device, non_blocking=True)
        return self._sent[name, device]
