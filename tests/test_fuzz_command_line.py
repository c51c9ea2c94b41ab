"""A short run of the fuzzer over the command line, the same each time, and its own workings."""

from __future__ import annotations

import random
import time
from pathlib import Path

import click
import pytest

from alignkit.data.formats import FORMATS
from alignkit.data.records import KINDS
from tests.fuzz.command_line import (
    Case,
    Subject,
    Tally,
    case_of,
    outcome_of,
    run_cases,
    subjects,
)
from tests.fuzz.files import families, rows_of
from tests.fuzz.mutate import FILE_CHANGES, harmed

SEED = 6
CASES = 150


def test_no_command_breaks_on_harmed_files(tmp_path: Path) -> None:
    """For more of it: python -m tests.fuzz cli --minutes 10."""
    tally = run_cases(SEED, iter(range(CASES)), tmp_path, quick=True)
    assert list(tally.wrong) == []
    assert sum(tally.cases.values()) == CASES
    assert len(tally.cases) > 12  # many commands had their turn
    assert {code for _, code in tally.codes} >= {0, 2}


def test_every_command_that_takes_a_file_is_found() -> None:
    names = {subject.name for subject in subjects()}
    assert {"run", "sft", "dpo", "reward", "ppo", "rloo", "generate", "chat"} <= names
    assert {"data check", "data convert", "data pairs", "data clean", "data mix"} <= names
    assert {"eval winrate", "eval replies", "agreement", "rank collect", "rank import"} <= names
    assert not {"doctor", "demo", "tiny-base", "data formats", "eval power"} & names


def test_a_new_command_is_found_by_what_click_knows_of_it() -> None:
    group = click.Group("alignkit")
    taking = [
        click.Argument(["x"], type=click.Path()),
        click.Option(["--x"], metavar="FILE"),
        click.Argument(["files"], nargs=-1),
    ]
    for number, parameter in enumerate(taking):
        group.add_command(click.Command(f"takes-{number}", params=[parameter]))
    group.add_command(
        click.Command("writes", params=[click.Option(["--output"], type=click.Path())])
    )
    assert [subject.name for subject in subjects(group)] == ["takes-0", "takes-1", "takes-2"]


def test_every_kind_and_every_format_is_among_the_files() -> None:
    assert all(rows_of(kind) for kind in KINDS)
    assert sum(len(rows_of(kind)) for kind in KINDS) >= len(FORMATS)
    assert all(families().values())


def test_a_case_is_the_same_each_time(tmp_path: Path) -> None:
    found = list(subjects())

    def drawn(place: Path) -> tuple[list[str], dict[str, bytes]]:
        case = case_of(SEED, 11, found, place)
        files = {path.name: path.read_bytes() for path in place.iterdir()}
        return case.arguments, files

    assert drawn(tmp_path / "a") == drawn(tmp_path / "b")


@pytest.mark.parametrize("change", FILE_CHANGES, ids=lambda change: change.__name__)
def test_changes_take_any_bytes(change: object) -> None:
    for content in (b"", b"\n", b"{}", b"\xff" * 9, b'{"a": [1, {"b": null}]}\n{"c": 2}\n'):
        for number in range(20):
            assert isinstance(change(content, random.Random(number)), bytes)  # type: ignore[operator]
    assert isinstance(harmed(b"[1]", random.Random(1)), bytes)


# --- what counts as a fault ----------------------------------------------------------------------


def judged(place: Path, body: object) -> str:
    """What the fuzzer says of a command that does this."""
    place.mkdir(exist_ok=True)
    from alignkit.cli import cli

    command = click.Command("sample", callback=body)  # type: ignore[arg-type]
    cli.add_command(command)
    try:
        case = Case(Subject(("sample",), command), 0, random.Random(0), place)
        case.arguments = ["sample"]
        outcome = outcome_of(case)
    finally:
        cli.commands.pop("sample")
    told = Tally()
    told.note(case, outcome)
    return outcome.wrong


def test_an_internal_error_is_a_fault_with_its_place(tmp_path: Path) -> None:
    def body() -> None:
        from alignkit.errors import pick

        pick(None, "x", what="x")  # type: ignore[arg-type]

    said = judged(tmp_path / "case", body)
    assert said.startswith("internal error: TypeError at alignkit/errors.py:")


def test_other_exit_codes_tracebacks_and_late_writing_are_faults(tmp_path: Path) -> None:
    def leaves() -> None:
        raise SystemExit(3)

    def traces() -> None:
        click.echo("Traceback (most recent call last)", err=True)

    def writes_and_refuses() -> None:
        from alignkit.errors import DataError

        Path("half.jsonl").write_text("x")
        raise DataError("no")

    def refuses() -> None:
        from alignkit.errors import DataError

        raise DataError("no")

    assert judged(tmp_path / "a", leaves) == "exit code 3"
    assert judged(tmp_path / "b", traces) == "a traceback"
    assert judged(tmp_path / "c", writes_and_refuses) == "refused, and wrote half.jsonl"
    assert judged(tmp_path / "d", refuses) == ""


def test_a_command_that_does_not_end_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.fuzz import command_line

    monkeypatch.setattr(command_line, "GIVEN_UP", 0.2)
    assert "longer than" in judged(tmp_path / "case", lambda: time.sleep(60))
