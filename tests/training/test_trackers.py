"""Trackers: what is missing is refused before anything is loaded, and what they write is kept."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from alignkit.errors import RecipeError, TrainingFailed
from alignkit.training.trackers import Trackers, check_trackers
from tests.command import alignkit

# Stands in for the package where TensorBoard is not installed: transformers takes either.
WRITER = """
import json, os

class SummaryWriter:
    def __init__(self, log_dir):
        os.makedirs(log_dir, exist_ok=True)
        self.file = open(os.path.join(log_dir, "events"), "a")
    def add_text(self, name, text, step=None):
        self.file.write(json.dumps([name, text]) + "\\n")
    def add_scalar(self, name, value, step):
        self.file.write(json.dumps([name, value, step]) + "\\n")
    def flush(self):
        self.file.flush()
    def close(self):
        self.file.close()
"""
FAILING = """
class SummaryWriter:
    def __init__(self, log_dir):
        {start}
    def __getattr__(self, name):
        raise ConnectionError("nobody answers")
"""
HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None
TRAIN = ("--model", "tiny", "--lora-r", "2", "--quantization", "none", "--report-to", "tensorboard")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with rows, and where packages may be put."""
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "lengths.py").write_text("def score(prompt, completion): return len(completion)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    return tmp_path


@pytest.fixture
def writer(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place whose TensorBoard writer is the stand-in, unless the real one is there."""
    return installed(place, WRITER, monkeypatch)


def installed(place: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not HAS_TENSORBOARD:
        (place / "packages").mkdir()
        (place / "packages" / "tensorboardX.py").write_text(source)
        monkeypatch.delitem(sys.modules, "tensorboardX", raising=False)
    return place


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("tensorbord",), r"no tracker 'tensorbord'; did you mean 'tensorboard'\? Known: azure"),
        (("wandb", "wandbb"), r"no tracker 'wandbb'; did you mean 'wandb'"),
        (("none", "mlflow"), r"report_to lists none together with mlflow"),
        (("dvclive",), r"report_to dvclive needs dvclive, .*Run: pip install dvclive; or set"),
        (("dagshub",), r"needs dagshub mlflow, which cannot be imported \(ModuleNotFoundError"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_refused_by_name(
    names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_trackers(names)
    check_trackers(("none",))
    check_trackers(())


def test_a_broken_package_is_told_as_that(place: Path) -> None:
    (place / "packages").mkdir()
    (place / "packages" / "swanlab.py").write_text("raise OSError('no home')\n")
    with pytest.raises(RecipeError, match=r"cannot be imported \(OSError: no home\)"):
        check_trackers(("swanlab",))


@pytest.mark.parametrize("kind", ["sft", "rloo"])
def test_the_command_refuses_it_before_anything_is_done(
    place: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    data = ("--data",) if kind == "sft" else ("--reward", "lengths:score", "--prompts")
    command = (kind, *data, "rows.jsonl", "--output", "out", "--model", "tiny")
    said = alignkit(capsys, *command, "--report-to", "wandbb")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("--report-to: report_to: there is no tracker 'wandbb'; did you mean")
    assert not list(place.glob("out*"))
    (place / "r.yaml").write_text(
        "name: x\nstages:\n  - sft:\n      data: rows.jsonl\n      report_to: [tensorbord]\n"
    )
    said = alignkit(capsys, "run", "r.yaml", "--dry-run")
    assert said.code == 2
    assert said.err.startswith("r.yaml:5:18: report_to: there is no tracker 'tensorbord'")


def test_what_a_tracker_wrote_stays_with_the_result(
    writer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = alignkit(
        capsys, "sft", "--data", "rows.jsonl", "--output", "out", *TRAIN, "--logging-steps", "1",
        "--max-steps", "2", "--eval-fraction", "0.3",
    )  # fmt: skip
    assert said.code == 0, said.err
    kept = list((writer / "out" / "tensorboard").iterdir())
    assert kept
    sealed = json.loads((writer / "out" / "manifest.json").read_text())["files"]
    assert {f"tensorboard/{path.name}" for path in kept} <= set(sealed)
    if not HAS_TENSORBOARD:
        rows = [json.loads(line) for line in kept[0].read_text().splitlines()]
        assert [row[2] for row in rows if row[0] == "train/loss"] == [1, 2]
        assert [row[2] for row in rows if row[0] == "eval/loss"] == [2]


def test_rloo_sends_its_numbers_too(writer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = alignkit(
        capsys, "rloo", "--prompts", "rows.jsonl", "--output", "out", *TRAIN, "--response-length",
        "4", "--rollout-batch-size", "4", "--total-episodes", "8", "--reward", "lengths:score",
        "--learning-rate", "0.0003",
    )  # fmt: skip
    assert said.code == 0, said.err
    kept = list((writer / "out" / "tensorboard").iterdir())
    assert kept
    if not HAS_TENSORBOARD:
        rows = [json.loads(line) for line in kept[0].read_text().splitlines()]
        assert [row[2] for row in rows if row[0] == "train/objective/scores"] == [1, 2]
        arguments = json.loads(next(row[1] for row in rows if row[0] == "args"))
        assert arguments["learning_rate"] == 0.0003


@pytest.mark.skipif(HAS_TENSORBOARD, reason="the real writer has no way to fail here")
def test_a_tracker_that_fails_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start it ends the run; later it is left out, and the run goes on."""
    from transformers import TrainerControl, TrainerState, TrainingArguments

    installed(place, FAILING.format(start="raise PermissionError('not here')"), monkeypatch)
    about = (
        TrainingArguments(str(place / "o"), use_cpu=True, report_to=[]),
        TrainerState(),
        TrainerControl(),
    )
    said: list[str] = []
    trackers = Trackers(("tensorboard",), place, said.append)
    with pytest.raises(TrainingFailed, match=r"tensorboard cannot start \(PermissionError: not"):
        trackers.notify("on_train_begin", *about)
    (place / "packages" / "tensorboardX.py").write_text(FAILING.format(start="pass"))
    monkeypatch.delitem(sys.modules, "tensorboardX")
    importlib.invalidate_caches()
    trackers = Trackers(("tensorboard",), place, said.append)
    trackers.notify("on_log", *about, logs={"loss": 1.0})
    trackers.notify("on_log", *about, logs={"loss": 2.0})
    assert said == [
        "report_to: tensorboard failed (ConnectionError: nobody answers); continuing without it"
    ]
