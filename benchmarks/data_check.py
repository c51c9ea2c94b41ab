"""How fast `alignkit data check` reads a preference file, beside jsonschema over jsonlines.

Both sides read the same generated file in this one run, each in a process of its own, on one core;
processor seconds are compared, so other work on the machine matters less. The near-duplicate
search is part of our side.

    python benchmarks/data_check.py                 # 32 MB
    python benchmarks/data_check.py --megabytes 1024
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [
    syllable + rest
    for syllable in ("ba", "co", "di", "fu", "le")
    for rest in ("", "s", "ter", "ning", "tion", "ly", "ra", "mo", "nd", "st")
]


def generate(path: Path, megabytes: float, seed: int = 0) -> int:
    """Write preferences of about two kilobytes each; how many."""
    rng = random.Random(seed)
    sentences = [" ".join(rng.choices(WORDS, k=rng.randint(6, 18))) + "." for _ in range(5000)]
    rows = written = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < megabytes * 2**20:
            prompt = f"Question {rows}: " + " ".join(rng.choices(sentences, k=3))
            chosen = " ".join(rng.choices(sentences, k=rng.randint(5, 20)))
            rejected = " ".join(rng.choices(sentences, k=rng.randint(5, 20)))
            row = {
                "v": 1, "kind": "preference", "id": f"p{rows}",
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }  # fmt: skip
            written += file.write(json.dumps(row) + "\n")
            rows += 1
    return rows


def ours(path: Path) -> int:
    """Rows checked by alignkit, everything but --model."""
    from alignkit.data.checks.file_check import check_file

    report, _ = check_file(path)
    if not report.ok:
        raise SystemExit(f"the generated file has errors: {report.problems[:3]}")
    return report.rows


def theirs(path: Path) -> int:
    """Rows validated against the published schema with the jsonschema package over jsonlines."""
    import jsonlines
    from jsonschema import Draft202012Validator

    from alignkit.data.records import json_schema

    validator = Draft202012Validator(json_schema("preference"))
    with jsonlines.open(path) as reader:
        rows = sum(validator.is_valid(row) for row in reader)
    if not rows:
        raise SystemExit("no row was valid")
    return rows


SIDES = {"alignkit data check": ours, "jsonschema over jsonlines": theirs}


def measure(name: str, path: Path) -> dict[str, float]:
    """Run one side in this process and measure it."""
    started, wall = time.process_time(), time.perf_counter()
    rows = SIDES[name](path)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = path.stat().st_size / 1e6
    return {"rows": rows, "cpu_s": seconds, "wall_s": time.perf_counter() - wall,
            "mb_per_s": size / seconds, "peak_mb": peak}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=32)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "preferences.jsonl"
        rows = generate(path, options.megabytes)
        print(f"{rows:,} preferences, {path.stat().st_size / 1e6:,.0f} MB")
        results = {}
        for name in SIDES:
            command = [sys.executable, __file__, "--side", name, "--file", str(path)]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            results[name] = json.loads(said)
            r = results[name]
            print(
                f"{name:<28}{r['mb_per_s']:7.1f} MB/s of one core  {r['cpu_s']:7.1f} s cpu "
                f"{r['wall_s']:7.1f} s wall  peak {r['peak_mb']:6.0f} MB"
            )
        first, second = results.values()
        print(f"ratio {first['mb_per_s'] / second['mb_per_s']:.2f}")


if __name__ == "__main__":
    main()
