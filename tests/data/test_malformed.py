"""Broken files beyond the table of malformed inputs: conversion, containers, arbitrary bytes."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignkit.cli import main
from tests.malformed import DATA, OK, Case, line

# What the table of malformed inputs has no row for.
VARIANTS: dict[str, tuple[bytes, str]] = {
    "torn line in the middle": (OK + OK[:30] + b"\n" + OK,
                                r":2:\d+: the line ends in the middle of a value"),
    "missing key later": (OK + b'{"prompt": "Hi?", "choosen": "a", "rejected": "b"}\n',
                          r':2: no "chosen"\. Found: prompt, choosen, rejected\. '
                          r'Did you mean "chosen"\?'),
    "escaped NUL": (line(prompt="a\x00b"), r'NUL character in "prompt"'),
}  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """(exit code, everything said) of a command."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out + said.err


@pytest.mark.parametrize("name", VARIANTS)
def test_check_says_what_is_wrong(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, words = VARIANTS[name]
    (tmp_path / "d.jsonl").write_bytes(content)
    exit_code, said = run(capsys, "data", "check", tmp_path / "d.jsonl")
    assert exit_code == 2, said
    assert re.search(words, said), said


# Rules about rows that can be read stop training, not conversion.
BY_RULE = (23, 24, 26, 27)
REFUSED = [case for case in DATA if case.code == 2 and "d.jsonl" in case.command[-1:]]


@pytest.mark.parametrize(
    "case", [case for case in REFUSED if case.number not in BY_RULE], ids=lambda case: case.id
)
def test_what_is_malformed_is_not_converted_and_nothing_is_written(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d.jsonl").write_bytes(case.files["d.jsonl"])
    exit_code, said = run(
        capsys, "data", "convert", tmp_path / "d.jsonl", "-o", tmp_path / "out.jsonl"
    )
    assert exit_code == 2, said
    assert re.search(case.says, said), said
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


def test_a_gzip_bomb_stops_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * (200 << 20)))
    exit_code, said = run(capsys, "data", "check", path)
    assert exit_code == 2
    assert "decompresses to more than 200 times its size" in said


def test_a_truncated_gzip_file_is_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(gzip.compress(OK * 1000)[:-20])
    exit_code, said = run(capsys, "data", "check", path)
    assert (exit_code, "broken gzip data" in said) == (2, True), said


def test_a_file_that_is_not_there_gets_the_nearest_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prefs.jsonl").write_bytes(OK)
    exit_code, said = run(capsys, "data", "check", tmp_path / "pref.jsonl")
    assert exit_code == 2
    assert "no such file; did you mean 'prefs.jsonl'?" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[1, 2]", "expected object, got number"),
        (b"[]", "no records"),
        (b"[" + OK, "the array ends too early"),
        (b"[" + OK + b"," + OK[:20], "ends in the middle of an item"),
        (b"[" + OK + OK + b"]", "a comma is missing"),
        (b"[" + OK + b",]", "trailing comma"),
        (b"[" + OK + b"] x", "text after the end of the array"),
    ],
)
def test_broken_arrays(
    text: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(text)
    exit_code, said = run(capsys, "data", "check", path)
    assert (exit_code, words in said) == (2, True), said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["prompt", "chosen", "rejected", "messages", "conversations", "kind", "label", "completion",
     "ranks", "completions", "candidates", "instruction", "output", "input", "text", "fields",
     "responses", "data", "annotations", "answers", "options", "accept", "turns", "question_id",
     "history", "system", "role", "content", "from", "value", "id", "extra", "instances",
     "model_a", "model_b", "winner", "conversation_a", "conversation_b"]
)  # fmt: skip
ROWS = st.dictionaries(KEYS, JSON | st.lists(st.dictionaries(KEYS, JSON, max_size=3)), max_size=6)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rows=st.lists(JSON | ROWS, min_size=1, max_size=3))
def test_arbitrary_json_never_breaks_the_reader(
    rows: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    exit_code, said = run(capsys, "data", "check", "--json", path)
    assert exit_code in (0, 2)
    (report,) = json.loads(said)["files"]
    assert report["ok"] == (exit_code == 0)
    errors = [problem for problem in report["problems"] if problem["level"] == "error"]
    assert bool(errors) == (exit_code == 2)
    assert all(1 <= problem["line"] <= len(rows) for problem in errors)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_never_break_the_reader(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("d.jsonl", "d.json", "d.csv", "d.txt", "d.parquet", "d.jsonl.gz"):
        (tmp_path / name).write_bytes(content)
        exit_code, said = run(capsys, "data", "check", tmp_path / name)
        assert exit_code in (0, 2), said
        assert "Traceback" not in said
