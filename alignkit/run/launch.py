"""Read what a launcher such as torchrun started: how many processes, and which one this is."""

from __future__ import annotations

import os
from dataclasses import dataclass

from alignkit.errors import RecipeError


@dataclass(frozen=True)
class Launch:
    """This process among those of a run: `rank` of `world`, `here` of them on this machine."""

    rank: int = 0
    world: int = 1
    here: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0


def launched() -> Launch:
    """Read the environment. Raises RecipeError where it is not what launchers write."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    texts = [os.environ.get(name, default) for name, default in zip(names, "011", strict=True)]
    for name, text in zip(names, texts, strict=True):
        if not (text.isascii() and text.isdigit()):
            raise RecipeError(f"{name} is {text!r:.20}, not a number", hint=f"Unset {name}")
    rank, world, here = map(int, texts)
    return Launch(rank, world, here)


def check_launch() -> None:
    """Raise RecipeError when more processes were started here than this machine can run."""
    started = launched().here
    if started == 1:
        return
    import torch

    gpus, cores = torch.cuda.device_count(), len(os.sched_getaffinity(0))
    if started > (gpus or cores):
        there = _count(gpus, "GPU") if gpus else f"no GPU and {_count(cores, 'core')}"
        raise RecipeError(
            f"{started:,} processes were started here, and this machine has {there}",
            hint=f"Start {gpus or cores:,} at most: torchrun --nproc-per-node {gpus or cores}",
        )


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
