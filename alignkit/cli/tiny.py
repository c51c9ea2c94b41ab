"""`alignkit tiny-base`: make the embedded base model again from a seed."""

from __future__ import annotations

import time
from pathlib import Path

import click


@click.command("tiny-base")
@click.option("--seed", default=0, show_default=True, help="Of the corpus and the weights.")
@click.option("--steps", default=None, type=click.IntRange(min=1), help="Optimizer steps.")
@click.option(
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to write the model to.",
)
def tiny_base(seed: int, steps: int | None, output: Path) -> None:
    """Pretrain the embedded base model: about ten minutes on one core."""
    from dataclasses import replace

    from alignkit.tiny.base import BaseConfig, build

    config = BaseConfig(seed=seed)
    config = config if steps is None else replace(config, steps=steps)
    started = time.monotonic()

    def log(step: int, loss: float) -> None:
        if (step + 1) % 100 == 0 or step + 1 == config.steps:
            elapsed = time.monotonic() - started
            click.echo(
                f"step {step + 1}/{config.steps}  loss {loss:.3f}  {elapsed:.0f} s", err=True
            )

    loss = build(config, output, log=log)
    click.echo(f"{output}  loss {loss:.3f}")
