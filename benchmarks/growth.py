"""What DPO does with its data before the first step, from 1,000 to 100,000 pairs.

python -m benchmarks.growth [--pairs 1000,10000,100000]

Each size runs in a process of its own: pairs of real lengths (hh_lengths.json) are read from a
file, checked, rendered, tokenized and made the trainer's dataset. Printed are processor
milliseconds and resident memory a pair; both should not depend on how many there are.
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
from typing import TextIO

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
    from alignkit.backbone import load_tokenizer
    from alignkit.data.chat import Encoder
    from alignkit.data.read import load_preferences
    from alignkit.model_files import find_model
    from alignkit.stages import dpo
    from alignkit.stages.rows import pair_rows

    encoder = Encoder(load_tokenizer(find_model("tiny")))
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        write_pairs(file, count)  # type: ignore[arg-type]
        file.flush()
        memory, began = resident("VmRSS"), time.process_time()
        dataset = dpo._dataset(pair_rows(load_preferences(file.name).records, encoder))
        spent = time.process_time() - began
    assert len(dataset) == count
    return {
        "ms": 1000 * spent / count,
        "kib": 1024 * (resident("VmRSS") - memory) / count,
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
            f"{count:>9,} pairs: {found['ms']:.3f} ms and {found['kib']:.1f} KiB a pair, "
            f"{found['peak_mib']:.0f} MiB at the peak",
            flush=True,
        )


if __name__ == "__main__":
    main()
