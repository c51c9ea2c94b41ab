"""100,000 judgements, a clustered bootstrap of 10,000 draws: time, memory, ratio to plain Python.

    python benchmarks/winrate_bootstrap.py

Runs `alignkit eval winrate` as a user would, in a process of its own, on judgements of 50,000
prompts in both orders and 10,000 clusters; then the same bootstrap written as loops over lists,
for a few draws, whose time is scaled to all of them. Exits 1 when a limit is missed.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPTS, CLUSTERS, DRAWS, PLAIN_DRAWS = 50_000, 10_000, 10_000, 20
SECONDS, GIGABYTES = 10.0, 1.0


def write_judgements(path: Path) -> None:
    generator = random.Random(1)
    with path.open("w") as file:
        for prompt in range(PROMPTS):
            lean = generator.gauss(0.2, 1.0)
            for first in ("a", "b"):
                seen = lean + generator.gauss(0.0, 0.5)
                row = {"v": 1, "kind": "judgement", "id": f"{prompt}{first}"}
                row |= {"prompt_id": f"p{prompt}", "a": "dpo", "b": "sft", "first": first}
                # A soft judge: nearly every score is different, the hard case for a bootstrap.
                row |= {"score": round(1 / (1 + 2.718**-seen), 6), "judge": "rm"}
                row |= {"output_a": "x" * generator.randint(50, 900)}
                row |= {"output_b": "y" * generator.randint(50, 700)}
                row |= {"extra": {"topic": prompt % CLUSTERS}}
                file.write(json.dumps(row) + "\n")


def timed_command(path: Path) -> tuple[float, float, float, str]:
    """Wall and processor seconds, peak gigabytes and the printed screen of the command."""
    command = [sys.executable, "-m", "alignkit", "eval", "winrate", str(path), "--cluster", "topic"]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "--ci", "bootstrap", "--bootstrap", str(DRAWS)],
        capture_output=True,
        text=True,
        check=True,
    )
    wall = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024**2, done.stdout


def plain_seconds(path: Path) -> float:
    """Processor seconds of the same with lists and loops: PLAIN_DRAWS draws scaled to DRAWS."""
    start = time.process_time()
    prompts: dict[str, list[float]] = {}
    topic_of: dict[str, int] = {}
    with path.open() as file:
        for line in file:
            row = json.loads(line)
            prompts.setdefault(row["prompt_id"], []).append(row["score"])
            topic_of[row["prompt_id"]] = row["extra"]["topic"]
    clusters: dict[int, list[float]] = {}
    for name, scores in prompts.items():
        clusters.setdefault(topic_of[name], []).append(sum(scores) / len(scores))
    reading = time.process_time() - start
    groups = list(clusters.values())
    generator = random.Random(0)
    start = time.process_time()
    for _ in range(PLAIN_DRAWS):
        drawn = [score for group in generator.choices(groups, k=len(groups)) for score in group]
        sum(drawn) / len(drawn)
    return reading + (time.process_time() - start) * DRAWS / PLAIN_DRAWS


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "judgements.jsonl"
        write_judgements(path)
        wall, busy, peak, screen = timed_command(path)
        plain = plain_seconds(path)
    print(screen)
    print(
        f"alignkit      {wall:6.1f} s, {busy:.1f} s of processor, {peak:.2f} GB peak   "
        f"(limits {SECONDS:g} s, 1 GB)"
    )
    print(f"plain Python  {plain:6.1f} s of processor   (from {PLAIN_DRAWS} draws)")
    print(f"ratio         {plain / busy:6.1f} x")
    return int(wall >= SECONDS or peak >= GIGABYTES)


if __name__ == "__main__":
    sys.exit(main())
