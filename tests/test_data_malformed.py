"""Broken and odd inputs: each is refused or accepted with its own words, in no time, whole."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignkit.cli import main
from alignkit.data.files import MAX_LINE

GOOD = {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go away."}
DEEP = b"[" * 100_000 + b"]" * 100_000


def line(**changes: Any) -> bytes:
    """One preference as JSON, with some keys changed; a change to ... removes the key."""
    row = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    return json.dumps(row).encode() + b"\n"


def chat(role: str = "user") -> bytes:
    """The same preference as messages."""
    turn: Callable[[str, str], list[dict[str, str]]] = lambda who, text: [  # noqa: E731
        {"role": who, "content": text}
    ]
    row = {
        "prompt": turn(role, "Hi?"),
        "chosen": turn("assistant", "Hello."),
        "rejected": turn("assistant", "Go away."),
    }
    return json.dumps(row).encode() + b"\n"


def demonstration(*roles: str) -> bytes:
    """A conversation with these roles."""
    messages = [{"role": role, "content": f"turn {i}"} for i, role in enumerate(roles)]
    return json.dumps({"messages": messages}).encode() + b"\n"


OK = line(prompt="And?", chosen="Fine.")

# number in the corpus: (bytes of d.jsonl, exit code, what is said)
CORPUS: dict[str, tuple[bytes, int, str]] = {
    "1 empty file": (b"", 2, r"d\.jsonl: no records\. Fix: one JSON object per line"),
    "2 blank lines": (b"\n\n  \n", 2, r"no records, only 3 blank lines"),
    "3 byte order mark": (b"\xef\xbb\xbf" + OK, 0, r"note: .*byte order mark, ignored"),
    "4 UTF-16": (OK.decode().encode("utf-16"), 2,
                 r"looks like UTF-16\. Fix: iconv -f UTF-16 -t UTF-8"),
    "5 invalid byte": (OK + b'{"prompt": "Hi", "\xff": 1}\n', 2,
                       r":2:19: byte 0xff at column 19 is not UTF-8"),
    "6 gzip": (gzip.compress(OK), 2, r"gzip data\. Fix: rename to .*d\.jsonl\.gz"),
    "7 array": (b"[" + OK.strip() + b"]", 2, r"a JSON array, not JSONL\. Fix: jq -c '\.\[\]'"),
    "8 pretty-printed": (json.dumps(GOOD, indent=2).encode(), 2,
                         r"object spans lines 1–5\. Fix: jq -c \."),
    "9 torn last line": (OK + OK[:30], 0, r":2: last line incomplete \(power cut\?\), ignored"),
    "9 torn line elsewhere": (OK + OK[:30] + b"\n" + OK, 2,
                              r":2:\d+: the line ends in the middle of a value"),
    "10 trailing comma": (OK[:-2] + b",}\n", 2, r":1:\d+: trailing comma"),
    "11 single quotes": (b"{'prompt': 'Hi?', 'chosen': 'a', 'rejected': 'b'}\n", 2,
                         r":1:2: Python-style quotes"),
    "12 NaN": (line(margin=float("nan")), 2, r":1: NaN is not JSON"),
    "13 long integer": (OK[:-2] + b', "n": ' + b"1" * 5000 + b"}\n", 2,
                        r":1: a number of 5,000 digits"),
    "14 deep nesting": (OK[:-2] + b', "n": ' + DEEP + b"}\n", 2, r"nested deeper than 64"),
    "15 long line": (line(chosen="x" * (MAX_LINE + 1_200_000)), 2, r":1: line is 17\.1 MiB"),
    "16 duplicate key": (OK[:-2] + b', "chosen": "b"}\n', 2, r':1: key "chosen" twice'),
    "17 lone surrogate": (rb'{"prompt": "\ud83d!", "chosen": "a", "rejected": "b"}' + b"\n", 2,
                          r'broken emoji/surrogate in "prompt"'),
    "18 U+2028": ('{"prompt": "a\u2028b?", "chosen": "a", "rejected": "b"}\n'.encode(), 0,
                  r"preference, 1 rows, no problems"),
    "19 scalar": (OK + b"42\n", 2, r":2: expected object, got number"),
    "20 missing key": (b'{"prompt": "Hi?", "choosen": "a"}\n', 2,
                       r'no "rejected"\. Found: prompt, choosen\. Did you mean "chosen"\?'),
    "20 missing key later": (OK + b'{"prompt": "Hi?", "choosen": "a", "rejected": "b"}\n', 2,
                             r':2: no "chosen"\. Found: prompt, choosen, rejected\. '
                             r'Did you mean "chosen"\?'),
    "21 null": (line(chosen=None), 2, r'"chosen" is null'),
    "22 number for text": (line(rejected=3), 2, r'"rejected" is a number'),
    "23 identical": (line(rejected=" Hello.\n"), 2, r"identical answers carry no preference"),
    "24 blank prompt": (line(prompt=" \n"), 2, r'"prompt" is empty'),
    "25 unknown role": (chat("bot"), 2, r'prompt\[0\]\.role|unknown role "bot"'),
    "26 ends with user": (demonstration("user", "assistant", "user"), 2,
                          r"ends with a user turn"),
    "27 mixed": (chat() + OK, 2, r"line 1 is chat, line 2 is plain"),
    "28 contradiction": (OK + line(prompt="And?", chosen="Go away.", rejected="Fine."), 0,
                         r":2: contradicts line 1"),
    "29 no permutation": (b'{"prompt": "Hi?", "completions": ["a", "b"], "ranks": [0, 2]}\n',
                          2, r"rank 0 in \[0, 2\] is no rank"),
    "31 NUL": (OK + b'{"prompt": "a\x00b"}\n', 2, r":2:14: NUL character at column 14"),
    "31 escaped NUL": (line(prompt="a\x00b"), 2, r'NUL character in "prompt"'),
}  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """(exit code, everything said) of a command."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out + said.err


@pytest.mark.parametrize("name", CORPUS)
def test_check_says_what_is_wrong(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, code, words = CORPUS[name]
    (tmp_path / "d.jsonl").write_bytes(content)
    started = time.monotonic()
    exit_code, said = run(capsys, "data", "check", tmp_path / "d.jsonl")
    assert exit_code == code, said
    assert re.search(words, said), said
    assert "Traceback" not in said
    assert time.monotonic() - started < 2
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


REFUSED = [name for name, (_, code, _) in CORPUS.items() if code == 2]
BY_RULE = ("23", "24", "26", "27", "31 escaped")


@pytest.mark.parametrize("name", [n for n in REFUSED if not n.startswith(BY_RULE)])
def test_what_is_malformed_is_not_converted_and_nothing_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, _, words = CORPUS[name]
    (tmp_path / "d.jsonl").write_bytes(content)
    exit_code, said = run(
        capsys, "data", "convert", tmp_path / "d.jsonl", "-o", tmp_path / "out.jsonl"
    )
    assert exit_code == 2, said
    assert re.search(words, said), said
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


def test_a_filter_that_leaves_nothing_says_why(tmp_path: Path) -> None:
    from alignkit.data.read import load_preferences
    from alignkit.errors import DataError

    path = tmp_path / "d.jsonl"
    path.write_bytes(line(rejected="") * 9 + line(rejected="Hello.") * 3)
    with pytest.raises(DataError) as error:
        load_preferences(path, on_bad_row="drop")
    assert "0 of 12 rows left; reasons: empty-side 9, identical 3" in str(error.value)


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
