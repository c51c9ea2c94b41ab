"""AlpacaEval 2's published win rates, from its own annotation files.

    python benchmarks/alpacaeval.py FOLDER [--gamed FILE]

FOLDER is a clone of AlpacaEval's repository; FILE is `df_gamed.csv` of its data set, FOLDER's by
default. Each model whose annotations are there is reported as `alignkit eval winrate` reports it
and held against the leaderboard: plain win rates to 1e-6 points, length-controlled ones to 0.2.
Nothing is downloaded. Exits 1 when a model misses, 2 when there is nothing to compare.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from alignkit.evaluation.winrate import winrate_report

JUDGE = "weighted_alpaca_eval_gpt4_turbo"
LEADERBOARD = f"src/alpaca_eval/leaderboards/data_AlpacaEval_2/{JUDGE}_leaderboard.csv"
PLAIN, CONTROLLED = 1e-6, 0.2  # points


class Gamed(NamedTuple):
    """Difficulties by number of prompt, and the rows that hold the model's other terms."""

    difficulty: list[float]
    rows: list[dict[str, object]]


class Compared(NamedTuple):
    """Ours minus published, in points."""

    model: str
    plain: float
    controlled: float

    @property
    def holds(self) -> bool:
        return abs(self.plain) <= PLAIN and abs(self.controlled) <= CONTROLLED


def read_gamed(path: Path) -> Gamed:
    """The regulariser's rows; every prompt's difficulty stands there once for each model."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    by_prompt = {int(float(row["index"])): float(row["instruction_difficulty"]) for row in rows}
    keys = ("std_delta_len", "instruction_difficulty", "preference")
    return Gamed(
        [by_prompt[i] for i in range(len(by_prompt))],
        [{"model": row["model"]} | {key: float(row[key]) for key in keys} for row in rows],
    )


def side_files(annotations: Path, gamed: Gamed, folder: Path) -> tuple[Path, Path]:
    """The files of --difficulty and --reg-rows; upstream joins difficulties by number of row."""
    texts = [row["instruction"] for row in json.loads(annotations.read_text())]
    rows = [
        {"instruction": text, "instruction_difficulty": gamed.difficulty[number]}
        for number, text in enumerate(texts)
    ]
    found = folder / "difficulty.jsonl", folder / "reg-rows.jsonl"
    for path, lines in zip(found, (rows, gamed.rows), strict=True):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return found


def published(folder: Path) -> dict[str, tuple[float, float]]:
    """Plain and length-controlled win rates by model, in per cent."""
    with (folder / LEADERBOARD).open(newline="") as file:
        return {
            row[""]: (float(row["win_rate"]), float(row["length_controlled_winrate"]))
            for row in csv.DictReader(file)
            if row["length_controlled_winrate"]
        }


def compared(folder: Path, gamed: Gamed) -> Iterator[Compared]:
    known = published(folder)
    for path in sorted(folder.glob(f"results/*/{JUDGE}/annotations.json")):
        model = path.parent.parent.name
        if model not in known:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            difficulty, reg_rows = side_files(path, gamed, Path(scratch))
            report = winrate_report(
                path,
                length_control="alpacaeval",
                difficulty=difficulty,
                reg_rows=reg_rows,
                bootstrap=0,
            )
        ours = 100 * report["win_rate"], 100 * report["length"]["lc_win_rate"]
        yield Compared(model, ours[0] - known[model][0], ours[1] - known[model][1])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gamed", type=Path)
    given = parser.parse_args(arguments)
    for needed in (given.gamed or given.folder / "df_gamed.csv", given.folder / LEADERBOARD):
        if not needed.is_file():
            print(f"{needed} is missing")
            return 2
    rows = list(compared(given.folder, read_gamed(given.gamed or given.folder / "df_gamed.csv")))
    for row in rows:
        missed = "" if row.holds else "   MISSED"
        print(f"{row.model:44} plain {row.plain:+.1e}   controlled {row.controlled:+.3f}{missed}")
    print(f"{sum(row.holds for row in rows)} of {len(rows)} models within the limits")
    return int(not all(row.holds for row in rows)) if rows else 2


if __name__ == "__main__":
    sys.exit(main())
