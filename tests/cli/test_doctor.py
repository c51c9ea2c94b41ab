"""The doctor looks at this machine, says what is wrong with a remedy, and exits 1 for a problem."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from alignkit.cli import doctor
from tests.command import alignkit


def test_every_check_is_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = alignkit(capsys, "doctor", "--offline", "--json", "--runs-dir", tmp_path / "runs")
    checks = {check["name"]: check for check in json.loads(said.out)}
    assert {"python", "torch", "processor", "gpu", "memory", "disk", "writing", "4-bit"} <= set(
        checks
    )
    assert checks["4-bit"]["level"] == "ok"
    assert "gradients are the same after an evaluation" in checks["4-bit"]["found"]
    assert said.code == int(any(check["level"] == "problem" for check in checks.values()))
    assert not (tmp_path / "runs").exists()


def test_every_problem_has_a_remedy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "SMALL_DISK", 1 << 80)
    said = alignkit(capsys, "doctor", "--offline", "--runs-dir", tmp_path)
    assert said.code == 1
    assert "FAIL  disk" in said.out
    assert "Free some, or --runs-dir" in said.out


def test_the_guard_is_what_keeps_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processor has the kernel without autograd, the check fails without the guard."""
    flags = doctor._cpu_flags()
    same, _ = doctor._gradient_survives()
    assert same
    monkeypatch.setattr("alignkit.model.backbone.guard_cpu_quantization", lambda model: 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the kernel has no backward
        unguarded, _ = doctor._gradient_survives()
    assert unguarded == ("avx512_bf16" not in flags)
