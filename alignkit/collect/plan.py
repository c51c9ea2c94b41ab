"""Plan which items each annotator sees, in which order; a restart gives the same plan.

A plan is a list of showings: (item id, 0) for the first, (item id, 1) for an unannounced repeat.
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
    """The settings of a collection, the same for all its annotators."""

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
            raise RecipeError(f"repeat is {self.repeat}; it must be between 0 and 1")
        if self.overlap is not None and self.overlap < 1:
            raise RecipeError(f"overlap is {self.overlap}; it must be at least 1")
        if self.assign == "round-robin" and len(self.annotators) < (self.overlap or 1):
            raise RecipeError(
                f"{len(self.annotators)} annotators are too few for an overlap of {self.overlap}",
                hint="Name every annotator: --annotator ann --annotator ben",
            )


def plan_for(
    annotator: str, items: Mapping[str, Item], settings: Settings, marks: Marks
) -> list[Showing]:
    """Return the showings of one annotator, each repeat long after its first showing."""
    assigned = ASSIGNMENTS[settings.assign](list(items), annotator, settings)
    key, salt = ORDERS[settings.order], marks.of("order", settings.seed, annotator)
    ordered = sorted(assigned, key=lambda name: key(items[name], salt))
    return with_repeats(ordered, annotator, settings, marks)


def with_repeats(
    names: Sequence[str], annotator: str, settings: Settings, marks: Marks
) -> list[Showing]:
    """Return each item once and a share of them again, never soon after the first showing."""
    wanted = round(settings.repeat * len(names))
    # Far enough to be forgotten, near enough to come before the annotator stops.
    gap = max(10, len(names) // 5)
    # Too few items follow the last ones: repeat those only if all items are repeated.
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
    """Assign item i to `overlap` annotators in turn, starting with the i-th."""
    annotators = settings.annotators
    if annotator not in annotators:
        raise RecipeError(f"{annotator!r} is not one of the annotators {', '.join(annotators)}")
    place, overlap = annotators.index(annotator), settings.overlap or 1
    return [name for i, name in enumerate(names) if (place - i) % len(annotators) < overlap]


# Sort keys. Sorting is stable, so equal keys keep the order of the file.
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
