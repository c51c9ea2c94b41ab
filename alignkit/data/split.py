"""Splitting by prompt: no prompt stands in two parts, groups stay whole, a seed decides."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from alignkit.data.read import prompt_of
from alignkit.data.records import Preference, Ranking, Record
from alignkit.errors import RecipeError

R = TypeVar("R", bound=Record)


def prompt_key(record: Record) -> str:
    """What two records share when they have the same prompt, white space at the ends aside."""
    prompt = prompt_of(record)
    if prompt is None:
        return f"no prompt: {record.id}"
    text = "\x1e".join(f"{m.role}\x1f{m.content.strip()}" for m in prompt.prompt)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def split_by_prompt(records: Iterable[R], fraction: float, seed: int) -> tuple[list[R], list[R]]:
    """(train, held out) with about `fraction` of the prompts held out; order is kept."""
    train, held_out = split_parts(records, [1.0 - fraction, fraction], seed)
    return train, held_out


def split_parts(
    records: Iterable[R],
    shares: Sequence[float],
    seed: int,
    *,
    stratum: Callable[[R], str] | None = None,
) -> list[list[R]]:
    """The records in parts of about these shares of the prompts; order is kept within a part.

    With `stratum` each value of it is split in these shares (a prompt group belongs to the
    stratum of its first record).
    """
    if not shares or any(share < 0 for share in shares) or abs(sum(shares) - 1.0) > 1e-9:
        raise RecipeError(f"shares {list(shares)} do not sum to 1", hint="Fix: e.g. 0.8,0.1,0.1")
    listed = list(records)
    groups = _groups(listed)
    strata: dict[str, list[list[int]]] = {}
    for members in groups:
        name = stratum(listed[members[0]]) if stratum else ""
        strata.setdefault(name, []).append(members)
    part_of = [0] * len(listed)
    for name in sorted(strata):
        for part, members in _dealt(strata[name], shares, random.Random(f"{seed}/{name}")):
            for member in members:
                part_of[member] = part
    parts: list[list[R]] = [[] for _ in shares]
    for record, part in zip(listed, part_of, strict=True):
        parts[part].append(record)
    return parts


def _groups(records: Sequence[Record]) -> list[list[int]]:
    """Positions that must stay together: those with the same prompt, or the same group."""
    parent = list(range(len(records)))

    def root(position: int) -> int:
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = parent[position]
        return position

    first: dict[str, int] = {}
    for position, record in enumerate(records):
        for name in _ties(record):
            other = first.setdefault(name, position)
            left, right = root(position), root(other)
            parent[max(left, right)] = min(left, right)
    groups: dict[int, list[int]] = {}
    for position in range(len(records)):
        groups.setdefault(root(position), []).append(position)
    return list(groups.values())


def _ties(record: Record) -> list[str]:
    names = [prompt_key(record)]
    if isinstance(record, Preference) and record.group:
        names.append(f"group {record.group}")
    if isinstance(record, Ranking) and record.item:
        names.append(f"group {record.item}")
    return names


def _dealt(
    groups: Sequence[list[int]], shares: Sequence[float], rng: random.Random
) -> list[tuple[int, list[int]]]:
    """Each group with its part: shuffled, then cut where the shares say, at least one group for
    every positive share while there are enough."""
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
        (part, members)
        for part in range(len(shares))
        for members in shuffled[bounds[part] : bounds[part + 1]]
    ]
