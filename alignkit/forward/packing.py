"""Token ids of prompts and completions, packed into one row without padding.

A packed row is `[P1|C11|C12|…|P2|C21|…]`: every prompt once, its completions side by side after it,
positions restarting behind the prompt for each of them. `alignkit.forward.attention` then keeps
completions apart. Everything here is arithmetic on lengths and ids; no model is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from alignkit.errors import DataError
from alignkit.forward.layout import Segment

Which = Literal["last", "tokens", "all"]


@dataclass(frozen=True)
class Group:
    """One prompt and its completions, as token ids; every completion holds at least one token."""

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]


@dataclass(frozen=True)
class PackedRow:
    """One row of several segments, and where the states that count are.

    `ids`, `positions`: (1, row). `states`: (picked,) index into the row of each state asked for.
    `targets`: (picked,) the token each state predicts, or empty. `lengths`: (sequences,) how many
    of the picked belong to each sequence. `copies`: index into the picked that spreads them over
    repeated completions, or None when none repeats; `lengths` counts after spreading.
    """

    ids: Tensor
    positions: Tensor
    segments: tuple[Segment, ...]
    states: Tensor
    targets: Tensor
    lengths: Tensor
    copies: Tensor | None = None


@dataclass(frozen=True)
class PaddedRows:
    """The same states from rows of prompt and completion, padded on the right.

    `ids`, `mask`: (rows, width). `states`: (picked,) index into the flattened (rows * width).
    """

    ids: Tensor
    mask: Tensor
    states: Tensor
    targets: Tensor
    lengths: Tensor
    copies: None = None


def pack(groups: Sequence[Group], which: Which = "tokens") -> PackedRow:
    """The packed row of `groups`: equal prompts once, equal completions of a prompt once.

    `tokens` picks the state before each completion token (so a completion's last token is not fed
    at all); `last` picks the state at each completion's last token; `all` both, so one more than
    the completion has tokens.
    """
    check_groups(groups)
    tree = _merged(groups)
    fed = [
        (prompt, [c[:-1] if which == "tokens" else c for c in completions])
        for prompt, completions in tree.items()
    ]
    ids = [i for prompt, branches in fed for part in (prompt, *branches) for i in part]
    positions = [
        i
        for prompt, branches in fed
        for first, part in ((0, prompt), *((len(prompt), b) for b in branches))
        for i in range(first, first + len(part))
    ]
    segments = tuple(Segment(len(p), tuple(map(len, branches))) for p, branches in fed)
    states, targets, places = _picked(tree, segments, which)
    wanted = [places[tuple(g.prompt), tuple(c)] for g in groups for c in g.completions]
    picked = [i for start, stop in wanted for i in range(start, stop)]
    repeats = picked != list(range(len(states)))
    return PackedRow(
        ids=torch.tensor([ids]),
        positions=torch.tensor([positions]),
        segments=segments,
        states=torch.tensor(states),
        targets=torch.tensor(targets, dtype=torch.long),
        lengths=torch.tensor([stop - start for start, stop in wanted]),
        copies=torch.tensor(picked) if repeats else None,
    )


def pack_sequences(ids: Sequence[Sequence[int]], masks: Sequence[Sequence[int]]) -> PackedRow:
    """Independent sequences in one row; `masks` says which tokens are targets.

    A sequence's first token predicts from nothing and never counts; tokens behind the last target
    are not fed.
    """
    row: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    states: list[int] = []
    targets: list[int] = []
    lengths: list[int] = []
    for sequence, mask in zip(ids, masks, strict=True):
        counted = [i for i in range(1, len(sequence)) if mask[i]]
        lengths.append(len(counted))
        if not counted:
            continue
        states += [len(row) + i - 1 for i in counted]
        targets += [sequence[i] for i in counted]
        row += sequence[: counted[-1]]
        positions += range(counted[-1])
        segments.append(Segment(counted[-1], ()))
    return PackedRow(
        ids=torch.tensor([row], dtype=torch.long),
        positions=torch.tensor([positions], dtype=torch.long),
        segments=tuple(segments),
        states=torch.tensor(states, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        lengths=torch.tensor(lengths),
    )


def pad(groups: Sequence[Group], pad_token_id: int, which: Which = "tokens") -> PaddedRows:
    """One row per completion, prompt first, padded on the right; nothing is shared."""
    check_groups(groups)
    pairs = [(list(g.prompt), list(c)) for g in groups for c in g.completions]
    rows = [prompt + completion for prompt, completion in pairs]
    first = [len(c) if which == "last" else 0 for _, c in pairs]
    counted = [
        range(len(p) - 1 + skipped, len(p) + len(c) - (which == "tokens"))
        for (p, c), skipped in zip(pairs, first, strict=True)
    ]
    targets = [i for _, c in pairs for i in c] if which == "tokens" else []
    return _padded(rows, counted, targets, pad_token_id)


def pad_sequences(
    ids: Sequence[Sequence[int]], masks: Sequence[Sequence[int]], pad_token_id: int
) -> PaddedRows:
    """`pack_sequences` on padded rows."""
    counted = [
        [i - 1 for i in range(1, len(sequence)) if mask[i]]
        for sequence, mask in zip(ids, masks, strict=True)
    ]
    targets = [s[i + 1] for s, places in zip(ids, counted, strict=True) for i in places]
    return _padded([list(s) for s in ids], counted, targets, pad_token_id)


def check_groups(groups: Sequence[Group]) -> None:
    """Refuse what has no log-prob: an empty prompt or an empty completion."""
    for number, group in enumerate(groups):
        if not group.prompt:
            raise DataError(
                f"the prompt of group {number} has no token, so nothing predicts its completions",
                hint="Start prompts with the tokenizer's BOS token or a chat template.",
            )
        if not all(group.completions):
            raise DataError(
                f"group {number} has an empty completion",
                hint="A completion ends in its stop token, so it is never empty; drop the row.",
            )


Tree = dict[tuple[int, ...], list[tuple[int, ...]]]


def _merged(groups: Sequence[Group]) -> Tree:
    """Each distinct prompt with its distinct completions, in order of first appearance."""
    tree: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for group in groups:
        branches = tree.setdefault(tuple(group.prompt), {})
        branches.update(dict.fromkeys(tuple(c) for c in group.completions))
    return {prompt: list(branches) for prompt, branches in tree.items()}


def _picked(
    tree: Tree, segments: Sequence[Segment], which: Which
) -> tuple[list[int], list[int], dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[int, int]]]:
    """States picked from the row, their targets, and which of them belong to each completion."""
    states: list[int] = []
    targets: list[int] = []
    places = {}
    start = 0
    for (prompt, completions), segment in zip(tree.items(), segments, strict=True):
        ends = accumulate(segment.branches, initial=start + segment.prompt)
        for completion, fed, begin in zip(completions, segment.branches, ends, strict=False):
            first = len(states)
            if which == "last":
                states.append(begin + fed - 1)
            else:
                states += [start + segment.prompt - 1, *range(begin, begin + fed)]
                targets += completion if which == "tokens" else ()
            places[prompt, completion] = first, len(states)
        start += segment.tokens
    return states, targets, places


def _padded(
    rows: Sequence[list[int]],
    counted: Sequence[Sequence[int]],
    targets: Sequence[int],
    pad_token_id: int,
) -> PaddedRows:
    width = max(map(len, rows))
    return PaddedRows(
        ids=torch.tensor([row + [pad_token_id] * (width - len(row)) for row in rows]),
        mask=torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        states=torch.tensor(
            [number * width + i for number, places in enumerate(counted) for i in places],
            dtype=torch.long,
        ),
        targets=torch.tensor(targets, dtype=torch.long),
        lengths=torch.tensor([len(places) for places in counted]),
    )
