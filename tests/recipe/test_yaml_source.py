"""YAML with places: values of YAML 1.2, a line and column for every problem, limits that hold."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.errors import AlignkitError, RecipeError
from alignkit.recipe.yaml_source import MAX_BYTES, parse_yaml, raise_problems, read_yaml, scalar

VALUES: list[tuple[str, Any]] = [
    ("1e-4", 1e-4),
    ("5E3", 5000.0),
    (".5", 0.5),
    ("-1.5", -1.5),
    ("010", 10),
    ("0x1f", 31),
    ("0o17", 15),
    ("no", "no"),
    ("yes", "yes"),
    ("on", "on"),
    ("true", True),
    ("False", False),
    ("~", None),
    ("", None),
    (".inf", math.inf),
    ("-.inf", -math.inf),
    ("1_000", "1_000"),
    ("12:30:45", "12:30:45"),
    ("2026-01-01", "2026-01-01"),
    ("0.1.2", "0.1.2"),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    parsed = parse_yaml(f"key: {text}\n", file="r.yaml").value["key"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_quotes_make_text() -> None:
    assert parse_yaml("a: '1e-4'\nb: \"true\"\n", file="r").value == {"a": "1e-4", "b": "true"}


def test_every_key_and_value_knows_its_place() -> None:
    document = parse_yaml("a: 1\nb:\n  - c: 2\n    d: [3, 4]\n", file="r.yaml")
    assert document.where(("a",)) == "r.yaml:1:4"
    assert document.where(("b", 0, "d"), key=True) == "r.yaml:4:5"
    assert document.where(("b", 0, "d", 1)) == "r.yaml:4:12"
    assert document.where(("b", 0, "gone")) == "r.yaml:3:5"


PROBLEMS: list[tuple[str, str]] = [
    ("a: 1\na: 2\n", "r.yaml:2:1: key 'a' is set twice; first at 1:1"),
    ("a:\n\tb: 1\n", "r.yaml:2:1: tab at column 1. Indent with two spaces"),
    ("a:\n  b: 1\n  \tc: 2\n", "r.yaml:3:3: tab at column 3"),
    ("a: &x 1\n", "r.yaml:1:4: anchors are not allowed (&x)"),
    ("a: *x\n", "r.yaml:1:4: aliases are not allowed (*x)"),
    ("a: !!python/object:os.system {}\n", "r.yaml:1:4: tag !!python/object:os.system is not"),
    ("a: !!str 1\n", "r.yaml:1:4: tag !!str is not allowed"),
    ("<<: {a: 1}\n", "r.yaml:1:1: merge keys are not allowed"),
    ("? [1]\n: 2\n", "r.yaml:1:3: a key must be a word"),
    ("a: 1\n---\nb: 2\n", "r.yaml:2:1: a second document"),
    ("a: 'x\n", "r.yaml:2:1: a quote is never closed"),
    ("a: [1\n", "r.yaml:2:1: a list is never closed"),
    ("a: {b: 1\n", "r.yaml:2:1: a mapping is never closed"),
    ("a: b: c\n", "r.yaml:1:5: a second ':' on one line"),
    ("a: @b\n", "r.yaml:1:4: a value cannot start with this character"),
    ("a: \x07\n", "r.yaml:1:4: character U+0007 is not allowed"),
    ('a: "\\ud800"\n', "r.yaml:1:4: half of a surrogate pair"),
    ('a: "\\U00110000"\n', "escape of a character that does not exist"),
    (f"a: {'9' * 5000}\n", "r.yaml:1:4: a number of 5,000 digits"),
    ("[" * 100 + "]" * 100, "r.yaml:1:34: nested deeper than 32"),
]


@pytest.mark.parametrize(("text", "message"), PROBLEMS)
def test_each_problem_has_a_place_and_a_reason(text: str, message: str) -> None:
    with pytest.raises(AlignkitError) as caught:
        raise_problems(parse_yaml(text, file="r.yaml"))
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_several_problems_are_told_at_once_in_order() -> None:
    with pytest.raises(AlignkitError) as caught:
        raise_problems(parse_yaml("b: !x 1\na: 1\na: 2\nc: &y 1\n", file="r.yaml"))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in lines] == ["1", "3", "4"]


def problem_of(text: str) -> str:
    """What is told about a text; nothing if it is a good one."""
    try:
        raise_problems(parse_yaml(text, file="r.yaml"))
    except AlignkitError as error:
        return str(error)
    return ""


BOMBS = {
    "aliases": "a: &a [x,x,x]\n" + "".join(f"{c}: &{c} [*a,*a]\n" for c in "bcdefgh") * 900,
    "brackets": "[" * MAX_BYTES,
    "braces": "{a: " * (MAX_BYTES // 4),
    "values": "- a\n" * (MAX_BYTES // 4),
    "keys": "".join(f"k{i}: 1\n" for i in range(20_000)),
    "anchor": "&" + "a" * (MAX_BYTES - 2),
    "words": "a: " + "x " * (MAX_BYTES // 2 - 4),
    "escapes": 'a: "' + "\\n" * (MAX_BYTES // 2 - 4) + '"',
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_less_than_a_second_and_are_told_briefly(name: str) -> None:
    began = time.process_time()
    told = problem_of(BOMBS[name])
    assert time.process_time() - began < 1
    assert len(told) < 4000


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(RecipeError, match="larger than 256 KiB"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: ü\n".encode("utf-16"), "looks like UTF-16"),
        (b"name: x\nb: \xff\n", "r.yaml:2:4: byte 0xff is not UTF-8"),
    ],
)
def test_other_encodings_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        read_yaml(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_yaml(path).value == {"name": "x"}


def test_an_absent_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "helpful.yaml").write_text("a: 1\n")
    with pytest.raises(RecipeError, match="Did you mean .*helpful.yaml"):
        read_yaml(tmp_path / "helpfull.yaml")


@given(st.text(alphabet="ab:-[]{},\"'&*!|>?#%@` \n\t0e\\u", max_size=60))
def test_any_text_is_a_value_or_an_error_with_a_place(text: str) -> None:
    told = problem_of(text)
    assert not told or told.startswith("r.yaml")


@given(st.floats(allow_nan=False))
def test_numbers_written_by_python_are_read_back(value: float) -> None:
    text = repr(value).replace("inf", ".inf")
    assert scalar(text) == value
