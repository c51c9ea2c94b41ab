"""What changes when several processes train together: who writes, and sums over all of them.

One process is the case of one rank; nothing else in the package asks how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn


def join_ranks() -> None:
    """Under a launcher that started several processes, become one of them; else do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def rank() -> int:
    """This process's number; 0 writes and prints."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def all_sum(numbers: Tensor) -> Tensor:
    """The sum over all ranks, the same on each."""
    if world_size() > 1:
        numbers = numbers.clone()
        distributed.all_reduce(numbers)
    return numbers


def all_rows(numbers: Tensor) -> Tensor:
    """Rows of every rank, in rank order; each rank has equally many."""
    if world_size() == 1:
        return numbers
    gathered = [torch.empty_like(numbers) for _ in range(world_size())]
    distributed.all_gather(gathered, numbers.contiguous())
    return torch.cat(gathered)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of every rank; losses are divided by global counts, so no mean."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if world_size() > 1:
        distributed.barrier()
