"""Mix several files into one by weights and caps, or balance one by a field; seeded, exact."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal

from alignkit.data.edit.shares import field_of
from alignkit.data.records import Preference, Record
from alignkit.errors import DataError, RecipeError

Method = Literal["down", "up", "weight"]


def quotas(
    sizes: Mapping[str, int],
    weights: Mapping[str, float],
    *,
    total: int | None = None,
    cap: int | None = None,
) -> dict[str, int]:
    """Return how many records to take of each source: in the ratio of the weights, none twice.

    Without `total`, as many as the scarcest source allows. `cap` bounds every source.
    """
    positive = {name: weight for name, weight in weights.items() if weight > 0}
    if not positive:
        raise RecipeError("all weights are zero", hint="Fix: FILE=0.7 FILE=0.3")
    available = {name: min(sizes[name], cap or sizes[name]) for name in positive}
    scale = min(available[name] / weight for name, weight in positive.items())
    whole = sum(positive.values())
    if total is not None and total > scale * whole + 1e-9:
        scarce = min(positive, key=lambda name: available[name] / positive[name])
        raise DataError(
            f"{total:,} records in these shares need {round(total * positive[scarce] / whole):,} "
            f"of {scarce}, which has {available[scarce]:,}",
            hint=f"Fix: --total {int(scale * whole)} at most, or other weights",
        )
    return _rounded(positive, total if total is not None else int(scale * whole), available)


def _rounded(
    weights: Mapping[str, float], total: int, available: Mapping[str, int]
) -> dict[str, int]:
    """Divide `total` by the largest-remainder method (Hamilton)."""
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    counts = {name: min(int(share + 1e-9), available[name]) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder:
        if sum(counts.values()) < total and counts[name] < available[name]:
            counts[name] += 1
    return counts


def mix(
    sources: Mapping[str, Sequence[Record]],
    weights: Mapping[str, float],
    *,
    total: int | None = None,
    cap: int | None = None,
    seed: int = 0,
) -> list[Record]:
    """Sample each source, seeded, in the ratio of the weights, and shuffle them together."""
    sizes = {name: len(records) for name, records in sources.items()}
    rng = random.Random(seed)
    mixed: list[Record] = []
    for name, size in quotas(sizes, weights, total=total, cap=cap).items():
        mixed += rng.sample(list(sources[name]), size)
    rng.shuffle(mixed)
    return mixed


def balance(
    records: Sequence[Record], by: str, *, method: Method = "down", seed: int = 0
) -> list[Record]:
    """Give every value of a field equal weight.

    `down` samples each value down to the rarest, `up` repeats the rarer ones (marked in ids),
    `weight` keeps all and sets weights whose mean is 1. Order is kept; repetitions come last.
    """
    groups: dict[str, list[int]] = {}
    for position, record in enumerate(records):
        groups.setdefault(field_of(record, by), []).append(position)
    if len(groups) < 2:
        only = next(iter(groups), "")
        raise DataError(
            f"field {by!r} has only one value: {only!r}",
            hint="Fix: name a field that differs between rows",
        )
    return METHODS[method](records, groups, random.Random(seed))


Groups = Mapping[str, Sequence[int]]


def _down(records: Sequence[Record], groups: Groups, rng: random.Random) -> list[Record]:
    least = min(len(members) for members in groups.values())
    chosen = {p for name in sorted(groups) for p in rng.sample(list(groups[name]), least)}
    return [record for position, record in enumerate(records) if position in chosen]


def _up(records: Sequence[Record], groups: Groups, rng: random.Random) -> list[Record]:
    most = max(len(members) for members in groups.values())
    result = list(records)
    for name in sorted(groups):
        members = list(groups[name])
        for copy in range(most - len(members)):
            if copy % len(members) == 0:
                rng.shuffle(members)
            original = records[members[copy % len(members)]]
            copy_id = f"{original.id}+{copy // len(members) + 1}"
            result.append(original.model_copy(update={"id": copy_id}))
    return result


def _weight(records: Sequence[Record], groups: Groups, _rng: random.Random) -> list[Record]:
    weights = {
        position: len(records) / (len(groups) * len(members))
        for members in groups.values()
        for position in members
    }
    return [_weighted(record, weights[position]) for position, record in enumerate(records)]


def _weighted(record: Record, weight: float) -> Record:
    if isinstance(record, Preference):
        return record.model_copy(update={"weight": record.weight * weight})
    return record.model_copy(update={"extra": {**record.extra, "weight": weight}})


METHODS = {"down": _down, "up": _up, "weight": _weight}
