"""Decide how many rows one forward takes: by a token budget, and by what memory allows.

Neither changes the result: a batch cut into smaller forwards has the same loss and gradient.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


def batches_by_tokens(
    lengths: Sequence[int],
    max_tokens: int,
    *,
    seed: int | None = None,
    max_items: int | None = None,
) -> list[list[int]]:
    """Return the indices of `lengths` in batches of at most `max_tokens` tokens, every index once.

    The order is the given one, or a shuffle of it by `seed`; batches are filled in that order, so
    they stay random. An item longer than the budget gets a batch of its own. `max_items` bounds the
    items of a batch.
    """
    order = list(range(len(lengths)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    batches: list[list[int]] = []
    used = max_tokens
    for index in order:
        full = max_items is not None and bool(batches) and len(batches[-1]) >= max_items
        if not batches or full or used + lengths[index] > max_tokens:
            batches.append([])
            used = 0
        batches[-1].append(index)
        used += lengths[index]
    return batches


class TokenBatches(Sampler[list[int]]):
    """A DataLoader's batch sampler over `batches_by_tokens`, in a new order every epoch.

    The batches are made once from `seed`. So every epoch has the same number of steps, and a run
    resumed in the middle of an epoch sees the same batches.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        max_tokens: int,
        *,
        seed: int,
        max_items: int | None = None,
        shuffle: bool = True,
    ) -> None:
        self.batches = batches_by_tokens(
            lengths, max_tokens, seed=seed if shuffle else None, max_items=max_items
        )
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the order of batches is a function of seed and epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(len(self.batches)))
        if self.shuffle:
            random.Random(f"{self.seed}:{self.epoch}").shuffle(order)
        for index in order:
            yield self.batches[index]


def token_loader(trainer: Any, max_tokens: int, *, max_items: int | None = None) -> DataLoader[Any]:
    """Return a transformers.Trainer's training batches, each of at most `max_tokens` tokens."""
    rows = trainer.train_dataset
    sampler = TokenBatches(
        trainer.sizes,
        max_tokens,
        seed=trainer.args.data_seed or trainer.args.seed,
        max_items=max_items,
    )
    loader: DataLoader[Any] = DataLoader(
        rows,
        batch_sampler=sampler,
        collate_fn=trainer.data_collator,
        pin_memory=trainer.args.dataloader_pin_memory,
    )
    prepared: DataLoader[Any] = trainer.accelerator.prepare(loader)
    return prepared


class MicroBatches:
    """Runs a batch in parts that fit in memory, and halves the parts when one does not fit.

    `size` is the number of items per forward now; it only ever shrinks.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def run(
        self,
        items: Sequence[Item],
        step: Callable[[Sequence[Item], float], Tensor],
        parameters: Sequence[nn.Parameter],
    ) -> Tensor:
        """Return the sum of `step(part, share)` over parts of `items`.

        `step` runs forward and backward of share * mean loss of its part, where `share` is the
        part's share of the items. A part that runs out of memory is undone, with its half-finished
        gradients, and repeated in smaller parts. Raise the error of a single item that does not
        fit.
        """
        total: Tensor | None = None
        start = 0
        while start < len(items):
            part = items[start : start + self.size]
            # A backward that runs out of memory halfway has added to some gradients already.
            before = [None if p.grad is None else p.grad.clone() for p in parameters]
            try:
                loss = step(part, len(part) / len(items))
            except (MemoryError, RuntimeError) as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
                loss = None
            if (
                loss is None
            ):  # outside the `except`, whose traceback holds the failed step's tensors
                self._shrink(len(part), parameters, before)
                continue
            total = loss if total is None else total + loss
            start += len(part)
        if total is None:
            raise ValueError("a batch needs at least one item")
        return total

    def _shrink(
        self, tried: int, parameters: Sequence[nn.Parameter], before: Sequence[Tensor | None]
    ) -> None:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.size = tried // 2
        logger.warning(
            "out of memory with %d rows per forward; continuing with %d", tried, self.size
        )


class FittingSteps:
    """Cuts a training step to what memory allows; list it before transformers.Trainer.

    A batch is a mapping whose values have one entry per row; `sizes` are the token ids in each row
    of the training data. `share` is the factor on a mean over the part's rows. A loss that compares
    rows with each other sets `can_split` to False.
    """

    args: Any
    train_dataset: Any
    sizes: Sequence[int]
    data_collator: Any
    can_split = True
    share = 1.0
    is_measuring = False
    _micro: MicroBatches | None = None

    def training_step(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Run forward and backward of the whole batch, in parts if need be, and return its loss."""
        trainer: Any = super()
        if not self.can_split:
            loss: Tensor = trainer.training_step(model, inputs, num_items_in_batch)
            return loss

        def step(part: Sequence[int], share: float) -> Tensor:
            self.share = share
            rows = slice(part[0], part[-1] + 1)
            piece = {key: value[rows] for key, value in inputs.items()}
            part_loss: Tensor = trainer.training_step(model, piece, num_items_in_batch)
            return part_loss

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self._micro is None:
            size = self.usual_rows
            # A host that runs out of memory kills the process and raises nothing, so trying would
            # teach nothing there.
            if self.args.device.type != "cpu":
                size = self.rows_that_fit(
                    lambda batch: trainer.training_step(model, batch), trained
                )
            # Packed batches hold more rows than were tried, but no more tokens.
            self._micro = MicroBatches(max(1, self.most_rows * size // self.usual_rows))
        count = len(next(iter(inputs.values())))
        try:
            return self._micro.run(range(count), step, trained)
        finally:
            self.share = 1.0

    @property
    def usual_rows(self) -> int:
        """Rows of a batch whose rows are all as long as allowed."""
        rows: int = self.args.per_device_train_batch_size
        return rows

    @property
    def most_rows(self) -> int:
        """Rows of the largest possible batch."""
        return self.usual_rows

    def rows_that_fit(
        self, step: Callable[[Mapping[str, Any]], Tensor], trained: Sequence[nn.Parameter]
    ) -> int:
        """Return how many rows per forward the longest rows allow, tried before the first step.

        This leaves no gradient and draws no random number; a loss logs nothing while
        `is_measuring`.
        """
        longest = sorted(range(len(self.sizes)), key=self.sizes.__getitem__, reverse=True)
        rows = [self.train_dataset[i] for i in longest[: self.usual_rows]]

        def attempt(items: int) -> None:
            try:
                step(self.data_collator(rows[:items]))
            finally:
                for parameter in trained:
                    parameter.grad = None

        self.is_measuring = True
        try:
            with torch.random.fork_rng():
                size = largest_that_fits(attempt, len(rows))
        finally:
            self.is_measuring = False
        if size < len(rows):
            logger.warning("memory holds %d of %d rows per forward", size, len(rows))
        return size


def largest_that_fits(step: Callable[[int], None], start: int) -> int:
    """Return the largest of start, start/2, … items for which `step(items)` fits in memory.

    `step` runs one forward and backward on that many of the longest rows. If even one item does not
    fit, the error passes through, for the caller to explain.
    """
    items = start
    while True:
        try:
            step(items)
            return items
        except (MemoryError, RuntimeError) as error:
            if items == 1 or not is_out_of_memory(error):
                raise
        # Only here are the failed step's tensors free: the exception held them.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        items //= 2


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` means that memory ran out, on the accelerator or on the host."""
    # torch's CPU allocator raises a bare RuntimeError, which only its text tells from others.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
