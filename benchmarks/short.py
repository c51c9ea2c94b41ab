"""One table in minutes: every stage at a small size, parity checked, TRL's best setting first.

    python -m benchmarks.short [--shape S] [--batches 5]

Published numbers come from the stages' own scripts with n >= 20; this shows that they hold here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

from benchmarks import dpo, generate, reward, sft
from benchmarks.common import Measured, Setting, spread, versions

COLUMNS = ("work", "against", "times faster (CPU)", "parity: loss, gradient")


def rows(shape: str, batches: int) -> Iterator[tuple[Measured, list[str]]]:
    """What is measured, and against which sides, TRL's best setting first."""
    one = Setting(shape, batch=1, batches=2 * batches)
    four = Setting(shape, batch=4, batches=batches)
    runs: list[tuple[Callable[[], Measured], list[str]]] = [
        (lambda: dpo.measure(one, ["tuned"]), ["TRL tuned"]),
        (
            lambda: dpo.measure(four, ["compact", "tuned", "shipped"]),
            ["TRL compact", "TRL tuned", "TRL shipped"],
        ),
        (lambda: dpo.measure(four, ["tuned", "cached"]), ["TRL tuned"]),
        (lambda: reward.measure(one, 2), ["TRL tuned"]),
        (lambda: reward.measure(four, 2), ["TRL tuned"]),
        (lambda: reward.measure(Setting(shape, batch=2, batches=batches), 4), ["TRL tuned"]),
        (lambda: sft.measure(four), ["TRL padding_free", "TRL compact", "TRL padded"]),
        (
            lambda: generate.measure(Setting(shape, quantized=True, batch=16, batches=batches), 48),
            ["transformers merged", "transformers"],
        ),
    ]
    for run, sides in runs:
        yield run(), sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="S")
    parser.add_argument("--batches", type=int, default=5)
    options = parser.parse_args()
    print(versions())
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for found, sides in rows(options.shape, options.batches):
        for side in sides:
            errors = f"{found.loss_error:.0e}, {found.gradient_error:.0e}"
            print(
                f"| {found.name} | {side} | {spread(found.ratios(side))} | {errors} |", flush=True
            )


if __name__ == "__main__":
    main()
