"""Split by prompt: no prompt is in two parts, groups stay whole, a seed decides."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

from alignkit.data.read import prompt_of
from alignkit.data.records import Demonstration, Preference, Ranking, Record
from alignkit.errors import RecipeError

R = TypeVar("R", bound=Record)


def prompt_key(record: Record) -> str:
    """Return a key that records with the same prompt share, ignoring white space at the ends.

    Plain text has no prompt; the whole text serves as its key.
    """
    prompt = prompt_of(record)
    if prompt is not None:
        asked = prompt.prompt
    elif isinstance(record, Demonstration) and record.plain:
        asked = record.messages
    else:
        return f"no prompt: {record.id}"
    text = "\x1e".join(f"{m.role}\x1f{m.content.strip()}" for m in asked)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def split_by_prompt(records: Iterable[R], fraction: float, seed: int) -> tuple[list[R], list[R]]:
    """Return (train, held out) with about `fraction` of the prompts held out; order is kept."""
    train, held_out = split_parts(records, [1.0 - fraction, fraction], seed)
    return train, held_out


def split_parts(
    records: Iterable[R],
    shares: Sequence[float],
    seed: int,
    *,
    stratum: Callable[[R], str] | None = None,
) -> list[list[R]]:
    """Split records into parts of about these shares of the prompts; order is kept in a part.

    With `stratum`, each of its values is split in these shares (a prompt group belongs to the
    stratum of its first record).
    """
    records = list(records)
    strata = [stratum(record) for record in records] if stratum else None
    ties = Ties()
    for record in records:
        ties.add(record)
    return [[records[position] for position in part] for part in ties.split(shares, seed, strata)]


class Ties:
    """Keeps records together that share a prompt or a group.

    Only 64 bits of each name's hash are stored, so that 100,000 records take two megabytes. Two
    names with equal bits by chance would only be kept together.
    """

    def __init__(self) -> None:
        self.prompts = array("Q")
        self.groups = array("Q")

    def __len__(self) -> int:
        return len(self.prompts)

    def add(self, record: Record) -> None:
        """Add one record."""
        group = None
        if isinstance(record, Preference):
            group = record.group
        elif isinstance(record, Ranking):
            group = record.item
        self.prompts.append(_hash64(prompt_key(record)))
        self.groups.append(_hash64(group) if group else 0)

    def split(
        self, shares: Sequence[float], seed: int, strata: Sequence[str] | None = None
    ) -> list[list[int]]:
        """Return the records' positions in parts of about these shares of what stays together."""
        if not shares or any(share < 0 for share in shares) or abs(sum(shares) - 1.0) > 1e-9:
            raise RecipeError(
                f"shares {list(shares)} do not sum to 1", hint="Fix: e.g. 0.8,0.1,0.1"
            )
        first = self._first_of_each()
        by_stratum: dict[str, list[int]] = {}
        for position, leader in enumerate(first):
            if position == leader:
                by_stratum.setdefault(strata[position] if strata else "", []).append(position)
        part_of = array("Q", bytes(8 * len(self)))
        for name in sorted(by_stratum):
            dealt = _dealt(by_stratum[name], shares, random.Random(f"{seed}/{name}"))
            for part, position in dealt:
                part_of[position] = part
        parts: list[list[int]] = [[] for _ in shares]
        for position, leader in enumerate(first):
            parts[part_of[leader]].append(position)
        return parts

    def _first_of_each(self) -> array[int]:
        """Map each record to the first of those it must stay with, possibly itself."""
        parent = array("Q", range(len(self)))

        def root(position: int) -> int:
            while parent[position] != position:
                parent[position] = parent[parent[position]]
                position = parent[position]
            return position

        for names in (self.prompts, self.groups):
            for one, other in pairwise(sorted(range(len(self)), key=names.__getitem__)):
                if names[one] and names[one] == names[other]:
                    left, right = root(one), root(other)
                    parent[max(left, right)] = min(left, right)
        return array("Q", map(root, range(len(self))))


def _hash64(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) or 1  # 0 means none


def _dealt(groups: list[int], shares: Sequence[float], rng: random.Random) -> list[tuple[int, int]]:
    """Shuffle the groups and cut them by the shares into (part, group).

    Of two positive shares, each gets at least one group if there are two.
    """
    shuffled = list(groups)
    rng.shuffle(shuffled)
    cuts, total = [], 0.0
    for share in shares[:-1]:
        total += share
        cuts.append(round(total * len(shuffled)))
    if len(shares) == 2 and len(shuffled) > 1 and 0 < shares[1] < 1:
        cuts = [min(max(cuts[0], 1), len(shuffled) - 1)]
    bounds = [0, *cuts, len(shuffled)]
    return [
        (part, group)
        for part in range(len(shares))
        for group in shuffled[bounds[part] : bounds[part + 1]]
    ]
