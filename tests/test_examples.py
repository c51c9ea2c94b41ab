"""Every file in examples/ is run as it stands, in a copy, by the commands that it names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alignkit.tiny.base import SHIPPED

ROOT = Path(__file__).parent.parent
RUN = {"train.sh", "use_adapter.py", "rewards.py"}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples in a folder of their own, with an `alignkit` on the path that is this one."""
    place = tmp_path_factory.mktemp("examples")
    shutil.copytree(ROOT / "examples", place / "examples")
    program = place / "bin" / "alignkit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m alignkit "$@"\n')
    program.chmod(0o755)
    return place / "examples"


def done(copied: Path, *command: str, **settings: str) -> str:
    """Run a command among the examples; what it printed."""
    path = f"{copied.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        command, cwd=copied, env=os.environ | own | settings, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_every_example_is_run_here() -> None:
    scripts = {p.name for p in (ROOT / "examples").iterdir() if p.suffix in (".py", ".sh")}
    assert scripts == RUN
    page = (ROOT / "examples" / "README.md").read_text()
    assert all(f"`{name}`" in page for name in RUN)


@pytest.mark.slow
def test_train_then_use_the_adapter_without_alignkit(copied: Path) -> None:
    printed = done(copied, "./train.sh", STEPS="2")
    row = json.loads(printed.splitlines()[-1])
    assert len(row["candidates"]) == 2
    manifest = json.loads((copied / "runs" / "sft" / "manifest.json").read_text())
    assert manifest["config"]["max_steps"] == 2
    told = done(
        copied, sys.executable, "use_adapter.py", "runs/sft/adapter", "Is the bread fresh?",
        str(SHIPPED), PYTHONPATH="",
    )  # fmt: skip
    assert told.strip()


@pytest.mark.slow
def test_the_rewards_are_what_ppo_is_trained_on(copied: Path) -> None:
    done(
        copied, "alignkit", "ppo", "--model", "tiny", "--quantization", "none",
        "--prompts", "embedded:prompts", "--output", "runs/ppo",
        "--reward", "rewards:is_polite", "--reward", "rewards:length_is_right",
        "--reward-weights", "1", "--reward-weights", "0.5", "--total-episodes", "16",
        "--rollout-batch-size", "8", "--num-mini-batches", "1", "--response-length", "16",
    )  # fmt: skip
    scales = json.loads((copied / "runs" / "ppo" / "score_scales.json").read_text())
    assert len(scales) == 2


def test_the_numbers_of_the_rewards(copied: Path) -> None:
    printed = done(
        copied, sys.executable, "-c",
        "import rewards as r\n"
        "print(r.is_polite('', 'Of course, madam.'), r.is_polite('', 'No.'))\n"
        "print(r.length_is_right(['', ''], ['w ' * 7, 'w ' * 32]))\n",
    )  # fmt: skip
    assert printed.split("\n")[:2] == ["1.0 0.0", "[-0.5, -2.0]"]
