"""Detect numbers that are not finite where they arise, without waiting for the device.

A NaN spreads: one step after it arose every weight has it, and no loss shows where it came from. So
each forward and each step leaves a mark on the device. The marks are read only where the run waits
for the device anyway: to log, to evaluate, to save, and at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignkit.errors import TrainingFailed

LOWER = "lower learning_rate, or raise warmup_steps"
MOST_FORWARDS = 256  # read the marks after this many at the latest: each forward's places are kept
ROWS_NAMED = 3


@dataclass(frozen=True)
class NotFinite:
    """The first number that was not finite: `what` it is, at which step, in which rows."""

    what: str
    step: int
    rows: tuple[str, ...] = ()

    def failure(self) -> TrainingFailed:
        """Return the error to stop with: it is located at a single row, or names several."""
        if len(self.rows) == 1:
            return TrainingFailed(
                f"{self.what} at step {self.step}",
                where=self.rows[0],
                hint=f"{LOWER}; also look at this row",
            )
        return TrainingFailed(f"{self.what} at step {self.step}{self._among()}", hint=LOWER)

    def _among(self) -> str:
        if not self.rows:
            return ""
        named = ", ".join(self.rows[:ROWS_NAMED])
        more = f" and {len(self.rows) - ROWS_NAMED} more" if len(self.rows) > ROWS_NAMED else ""
        return f", whose rows are {named}{more}"


class Watch:
    """Remembers the first forward, loss and gradient of a run that were not finite.

    `rows`, `loss` and `gradient` add small kernels and never wait; `read` waits for the device.
    """

    def __init__(self, device: torch.device | str) -> None:
        # Number of the forward, its row, step of the loss, step of the gradient; -1 is none yet.
        self._first = torch.full((4,), -1, dtype=torch.int64, device=device)
        self._forwards: list[tuple[str, int, Sequence[str]]] = []
        self._forgotten = 0

    @property
    def is_full(self) -> bool:
        """Whether to read now, even if nothing else makes the run wait."""
        return len(self._forwards) >= MOST_FORWARDS

    def rows(
        self, values: Tensor, where: Sequence[str], step: int, what: str = "the loss of a row"
    ) -> None:
        """Mark a forward: one value per row, (rows,), and the rows' places."""
        bad = ~values.detach().isfinite()
        number = self._forgotten + len(self._forwards)
        self._forwards.append((what, step, where))
        # `torch.where` and not `if`: a branch would copy `new` to the host, and so wait.
        new = bad.any() & (self._first[0] < 0)
        self._first[1] = torch.where(new, bad.int().argmax(), self._first[1])
        self._first[0] = torch.where(new, number, self._first[0])

    def loss(self, value: Tensor, step: int) -> None:
        """Mark the loss of a step or of a part of it."""
        self._mark(2, value, step)

    def gradient(self, norm: Tensor, step: int) -> None:
        """Mark the norm of a step's gradient."""
        self._mark(3, norm, step)

    def read(self) -> NotFinite | None:
        """Return what went wrong first, or None; wait for the device."""
        forward, row, loss, gradient = self._first.tolist()
        first = None
        if forward >= 0:
            what, step, where = self._forwards[forward - self._forgotten]
            first = NotFinite(f"{what} is not finite", step, (where[row],))
        for step, what in ((loss, "the loss"), (gradient, "the norm of the gradient")):
            if step >= 0 and (first is None or step < first.step):
                first = NotFinite(f"{what} is not finite", step, self._rows_of(step))
        self._forgotten += len(self._forwards)
        self._forwards.clear()
        return first

    def _mark(self, place: int, value: Tensor, step: int) -> None:
        new = ~value.detach().isfinite() & (self._first[place] < 0)
        self._first[place] = torch.where(new, step, self._first[place])

    def _rows_of(self, step: int) -> tuple[str, ...]:
        return tuple(row for _, at, where in self._forwards if at == step for row in where)


def check_tensors(tree: Any, what: str, after: str) -> None:
    """Raise TrainingFailed unless every number in a tree of tensors is finite; wait once.

    `after` names what the tensors have just been through, such as `step 12`.
    """
    named = {
        name: tensor.detach()
        for name, tensor in _tensors(tree)
        if tensor.is_floating_point() and tensor.numel()
    }
    if not named:
        return
    # The largest magnitude of a tensor is finite exactly when all of its numbers are.
    peaks = [tensor.abs().amax().float() for tensor in named.values()]
    finite = torch.stack([peak.to(peaks[0].device) for peak in peaks]).isfinite().tolist()
    odd = [name for name, fine in zip(named, finite, strict=True) if not fine]
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise TrainingFailed(
            f"{what} {odd[0]}{more} {'are' if more else 'is'} not finite after {after}",
            hint=LOWER,
        )


def check_numbers(numbers: Mapping[str, Any], step: int | None = None) -> None:
    """Raise TrainingFailed naming the first number, nested ones included, that is not finite."""
    for name, value in _numbers(numbers):
        if not math.isfinite(value):
            place = "" if step is None else f" at step {step}"
            raise TrainingFailed(f"{name} is {value}{place}", hint=LOWER)


def _numbers(values: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", each) for inner, each in _numbers(value))
        elif isinstance(value, float):
            yield name, value


def _tensors(tree: Any, name: str = "") -> Iterable[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
