"""Disks that fill up: what was acknowledged is there, the message says so, and one can go on."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.collect_data import items, lines, write
from tests.command import Said, alignkit
from tests.disks import filled, small_disk

TRAIN = ["--per-device-train-batch-size", "2", "--lora-r", "8", "--logging-steps", "1"]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 4 MiB, beside demonstrations to train on."""
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(40)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    with small_disk(tmp_path / "small", 4 << 10) as place:
        yield place


def trained(capsys: pytest.CaptureFixture[str], output: str, steps: int) -> Said:
    """Training with a checkpoint every other step; each is about 490 KiB, the adapter 160."""
    return alignkit(
        capsys, "sft", "--data", "rows.jsonl", "--output", output, *TRAIN,
        "--max-steps", steps, "--save-steps", "2",
    )  # fmt: skip


def weights(output: Path) -> str:
    return hashlib.sha256((output / "adapter/adapter_model.safetensors").read_bytes()).hexdigest()


# KiB left free, steps, what is told, and the checkpoints that are whole then.
MOMENTS: dict[str, tuple[int, int, str, list[str]]] = {
    "before the first step": (0, 6, "disk full at ", []),
    "while logging": (8, 6, "disk full at ", []),
    "inside the first save": (150, 6, "disk full at ", []),
    "before the second save": (
        900, 6, "a checkpoint needs about 73", ["checkpoint-2"],
    ),
    "while the result is written": (580, 2, "disk full at ", ["checkpoint-2"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_training_loses_nothing_and_goes_on_to_the_same_weights(
    small: Path, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    leaving, steps, words, kept = MOMENTS[moment]
    assert trained(capsys, "reference", steps).code == 0
    filler = filled(small, leaving=leaving)
    said = trained(capsys, "small/out", steps)
    last = said.err.splitlines()[-1]
    assert said.code == 1
    assert "disk full at " in last
    assert words in last
    assert "Free some space and run the same command again: alignkit " in last
    assert "Traceback" not in said.err
    assert not (small / "out").exists()
    found = sorted(path.name for path in small.glob("out.partial/checkpoints/*"))
    assert found == kept
    filler.unlink()
    said = trained(capsys, "small/out", steps)
    assert said.code == 0, said.err
    assert [line for line in said.err.splitlines() if "resuming from" in line] == [
        f"resuming from {name}" for name in kept
    ]
    assert weights(small / "out") == weights(small.parent / "reference")


@pytest.mark.slow
def test_a_recipe_goes_on_with_what_was_finished(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full in the second stage; the first one is reused."""
    (small.parent / "r.yaml").write_text(
        'name: x\nbackbone: {lora_r: 2}\nstages:\n  - rank: {candidates: "embedded:candidates"}\n'
        "  - reward: {data: rank, max_steps: 2, save_steps: 1, per_device_train_batch_size: 2}\n"
    )
    command = ["run", "r.yaml", "--runs-dir", "small", "--until"]
    assert alignkit(capsys, *command, "rank").code == 0
    filler = filled(small, leaving=60)
    said = alignkit(capsys, *command, "reward")
    assert (said.code, "disk full at " in said.err) == (1, True), said.err
    assert "Traceback" not in said.err
    filler.unlink()
    said = alignkit(capsys, *command, "reward")
    assert said.code == 0, said.err
    assert "rank: reused" in said.err


@pytest.mark.parametrize("end", ["jsonl", "json", "csv", "parquet", "jsonl.gz", "jsonl.zst"])
def test_a_conversion_is_whole_or_absent(
    small: Path, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    hashes = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(900)]
    rows = [{"prompt": word * 3, "completion": word[::-1]} for word in hashes]
    data = small.parent / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    filler = filled(small, leaving=40)
    command = ["data", "convert", "d.jsonl", "-o", f"small/out.{end}"]
    said = alignkit(capsys, *command)
    assert said.code == 1
    assert f"small/out.{end}: disk full; nothing was written" in said.err
    assert [path.name for path in small.iterdir()] == [filler.name]
    filler.unlink()
    assert alignkit(capsys, *command).code == 0
    said = alignkit(capsys, "data", "check", f"small/out.{end}", "--json")
    assert json.loads(said.out)["files"][0]["rows"] == 900


def test_ranking_keeps_every_answer_it_acknowledged(small: Path) -> None:
    """Typed until the disk is full: those said to be saved are there, the next one is refused."""
    write(small.parent / "c.jsonl", items(60))
    filler = filled(small, leaving=12)
    command = [sys.executable, "-m", "alignkit", "rank", "c.jsonl", "--output", "small/r.jsonl",
               "--annotator", "ann", "--terminal"]  # fmt: skip
    done = subprocess.run(command, input="1\n" * 60, capture_output=True, text=True, check=False)
    assert "r.jsonl: disk full; the last vote was not saved, all earlier ones were" in done.stdout
    assert "Traceback" not in done.stderr
    kept = lines(small / "r.jsonl")
    assert 3 < len(kept) < 60
    assert (small / "r.jsonl").read_bytes().endswith(b"\n")
    filler.unlink()
    done = subprocess.run(command, input="1\n" * 60, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(lines(small / "r.jsonl")) == 60
    assert lines(small / "r.jsonl")[: len(kept)] == kept
