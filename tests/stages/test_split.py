"""The split stage: two files, every row in one of them, no prompt in both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignkit.errors import DataError
from tests.command import alignkit
from tests.workshop import Workshop


def rows_of(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_rows_of_a_prompt_stay_together(workshop: Workshop) -> None:
    """Ten prompts three times over, a blank behind some of them: 3 prompts are held out."""
    rows = [
        {"prompt": f"Question {n % 10}?" + " " * (n // 20), "chosen": f"Yes {n}", "rejected": "No"}
        for n in range(30)
    ]
    counts = workshop.run("split", data=workshop.write("p.jsonl", rows), held_out=0.3)
    assert counts == {"train": 21, "held_out": 9}
    train, held_out = (
        rows_of(workshop.root / "split" / name) for name in ("train.jsonl", "held_out.jsonl")
    )
    asked = [{row["prompt"][0]["content"].strip() for row in part} for part in (train, held_out)]  # type: ignore[index]
    assert len(asked[0]) == 7 and len(asked[1]) == 3
    assert not asked[0] & asked[1]
    answers = [row["chosen"][0]["content"] for row in [*train, *held_out]]  # type: ignore[index]
    assert sorted(answers) == sorted(f"Yes {n}" for n in range(30))


def test_the_seed_decides_the_parts(workshop: Workshop) -> None:
    rows = [{"prompt": f"Question {n}?", "chosen": "Yes", "rejected": "No"} for n in range(40)]
    data = workshop.write("p.jsonl", rows)
    for name in ("one", "again"):
        workshop.run("split", name, data=data, held_out=0.25)
    one, again = ((workshop.root / n / "held_out.jsonl").read_bytes() for n in ("one", "again"))
    assert one == again


def test_a_broken_row_stops_it_or_is_said_to_be_dropped(workshop: Workshop) -> None:
    rows = [
        {"prompt": f"{n}?", "chosen": "Yes" if n != 3 else "", "rejected": "No"} for n in range(8)
    ]
    data = workshop.write("p.jsonl", rows)
    with pytest.raises(DataError, match=r"p\.jsonl:4"):
        workshop.run("split", data=data)
    counts = workshop.run("split", "dropped", data=data, on_bad_row="drop")
    assert sum(counts.values()) == 7
    assert any("p.jsonl:4" in line for line in workshop.said)


@pytest.mark.parametrize("second", ["split", "split.held_out"])
def test_a_recipe_splits_whatever_is_trained_on_and_a_part_again(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    second: str,
) -> None:
    """Eight demonstrations: four and four, and one of the halves two and two."""
    monkeypatch.chdir(tmp_path)
    Path("d.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n}?", "completion": "Yes"}) + "\n" for n in range(8))
    )
    Path("r.yaml").write_text(
        "name: x\nbackbone: {quantization: none}\nstages:\n"
        "  - split: {data: d.jsonl, held_out: 0.5}\n"
        f"  - split: {{name: again, data: {second}, held_out: 0.5}}\n"
    )
    said = alignkit(capsys, "run", "r.yaml", "--json")
    assert said.code == 0, said.err
    counts = {name: done["metrics"] for name, done in json.loads(said.out).items()}
    assert counts == {
        "split": {"train": 4, "held_out": 4},
        "again": {"train": 2, "held_out": 2},
    }
