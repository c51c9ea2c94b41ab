"""What is told while a run works and when it fails: one line an event, as text or as JSON."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from alignkit.cli import doctor, main
from alignkit.cli.events import teller
from tests.command import Said, alignkit

RECIPE = """\
name: x
stages:
  - sft: {data: "embedded:demonstrations", max_steps: 2, per_device_train_batch_size: 2}
  - generate: {policy: sft, prompts: "embedded:prompts", limit: 2, n: 2, max_new_tokens: 4}
"""


def events(said: Said) -> list[dict[str, Any]]:
    """Every line of stderr as JSON; a line that is none fails."""
    return [json.loads(line) for line in said.err.splitlines()]


@pytest.mark.slow
def test_every_line_of_a_run_is_one_event(tmp_path: Path) -> None:
    """In a process of its own, where libraries say what they would say to a person."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    done = subprocess.run(
        [sys.executable, "-m", "alignkit", "run", "r.yaml", "--log-json", "--json"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = events(Said(0, "", done.stderr))
    assert [set(event) for event in told] == [{"time", "level", "message"}] * len(told)
    moments = [datetime.fromisoformat(event["time"]) for event in told]
    assert moments == sorted(moments)
    messages = [event["message"] for event in told]
    assert messages[0] == "sft: run, not run before"
    assert "generate: run, after sft" in messages
    assert set(json.loads(done.stdout)) == {"sft", "generate"}


def test_errors_are_events_with_their_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text("name: x\nseed: a\nstages:\n  - sft: {data: gone.jsonl}\n")
    said = alignkit(capsys, "run", tmp_path / "r.yaml", "--log-json")
    assert said.code == 2
    first, second = events(said)
    assert first["where"] == f"{tmp_path / 'r.yaml'}:2:7"
    assert first["message"] == "'seed' must be a whole number, not the text 'a'"
    assert second["message"] == "no file 'gone.jsonl'"
    assert {first["level"], second["level"]} == {"error"}
    assert {first["exit_code"], second["exit_code"]} == {2}


def test_an_event_is_one_line_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    secret = "hf_" + "x" * 30
    for as_json in (False, True):
        tell = teller(as_json)
        tell.say(f"going on\nwith {secret}")
        logging.getLogger("alignkit.training.batching").warning("memory holds %d rows", 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["going on with [secret]", "memory holds 4 rows"]
    assert [json.loads(line)["message"] for line in lines[2:]] == lines[:2]


def test_quiet_tells_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_QUIET", "1")
    teller(False).say("x")
    assert capsys.readouterr().err == ""


def test_what_nobody_foresaw_is_one_line_and_a_report_to_attach(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report knows the command, its options' names and the way; no value and no message."""

    def fail() -> None:
        raise KeyError("Ann Example of 4 Cornhill")

    monkeypatch.setattr(doctor, "check_memory", fail)
    command = ["doctor", "--offline", "--runs-dir", str(tmp_path / "patients")]
    monkeypatch.setattr(sys, "argv", ["alignkit", *command])
    said = alignkit(capsys, *command)
    assert said.code == 1
    assert said.out == ""
    first, second = said.err.splitlines()
    assert first == "internal error: KeyError: 'Ann Example of 4 Cornhill'"
    found = re.fullmatch(r"A report without your data is in (\S+)\. Please attach .*", second)
    assert found is not None
    path = Path(found[1])
    report = path.read_text()
    path.unlink()
    assert "\ncommand: doctor --offline --runs-dir\n" in report
    assert "builtins.KeyError" in report
    assert re.search(r"alignkit/cli/doctor\.py:\d+ in doctor", report)
    assert re.search(r"^torch \d", report, re.MULTILINE)
    for value in ("Ann", "Cornhill", "patients", str(tmp_path)):
        assert value not in report
    with pytest.raises(KeyError):
        main(["--debug", *command])
