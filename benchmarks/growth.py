"""What DPO does with its data before the first step, from 1,000 to 100,000 pairs.

python -m benchmarks.growth [--pairs 1000,10000,100000]

Each size runs in a process of its own: pairs of real lengths (hh_lengths.json) are read from a
file, checked, rendered, tokenized, split and made the trainer's dataset. Printed are processor
milliseconds a pair, which should not depend on how many there are, and how much the process grew:
its own memory a pair, and its peak, in which pages of the mapped file count that the kernel takes
back when somebody needs them.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

from benchmarks.common import LENGTHS, resident

LETTERS_A_TOKEN = 4


def write_pairs(stream: TextIO, count: int) -> None:
    """Pairs of the lengths of real ones, no two prompts the same."""
    source = random.Random(0)
    words = [f"w{number}" for number in range(2000)]

    def text(tokens: int) -> str:
        return " ".join(source.choices(words, k=max(1, tokens * LETTERS_A_TOKEN // 5)))

    lengths = json.loads(LENGTHS.read_text())["lengths"]
    for number, (prompt, chosen, rejected) in enumerate(islice(cycle(lengths), count)):
        row = {
            "prompt": f"{number} {text(prompt)}",
            "chosen": text(chosen),
            "rejected": text(rejected),
        }
        stream.write(json.dumps(row) + "\n")


def measure(count: int) -> dict[str, float]:
    """Milliseconds and KiB a pair, in this process."""
    from alignkit.model.backbone import load_tokenizer
    from alignkit.model.files import find_model
    from alignkit.recipe.settings import DpoConfig
    from alignkit.stages import dpo
    from alignkit.training.context import StageContext

    tokenizer = load_tokenizer(find_model("tiny"))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pairs.jsonl"
        with path.open("w") as file:
            write_pairs(file, count)
        config = DpoConfig(data=(str(path),), eval_fraction=0.05, max_length=1 << 16)
        backbone: Any = SimpleNamespace(tokenizer=tokenizer)
        context = StageContext(Path(directory), 0, {}, lambda: backbone, lambda _: None)
        memory, began = resident("RssAnon"), time.process_time()
        train, held_out = dpo._rows(config, context)
        spent = time.process_time() - began
        grown = resident("RssAnon") - memory
    assert len(train) + len(held_out) == count
    return {
        "ms": 1000 * spent / count,
        "kib": 1024 * grown / count,
        "peak_mib": resident("VmHWM") - memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", default="1000,10000,100000")
    parser.add_argument("--child", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child)))
        return
    for count in map(int, arguments.pairs.split(",")):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.growth", "--child", str(count)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        found = json.loads(done.stdout.strip().splitlines()[-1])
        print(
            f"{count:>9,} pairs: {found['ms']:.3f} ms and {found['kib']:.2f} KiB a pair, "
            f"{found['peak_mib']:.0f} MiB at the peak",
            flush=True,
        )


if __name__ == "__main__":
    main()
