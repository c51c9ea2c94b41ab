"""Training in two processes, as torchrun starts them: same weights, sealed once, resumed whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignkit.training.checkpoints import check_sealed
from tests.conftest import LONG
from tests.store.test_full_disk import weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two processes need two cores"),
]

COMMON = ["--max-steps", "4", "--save-steps", "2", "--logging-steps", "1", "--lora-r", "4",
          "--learning-rate", "1e-3", "--per-device-train-batch-size", "4"]  # fmt: skip
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "alignkit"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 demonstrations and 40 preferences: whole batches for two processes."""
    rows = [{"prompt": f"Why {n}?", "chosen": f"So {n}.", "rejected": f"No {n * n}."}
            for n in range(40)]  # fmt: skip
    demonstrations = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    for name, content in (("p.jsonl", rows), ("d.jsonl", demonstrations)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def finished(*command: str) -> subprocess.CompletedProcess[str]:
    """A module run to its end, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("stage", "data"),
    [("sft", "d"), pytest.param("reward", "p", marks=LONG), pytest.param("dpo", "p", marks=LONG)],
)
def test_two_processes_train_what_one_trains_in_two_parts(
    here: Path, stage: str, data: str
) -> None:
    """NF4, dropout 0, the same eight rows a step: to the bit. Results are told once."""
    command = [stage, "--data", f"{data}.jsonl", *COMMON, "--output"]
    one = finished("alignkit", *command, "one", "--gradient-accumulation-steps", "2")
    two = finished(*TORCHRUN, *command, "two")
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert weights(here / "one") == weights(here / "two")
    assert two.stdout.count("train_loss") == 1
    assert two.stderr.count("written to") == 1
    assert not (here / "two.partial").exists()
    recorded = json.loads((here / "two" / "manifest.json").read_text())
    assert recorded["environment"]["WORLD_SIZE"] == "2"


@LONG
def test_killed_processes_go_on_together_and_not_alone(here: Path) -> None:
    """Dropout 0.1: every process has random numbers of its own, and all are in the checkpoint."""
    command = ["sft", "--data", "d.jsonl", *COMMON, "--lora-dropout", "0.1", "--max-steps", "30"]
    assert finished(*TORCHRUN, *command, "--output", "whole").returncode == 0
    newest = kill_after_a_checkpoint(here / "out.partial", *TORCHRUN, *command, "--output", "out")
    assert {path.name for path in newest.iterdir()} >= {
        "MANIFEST.json",
        "random-0.safetensors",
        "random-1.safetensors",
    }
    assert check_sealed(newest)["world_size"] == 2
    alone = finished("alignkit", *command, "--output", "out")
    assert alone.returncode == 2
    assert "world_size 2 → 1" in alone.stderr
    again = finished(*TORCHRUN, *command, "--output", "out")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count(f"resuming from {newest.name}") == 1
    assert weights(here / "out") == weights(here / "whole")


def kill_after_a_checkpoint(partial: Path, *command: str) -> Path:
    """Kill a launcher and all it started once there is a checkpoint; the newest one."""
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as started:
        limit = time.monotonic() + 120
        while not (found := list(partial.glob("checkpoints/checkpoint-*"))):
            assert started.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.001)
        for pid in [*children_of(started.pid), started.pid]:
            os.kill(pid, signal.SIGKILL)
        started.wait()
    found = list(partial.glob("checkpoints/checkpoint-*"))
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]))


def children_of(pid: int) -> list[int]:
    """Processes that this one started."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def test_a_recipe_runs_in_one_process(here: Path) -> None:
    (here / "r.yaml").write_text("name: x\nstages:\n  - sft: {data: d.jsonl}\n")
    done = finished(*TORCHRUN, "run", "r.yaml")
    assert done.returncode == 1  # torchrun's own; the processes end with 2
    assert "2 processes were started for a recipe, which runs in one" in done.stderr
    assert not (here / "runs").exists()
