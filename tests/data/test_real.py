"""The real files: recognised, their quirks found by line, converted to our records and back."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from alignkit.data.checks.file_check import FileReport, check_file
from alignkit.data.edit.convert import canonical, convert
from alignkit.data.edit.split import prompt_key, split_by_prompt
from alignkit.data.read import load_demonstrations, load_preferences, load_rankings
from alignkit.errors import ErrorList
from alignkit.files.problems import Problem
from alignkit.files.rows import Row, read_rows

pytestmark = pytest.mark.real_data


@dataclass(frozen=True)
class Expected:
    """What SOURCES says of a file: format, rows, and problems as kind -> lines or a count."""

    format: str
    rows: int
    kind: str
    found: dict[str, int | list[int]] = field(default_factory=dict)


FILES = {
    "hh_harmless_test.jsonl": Expected("hh-rlhf", 2312, "preference", {
        "prompts-differ": [1255, 1689, 1951, 1953, 2037],
        "empty-side": [87, 517, 926, 1104],
    }),
    "llamafactory_dpo_en_demo.json": Expected("sharegpt-preference", 300, "preference", {
        "duplicate": 5, "bom": [1602, 1602],
    }),
    "llamafactory_alpaca_en_demo.json": Expected("alpaca", 999, "demonstration",
                                                 {"duplicate": 14}),
    "llamafactory_kto_en_demo.json": Expected("messages-kto", 300, "label"),
    "llamafactory_identity.json": Expected("alpaca", 91, "demonstration", {"placeholder": 85}),
    "self_instruct_seed_tasks.jsonl": Expected("self-instruct", 175, "demonstration"),
    "self_instruct_user_oriented.jsonl": Expected("self-instruct", 252, "demonstration"),
    "self_instruct_pred_text-davinci-003.jsonl": Expected("self-instruct-predictions", 252,
                                                          "candidates"),
    "self_instruct_pred_davinci-self-instruct.jsonl": Expected("self-instruct-predictions", 252,
                                                               "candidates"),
    "llmbar_Natural.json": Expected("llmbar", 100, "ranking"),
    "fastchat_dummy_conversation.json": Expected("sharegpt", 500, "demonstration"),
    "mt_bench_question.jsonl": Expected("mt-bench", 80, "prompt"),
    "imdb_labelled.txt": Expected("labelled-text", 1000, "label", {"duplicate": 3}),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder() -> Path:
    """The directory ALIGNKIT_REAL_DATA names."""
    named = os.environ.get("ALIGNKIT_REAL_DATA")
    if not named:
        pytest.skip("ALIGNKIT_REAL_DATA is not set")
    return Path(named)


@pytest.fixture(scope="module")
def report(folder: Path) -> Callable[[str], FileReport]:
    """The report of one file, made once."""
    made: dict[str, FileReport] = {}

    def of(name: str) -> FileReport:
        if name not in made:
            made[name] = check_file(folder / name)[0]
        return made[name]

    return of


def rows_in(path: Path) -> list[Row]:
    problems: list[Problem] = []
    rows = list(read_rows(path, problems.append))
    assert problems == []
    return rows


@pytest.mark.parametrize("name", FILES)
def test_it_is_recognised_and_counted(name: str, report: Callable[[str], FileReport]) -> None:
    assert (report(name).format, report(name).rows) == (FILES[name].format, FILES[name].rows)


@pytest.mark.parametrize("name", [n for n, expected in FILES.items() if expected.found])
def test_its_quirks_are_found_by_line(name: str, report: Callable[[str], FileReport]) -> None:
    for kind, wanted in FILES[name].found.items():
        lines = [p.line for p in report(name).problems if p.kind == kind]
        assert lines == wanted if isinstance(wanted, list) else len(lines) == wanted, (kind, lines)


@pytest.mark.parametrize("name", FILES)
def test_it_becomes_our_records_and_the_same_rows_again(
    name: str, folder: Path, tmp_path: Path
) -> None:
    ours, back = tmp_path / "ours.jsonl", tmp_path / f"back{Path(name).suffix}"
    convert([folder / name], ours)
    convert([ours], back, to=FILES[name].format)
    before, after = rows_in(folder / name), rows_in(back)
    assert [canonical(row.value) for row in after] == [canonical(row.value) for row in before]
    assert [list(row.value) for row in after] == [list(row.value) for row in before]
    assert {row.value["kind"] for row in rows_in(ours)} == {FILES[name].kind}


def test_a_text_file_comes_back_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    convert([folder / "imdb_labelled.txt"], tmp_path / "ours.jsonl")
    convert([tmp_path / "ours.jsonl"], tmp_path / "back.txt", to="labelled-text")
    assert (tmp_path / "back.txt").read_bytes() == (folder / "imdb_labelled.txt").read_bytes()


def test_rows_that_do_not_alternate(report: Callable[[str], FileReport]) -> None:
    """Eight of the chosen transcripts, and row 1950 in the rejected one."""
    problems = report("hh_harmless_test.jsonl").problems
    lines = [p.line for p in problems if p.kind == "role-order"]
    assert lines == [668, 764, 1255, 1320, 1689, 1850, 1951, 1953, 2037]


def test_the_longer_answer_is_preferred_in_44_percent(
    report: Callable[[str], FileReport],
) -> None:
    (bias,) = [p for p in report("hh_harmless_test.jsonl").problems if p.kind == "length-bias"]
    assert bias.message == ("the longer completion is preferred in 44.5% of 2,301 [42.4%, 46.5%]")


def test_bad_rows_of_hh_are_named_or_dropped(folder: Path) -> None:
    path = folder / "hh_harmless_test.jsonl"
    with pytest.raises(ErrorList) as error:
        load_preferences(path)
    assert len(error.value.errors) == 9
    assert f"{path}:87: 'chosen' is empty. Fix: " in str(error.value)
    loaded = load_preferences(path, on_bad_row="drop")
    assert (len(loaded.records), loaded.format) == (2303, "hh-rlhf")
    assert [problem.level for problem in loaded.problems].count("error") == 9


def test_a_split_of_hh_shares_no_prompt(folder: Path) -> None:
    records = load_preferences(folder / "hh_harmless_test.jsonl", on_bad_row="drop").records
    train, held_out = split_by_prompt(records, 0.1, seed=17)
    assert not {prompt_key(r) for r in train} & {prompt_key(r) for r in held_out}
    assert 0.08 < len(held_out) / len(records) < 0.12


def test_verdicts_of_llmbar_are_rankings_of_two(folder: Path) -> None:
    records = load_rankings(folder / "llmbar_Natural.json").records
    assert sum(record.ranks == {"c0": 1, "c1": 2} for record in records) == 42


def test_placeholders_are_refused_for_training(folder: Path) -> None:
    with pytest.raises(ErrorList, match=r"\{\{name\}\}.*--fill name=TEXT"):
        load_demonstrations(folder / "llamafactory_identity.json")
