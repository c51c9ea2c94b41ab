"""A dry run tries the stages out: what it foretells is near what happens, and nothing stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.run import rehearsal
from alignkit.run.rehearsal import Clock
from alignkit.stages import stage_module
from tests.command import alignkit, with_peak
from tests.store.test_harmed_files import RECIPE


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [
        {"prompt": "Why? " * (1 + n % 20), "completion": "So. " * (1 + n % 7)} for n in range(80)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "all.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(capsys: pytest.CaptureFixture[str], *arguments: Any) -> list[dict[str, Any]]:
    """The rows of a dry run."""
    said = alignkit(capsys, *arguments, "--dry-run", "--json")
    assert said.code == 0, said.err
    found: list[dict[str, Any]] = json.loads(said.out)
    return found


TRAIN = ["sft", "--data", "rows.jsonl", "--output", "out", "--max-steps", "60",
         "--per-device-train-batch-size", "4"]  # fmt: skip


@pytest.mark.slow
def test_a_run_takes_what_was_foretold(here: Path) -> None:
    """Memory within a factor of 1.5, time within one of 3, by processes of their own."""
    said, _ = with_peak(*TRAIN, "--dry-run", "--json")
    (row,) = json.loads(said.out)
    assert row["how"] == "measured on the longest batch"
    assert row["steps"] == 60
    assert not (here / "out").exists()
    assert not (here / "out.partial").exists()
    said, peak = with_peak(*TRAIN, "--json")
    spent = json.loads(said.out)["metrics"]["seconds"]
    assert peak / 1.5 < row["memory_bytes"] < peak * 1.5
    assert spent / 3 < row["seconds"] < spent * 3


@pytest.mark.slow
def test_every_kind_of_stage_is_tried_out_and_nothing_stays(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stages that read what earlier ones will leave are tried on what those left in their trial."""
    before = sorted(here.rglob("*"))
    rows = planned(capsys, "run", "all.yaml")
    assert sorted(here.rglob("*")) == before
    assert {row["stage"]: row["how"] for row in rows} == {
        row["stage"]: "measured on the longest batch" for row in rows
    }
    assert all(row["memory_bytes"] > 1 << 28 for row in rows)
    seconds = {row["stage"]: row["seconds"] for row in rows}
    for name in ("sft", "reward", "dpo", "ppo", "rloo", "generate", "evaluate"):
        assert 0 < seconds[name] < 60
    steps = {row["stage"]: row["steps"] for row in rows if row["steps"]}
    assert steps == {"sft": 3, "reward": 3, "dpo": 3, "ppo": 12, "rloo": 12}


@pytest.mark.slow
def test_twice_the_work_takes_twice_as_long(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once, often = (planned(capsys, *TRAIN[:-3], steps, *TRAIN[-2:])[0] for steps in ("100", "2000"))
    assert (once["steps"], often["steps"]) == (100, 2000)
    assert often["seconds"] > 5 * once["seconds"]


def test_what_would_take_long_is_counted_and_said_to_be(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "MOST_SECONDS", 0.0)
    (row,) = planned(capsys, *TRAIN)
    assert row["how"] == "counted, because trying it out would take a while"
    assert row["estimate"].startswith("estimate: memory ")
    assert row["steps"] == 60


def test_a_trial_that_fails_says_why(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = planned(capsys, *TRAIN, "--max-length", "8")
    assert row["how"].startswith("counted, for a trial failed: ")
    assert "longer than max_length 8" in row["how"]


def test_rows_without_a_prompt_are_no_trial(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "texts.jsonl").write_text('{"text": "Hello.", "id": "a"}\n')
    (row,) = planned(capsys, "generate", "--prompts", "texts.jsonl", "--output", "out")
    assert "no row that this stage can use" in row["how"]
    said = alignkit(capsys, "generate", "--prompts", "texts.jsonl", "--output", "out")
    assert (said.code, "no prompts" in said.err) == (2, True)


def test_a_trial_that_runs_out_of_memory_refuses_the_run(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(*_: Any) -> Any:
        return torch.empty(1 << 55)

    monkeypatch.setattr(stage_module("sft"), "trial", allocate)
    said = alignkit(capsys, *TRAIN, "--dry-run")
    assert said.code == 2
    assert "stage 'sft' does not fit: its longest batch ran out of memory" in said.err
    assert "Lower per_device_train_batch_size" in said.err


def test_the_first_step_warms_up_and_does_not_count() -> None:
    clock = Clock([(0.0, 0), (5.0, 1), (6.0, 2)])
    assert clock.seconds_a_unit(warm_up=1) == 1.0
    assert clock.seconds_a_unit(warm_up=0) == 3.0
