"""One gate: hooks and both CI files run the lines of the Makefile, and nothing of their own."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def recipe(target: str) -> list[str]:
    """The shell lines of a target of the Makefile, variables and all."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text, re.M)
    assert found is not None, target
    return [line.strip() for line in found[1].splitlines()]


def test_hooks_are_the_lines_of_make_lint() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert {repository["repo"] for repository in config["repos"]} == {"local"}
    assert [hook["entry"].replace(".venv/bin", "$(BIN)") for hook in hooks] == recipe("lint")


def test_continuous_integration_is_make_check() -> None:
    github = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text(encoding="utf-8"))
    steps = github["jobs"]["check"]["steps"]
    runs = [step["run"] for step in steps if "run" in step]
    gitlab = yaml.safe_load((ROOT / ".gitlab-ci.yml").read_text(encoding="utf-8"))
    assert len(runs) == len(gitlab["check"]["script"]) == 1
    for line in (*runs, *gitlab["check"]["script"]):
        assert line.startswith("make check PYTHON=python")
    for file in (".github/workflows/check.yml", ".gitlab-ci.yml", ".pre-commit-config.yaml"):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert "://" not in text and "secret" not in text.lower()


def test_make_check_is_all_of_the_gate() -> None:
    planned = subprocess.run(
        ["make", "-n", "check"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for part in ("ruff format --check .", "ruff check .", "mypy", "pytest", "pip wheel", "demo"):
        assert part in planned, part


def test_oldest_and_newest_install_what_the_ranges_allow() -> None:
    assert any("-c .ci/oldest.txt" in line for line in recipe("test-oldest"))
    assert not any("-c " in line for line in recipe("test-newest"))
    for target in ("test-oldest", "test-newest"):
        assert any("pytest" in line and "$(TESTS)" in line for line in recipe(target))
