"""Isolate what changes when several processes train together: who writes, and sums over ranks.

A single process is one rank; nothing else in the package asks how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn


def join_ranks() -> None:
    """Join the process group if a launcher started several processes; else do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def rank() -> int:
    """Return this process's number; rank 0 writes and prints."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def all_sum(numbers: Tensor) -> Tensor:
    """Return the sum over all ranks, the same on each."""
    if world_size() > 1:
        numbers = numbers.clone()
        distributed.all_reduce(numbers)
    return numbers


def all_rows(numbers: Tensor) -> Tensor:
    """Return the rows of all ranks, in rank order; every rank has equally many."""
    if world_size() == 1:
        return numbers
    gathered = [torch.empty_like(numbers) for _ in range(world_size())]
    distributed.all_gather(gathered, numbers.contiguous())
    return torch.cat(gathered)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all ranks; losses are divided by global counts, so take no mean."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)


def wait_for_all() -> None:
    """Return when every rank has called this."""
    if world_size() > 1:
        distributed.barrier()
