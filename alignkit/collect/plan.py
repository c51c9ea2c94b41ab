"""Who is shown what, and in which order: decided by the collection's marks, so a restart agrees.

A plan is a list of showings: (item id, 0) the first time, (item id, 1) for a silent repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.collect.choice import disagreement, uncertainty
from alignkit.collect.items import Item
from alignkit.collect.secret import Marks, digest
from alignkit.errors import RecipeError, pick

Showing = tuple[str, int]


@dataclass(frozen=True)
class Settings:
    """What a collection was asked to do; the same for all its annotators."""

    seed: int = 17
    order: str = "file"
    repeat: float = 0.0
    overlap: int | None = None
    assign: str = "open"
    annotators: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        pick(ORDERS, self.order, what="order")
        pick(ASSIGNMENTS, self.assign, what="assignment")
        if not 0 <= self.repeat <= 1:
            raise RecipeError(f"repeat is {self.repeat}; a share between 0 and 1 is due")
        if self.overlap is not None and self.overlap < 1:
            raise RecipeError(f"overlap is {self.overlap}; at least one annotator ranks an item")
        if self.assign == "round-robin" and len(self.annotators) < (self.overlap or 1):
            raise RecipeError(
                f"{len(self.annotators)} annotators cannot overlap {self.overlap} times",
                hint="Name all of them: --annotator ann --annotator ben",
            )


def plan_for(
    annotator: str, items: Mapping[str, Item], settings: Settings, marks: Marks
) -> list[Showing]:
    """The showings of one annotator, repeats well behind their first showing."""
    mine = ASSIGNMENTS[settings.assign](list(items), annotator, settings)
    key, salt = ORDERS[settings.order], marks.of("order", settings.seed, annotator)
    ordered = sorted(mine, key=lambda name: key(items[name], salt))
    return with_repeats(ordered, annotator, settings, marks)


def with_repeats(
    names: Sequence[str], annotator: str, settings: Settings, marks: Marks
) -> list[Showing]:
    """The items once, and a share of them again: never close behind the first showing."""
    wanted = round(settings.repeat * len(names))
    # Far enough not to be remembered, near enough that it comes before the annotator stops.
    gap = max(10, len(names) // 5)
    # The last items have nothing to come between; they are taken only when all are wanted.
    early = names[: max(wanted, len(names) - gap)]
    by_hash = sorted(early, key=lambda name: marks.of("repeat", settings.seed, annotator, name))
    repeated = set(by_hash[:wanted])
    plan: list[Showing] = []
    waiting: list[tuple[int, str]] = []
    for position, name in enumerate(names):
        plan.append((name, 0))
        if name in repeated:
            waiting.append((position + gap, name))
        while waiting and waiting[0][0] <= position:
            plan.append((waiting.pop(0)[1], 1))
    return plan + [(name, 1) for _, name in waiting]


def _round_robin(names: list[str], annotator: str, settings: Settings) -> list[str]:
    """Item i goes to `overlap` annotators in turn, starting with the i-th."""
    crew = settings.annotators
    if annotator not in crew:
        raise RecipeError(f"{annotator!r} is none of the annotators {', '.join(crew)}")
    place, overlap = crew.index(annotator), settings.overlap or 1
    return [name for i, name in enumerate(names) if (place - i) % len(crew) < overlap]


# Sort keys; sorting is stable, so equal keys keep the file's order.
ORDERS: dict[str, Callable[[Item, str], Any]] = {
    "file": lambda _item, _salt: 0,
    "random": lambda item, salt: digest(salt, item.id),
    "uncertain": lambda item, _salt: -uncertainty(item),
    "disagreement": lambda item, _salt: -disagreement(item),
}
ASSIGNMENTS: dict[str, Callable[[list[str], str, Settings], list[str]]] = {
    "open": lambda names, _annotator, _settings: names,
    "round-robin": _round_robin,
}
