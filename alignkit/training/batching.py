"""How many rows go through the model at once: a token budget, and what memory allows.

Neither changes a number: a batch cut into smaller forwards has the same loss and gradient.
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
    """Indices of `lengths` in batches of at most `max_tokens` tokens each, every index once.

    Order is the given one, or a shuffle of it by `seed`; batches are filled first come, first
    served, so they stay random. An item longer than the budget gets a batch of its own.
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
    """A DataLoader's batch sampler: batches of `batches_by_tokens`, their order new every epoch.

    Batches are made once from `seed`, so every epoch has the same number of steps and a run
    resumed in the middle of one finds the same batches.
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
        """The order of batches is a function of seed and epoch."""
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
    """A transformers.Trainer's training batches, each of at most `max_tokens` tokens."""
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
    """Runs a batch in parts that fit in memory, and halves the parts when one does not.

    `size` is the number of items a forward takes now; it only ever shrinks.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def run(
        self,
        items: Sequence[Item],
        step: Callable[[Sequence[Item], float], Tensor],
        parameters: Sequence[nn.Parameter],
    ) -> Tensor:
        """Sum of `step(part, share)` over parts of `items`; `share` is the part's of the items.

        `step` does forward and backward of share * mean loss of its part. A part that runs out of
        memory is undone (its half-finished gradients with it) and repeated in smaller parts.
        """
        total: Tensor | None = None
        start = 0
        while start < len(items):
            part = items[start : start + self.size]
            before = [None if p.grad is None else p.grad.clone() for p in parameters]
            try:
                loss = step(part, len(part) / len(items))
            except (MemoryError, RuntimeError) as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
                loss = None
            if loss is None:  # outside the except: its traceback holds the failed step's tensors
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
            "out of memory with %d rows in a forward; going on with %d", tried, self.size
        )


class FittingSteps:
    """Before a transformers.Trainer among the bases: its training step, cut to what memory allows.

    A batch is a mapping whose values have one entry a row; `sizes` are the token ids in each row of
    the training data. `share` is what a mean over the part's
    rows must be multiplied with; a loss that compares rows with each other sets `can_split` false.
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
        """Forward and backward of the whole batch; its loss."""
        whole: Any = super()
        if not self.can_split:
            loss: Tensor = whole.training_step(model, inputs, num_items_in_batch)
            return loss

        def step(part: Sequence[int], share: float) -> Tensor:
            self.share = share
            rows = slice(part[0], part[-1] + 1)
            piece = {key: value[rows] for key, value in inputs.items()}
            found: Tensor = whole.training_step(model, piece, num_items_in_batch)
            return found

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self._micro is None:
            size = self.usual_rows
            # A host without memory kills the process instead of raising, so there it tells nothing.
            if self.args.device.type != "cpu":
                size = self.rows_that_fit(lambda batch: whole.training_step(model, batch), trained)
            # Packed batches hold more rows than the longest that were tried, but no more tokens.
            self._micro = MicroBatches(max(1, self.most_rows * size // self.usual_rows))
        count = len(next(iter(inputs.values())))
        try:
            return self._micro.run(range(count), step, trained)
        finally:
            self.share = 1.0

    @property
    def usual_rows(self) -> int:
        """Rows of a batch whose rows are all as long as they may be."""
        rows: int = self.args.per_device_train_batch_size
        return rows

    @property
    def most_rows(self) -> int:
        """Rows of the largest batch there can be."""
        return self.usual_rows

    def rows_that_fit(
        self, step: Callable[[Mapping[str, Any]], Tensor], trained: Sequence[nn.Parameter]
    ) -> int:
        """Rows of a forward that the longest rows of the data allow, tried before the first step.

        Leaves no gradient and no random number drawn; a loss notes nothing while `is_measuring`.
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
            logger.warning("memory holds %d of %d rows in a forward", size, len(rows))
        return size


def largest_that_fits(step: Callable[[int], None], start: int) -> int:
    """The largest of start, start/2, … items for which `step(items)` does not run out of memory.

    `step` runs one forward and backward on that many copies of the longest batch. Running out with
    one item is the caller's to explain, so that error passes through.
    """
    items = start
    while True:
        try:
            step(items)
            return items
        except (MemoryError, RuntimeError) as error:
            if items == 1 or not is_out_of_memory(error):
                raise
        # The failed step's tensors were held by the exception until here.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        items //= 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on the accelerator or on the host."""
    # torch's CPU allocator raises a bare RuntimeError; its text is all there is to go by.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
