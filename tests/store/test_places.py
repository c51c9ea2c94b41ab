"""Where results go: what cannot be written to is told before work is done, or by what happened."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alignkit.errors import DiskFull, RecipeError
from alignkit.store.artifacts import check_place, disk_full_named
from tests.command import alignkit

KINDS = {
    "sft": ("--data",),
    "reward": ("--data",),
    "dpo": ("--data",),
    "ppo": ("--reward", "in_the_way:score", "--prompts"),
    "rloo": ("--reward", "in_the_way:score", "--prompts"),
    "generate": ("--prompts",),
}
TRAIN = ("--model", "tiny", "--lora-r", "2", "--quantization", "none", "--logging-steps", "1")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with rows and a file in the way."""
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "in_the_way.py").write_text("def score(prompt, completion): return 1.0\n")
    (tmp_path / "r.yaml").write_text("name: x\nstages: [{sft: {data: rows.jsonl}}]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("output", ["notes", "notes/deep/out", "dangling"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_result_goes_to_no_file(
    place: Path, capsys: pytest.CaptureFixture[str], kind: str, output: str
) -> None:
    (place / "dangling").symlink_to("notes")
    before = sorted(path.name for path in place.iterdir())
    for more in ((), ("--dry-run",)):
        said = alignkit(capsys, kind, *KINDS[kind], "rows.jsonl", "--output", output, *more)
        assert (said.code, said.out) == (2, "")
        assert said.err == (
            f"{place}/notes is a file, not a directory. Name a directory for the results\n"
        )
    assert sorted(path.name for path in place.iterdir()) == before
    assert (place / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    "command",
    [
        ("run", "r.yaml", "--runs-dir", "notes"),
        ("run", "r.yaml", "--runs-dir", "notes", "--dry-run"),
        ("demo", "--output", "notes"),
        ("demo", "--output", "notes/demo"),
    ],
)
def test_a_recipe_runs_in_no_file(
    place: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    said = alignkit(capsys, *command)
    assert said.code == 2
    assert f"{place}/notes is a file, not a directory" in said.err
    assert "internal" not in said.err


def test_a_file_where_the_work_is_done_is_in_the_way_too(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "out.partial").write_text("mine")
    said = alignkit(capsys, "sft", "--data", "rows.jsonl", "--output", "out")
    assert (said.code, "out.partial is a file, not a directory" in said.err) == (2, True)


def test_places_that_can_be_made_or_are_there_pass(tmp_path: Path) -> None:
    check_place(tmp_path)
    check_place(tmp_path / "a" / "b" / "c")
    assert not (tmp_path / "a").exists()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(RecipeError, match="loop is a file, not a directory"):
        check_place(tmp_path / "loop" / "c")


@pytest.mark.parametrize("save_steps", ["2", "1000"])
def test_a_directory_that_is_deleted_under_a_run_is_told(
    place: Path, capsys: pytest.CaptureFixture[str], save_steps: str
) -> None:
    """Also where a later save would make it anew."""

    def delete() -> None:
        while not (place / "out.partial" / "metrics.jsonl").exists():
            stop.wait(0.005)
        shutil.rmtree(place / "out.partial")

    stop = threading.Event()
    thread = threading.Thread(target=delete, daemon=True)
    thread.start()
    said = alignkit(
        capsys, "sft", "--data", "rows.jsonl", "--output", "out", *TRAIN, "--max-steps", "60",
        "--save-steps", save_steps, "--per-device-train-batch-size", "2",
    )  # fmt: skip
    thread.join()
    assert said.code == 1
    last = said.err.splitlines()[-1]
    assert last.startswith(f"{place}/out.partial was deleted or moved while the run wrote to it. ")
    assert not (place / "out").exists()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [1500, 20_000])
def test_a_limit_on_the_size_of_files_is_told_as_that(
    place: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    """While the rows are written, and a checkpoint."""
    command = ("sft", "--data", "rows.jsonl", "--output", "out", *TRAIN, "--max-steps", "2")
    with largest_file(size):
        said = alignkit(capsys, *command)
    last = said.err.splitlines()[-1]
    assert said.code == 1
    assert last.startswith(f"a file at {place}/out.partial")
    assert "would be larger than the limit of " in last
    assert "(ulimit -f) and run the same command again: alignkit " in last
    assert not (place / "out").exists()


def test_libraries_report_the_limit_in_their_own_words(tmp_path: Path) -> None:
    for error in (
        OSError(errno.EFBIG, "x"),
        RuntimeError("I/O error: File too large (os error 27)"),
    ):
        with pytest.raises(DiskFull, match="larger than the limit"), disk_full_named(tmp_path):
            raise error


def test_a_working_directory_that_is_gone_is_told(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "gone").mkdir()
    monkeypatch.chdir(place / "gone")
    (place / "gone").rmdir()
    for command in (("sft", "--data", "rows.jsonl", "--output", "out"), ("data", "check", "x")):
        said = alignkit(capsys, *command)
        assert said.code == 2
        assert said.err == (
            "the working directory was deleted. Change to a directory that is there\n"
        )
    assert alignkit(capsys, "--help").code == 0


@pytest.mark.parametrize("name", [b"caf\xe9.jsonl", b"\xff", b"a\xc3"])
def test_names_that_are_not_utf8_are_told(
    place: Path, capsys: pytest.CaptureFixture[str], name: bytes
) -> None:
    (place / os.fsdecode(name)).write_bytes((place / "rows.jsonl").read_bytes())
    given = os.fsdecode(name)
    shown = name.decode(errors="backslashreplace")
    for command in (
        ("sft", "--data", given, "--output", "out"),
        ("sft", "--data", "rows.jsonl", "--output", given),
        ("data", "check", given),
        ("run", "r.yaml", f"--runs-dir={given}"),
    ):
        said = alignkit(capsys, *command)
        assert said.code == 2
        assert f"{shown} is not UTF-8. Rename it" in said.err
    assert not (place / "out").exists()


def test_a_working_directory_whose_name_is_not_utf8_is_told(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = place / os.fsdecode(b"w\xfcrttemberg")
    odd.mkdir()
    monkeypatch.chdir(odd)
    said = alignkit(capsys, "sft", "--data", "../rows.jsonl", "--output", "out")
    assert (said.code, r"w\xfcrttemberg is not UTF-8" in said.err) == (2, True)
