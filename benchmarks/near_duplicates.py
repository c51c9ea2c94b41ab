"""Near-duplicate prompts: alignkit's vectorised MinHash beside datasketch's MinHash and LSH.

Both get the same generated prompts, some of them copies with a word changed, and the same
threshold; each runs in a process of its own. datasketch (`pip install datasketch`) is slower by an
order of magnitude, so it gets `--peer-prompts` of them; seconds a prompt are compared.

    python benchmarks/near_duplicates.py                      # 20,000 prompts
    python benchmarks/near_duplicates.py --prompts 1000000
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

CHANGED_EVERY = 50
THRESHOLD = 0.8


def prompts(count: int, seed: int = 0) -> Iterator[tuple[str, int | None]]:
    """(prompt, number of the one it copies or null): 30 to 80 words, every 50th is a copy."""
    rng = random.Random(seed)
    words = [f"{rng.getrandbits(24):x}" for _ in range(20000)]
    recent: list[tuple[int, str]] = []
    for number in range(count):
        if number % CHANGED_EVERY == CHANGED_EVERY - 1:
            source, text = recent[rng.randrange(len(recent))]
            copied = text.split()
            copied[rng.randrange(len(copied))] = "changed"
            yield " ".join(copied), source
            continue
        text = " ".join(rng.choices(words, k=rng.randint(40, 80)))
        if number % 10 == 0:
            recent = [*recent[-999:], (number, text)]
        yield text, None


def ours(count: int) -> tuple[int, int]:
    """(found, planted) copies."""
    from alignkit.data.checks.near import NearIndex

    index, planted = NearIndex(THRESHOLD), {}
    for number, (text, source) in enumerate(prompts(count)):
        index.add(text)
        if source is not None:
            planted[number] = source
    found = dict((later, earlier) for earlier, later in index.pairs())
    return sum(number in found for number in planted), len(planted)


def theirs(count: int) -> tuple[int, int]:
    """(found, planted) copies by datasketch with as many permutations as we have bins."""
    from datasketch import MinHash, MinHashLSH

    index, planted, hits = MinHashLSH(threshold=THRESHOLD, num_perm=64), 0, 0
    for number, (text, source) in enumerate(prompts(count)):
        words = text.split()
        triples = zip(words, words[1:], words[2:], strict=False)
        sketch = MinHash(num_perm=64)
        sketch.update_batch([" ".join(triple).encode() for triple in triples])
        if source is not None:
            planted += 1
            hits += bool(index.query(sketch))
        index.insert(number, sketch)
    return hits, planted


SIDES = {"alignkit": ours, "datasketch": theirs}


def measure(side: str, count: int) -> dict[str, float]:
    """Run one side in this process; the generator's own time is taken off."""
    started = time.process_time()
    for _ in prompts(count):
        pass
    generating = time.process_time() - started
    started, wall = time.process_time(), time.perf_counter()
    found, planted = SIDES[side](count)
    return {
        "cpu_s": time.process_time() - started - generating,
        "wall_s": time.perf_counter() - wall,
        "found": found / max(planted, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--peer-prompts", type=int, default=5_000)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.prompts)))
        return
    counts = {"alignkit": options.prompts, "datasketch": options.peer_prompts}
    each = {}
    for side, count in counts.items():
        command = [sys.executable, __file__, "--side", side, "--prompts", str(count)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        result = json.loads(said)
        each[side] = result["cpu_s"] / count
        print(
            f"{side:<12}{count:>10,} prompts  {result['cpu_s']:8.2f} s cpu  "
            f"{result['wall_s']:8.2f} s wall  {each[side] * 1e6:8.1f} us a prompt  "
            f"found {result['found']:.1%}  peak {result['peak_mb']:,.0f} MB"
        )
    print(f"ratio {each['datasketch'] / each['alignkit']:.1f}")


if __name__ == "__main__":
    main()
