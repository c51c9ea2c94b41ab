"""Malformed inputs, one row each: what is said, how soon, and that nothing is written."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.command import Said, alignkit
from tests.malformed import CASES, Case

# Of processor time: what only reads answers at once; a dry run loads a model and trains a step.
MOST_SECONDS = {"reads": 5.0, "loads a model": 15.0}


def test_every_row_has_its_number() -> None:
    assert [case.number for case in CASES] == list(range(1, len(CASES) + 1))
    assert len(CASES) >= 83


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_malformed(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    for name, content in case.files.items():
        (tmp_path / name).write_bytes(content)
    if case.needs_torch:
        import_everything()
    with case.before(tmp_path) if case.before else nullcontext({}) as found:
        command = [word.format(**found) for word in case.command]
        before = everything_in(tmp_path)
        run = in_this_process if case.needs_torch else in_a_process_of_its_own
        said, seconds = run(command, capsys)
        assert everything_in(tmp_path) == before
    told = said.out + said.err
    assert said.code == case.code, told
    assert re.search(filled(case.says, found), told), told
    assert "Traceback" not in told
    assert "internal error" not in told
    assert seconds < MOST_SECONDS["loads a model" if case.needs_torch else "reads"]


def in_a_process_of_its_own(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> tuple[Said, float]:
    """As a user does it; processor seconds, which other work on the machine does not lengthen."""
    del capsys
    before = children_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "alignkit", *command],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Said(done.returncode, done.stdout, done.stderr), children_seconds() - before


def in_this_process(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[Said, float]:
    """Where torch is imported already: the seconds are those of the command alone."""
    before = os.times()
    said = alignkit(capsys, *command)
    after = os.times()
    return said, after.user + after.system - before.user - before.system


def children_seconds() -> float:
    """Processor time of all processes this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def import_everything() -> None:
    """What a plan imports, so that no case pays for it."""
    import bitsandbytes  # noqa: F401
    import transformers.models.auto.tokenization_auto  # noqa: F401
    import trl.trainer.dpo_config
    import trl.trainer.sft_config  # noqa: F401


def everything_in(place: Path) -> dict[str, str]:
    """All files below a place by what is in them, and all directories."""
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "directory"
        for path in place.rglob("*")
    }


def filled(pattern: str, found: Mapping[str, object]) -> str:
    """The pattern with what was found out before put in; braces of its own stay."""
    for name, value in found.items():
        pattern = pattern.replace(f"{{{name}}}", str(value))
    return pattern
