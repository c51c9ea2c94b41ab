"""Runs killed at random moments end in the weights of one that never was."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_killed_runs_of_every_stage_end_in_the_same_weights() -> None:
    """The short form of `python -m tests.kill_resume --kills 20`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill_resume", "--kills", "1", "--inside-save", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("1 kills, 1 inside a save") == 4
    assert done.stdout.count(" 0 wrong") == 4
