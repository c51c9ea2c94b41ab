"""Judgements, votes, replies and references that are not what they should be: one error in words.

Every key of every row of a good file is taken away and replaced by values of other kinds, in files
of every format, and each report that reads such files is asked for. It may take the file, or refuse
it by name; it may not fail in a way that nobody foresaw.
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from alignkit.collect.log import rankings_from_events, read_events
from alignkit.data.read import load_rankings
from alignkit.errors import DataError, UserError
from alignkit.evaluation.agreement import agreement_lines, agreement_report
from alignkit.evaluation.alpacaeval_files import read_difficulty, read_regulariser
from alignkit.evaluation.completion_quality import (
    completion_quality_lines,
    completion_quality_report,
)
from alignkit.evaluation.drift import drift_lines, drift_report
from alignkit.evaluation.fairness_report import fairness_lines, fairness_report, write_swapped
from alignkit.evaluation.judgements import read_judgements
from alignkit.evaluation.text_report import winrate_lines
from alignkit.evaluation.winrate import WinrateOptions, read_for, report_of, winrate_report
from alignkit.judges import judge_named
from alignkit.judges.reference import read_references
from alignkit.report.judging_page import agreement_page, winrate_page

Row = dict[str, Any]

TURNS = [{"role": "user", "content": "Which?"}]
CANDIDATES = [
    {"cid": "c1", "messages": [{"role": "assistant", "content": "this"}], "model": "dpo"},
    {"cid": "c2", "messages": [{"role": "assistant", "content": "that"}], "model": "sft"},
]
EVENT = {
    "v": 1, "kind": "event", "id": "e1", "source": None, "ts": "2026-11-27T03:59:40.681Z",
    "extra": {"prompt": TURNS, "candidates": CANDIDATES}, "session": "s", "annotator": "ann",
    "item": "i1", "item_sha256": "0" * 64, "shown": ["c1", "c2"], "seed": 17, "action": "pair",
    "ranks": {"c1": 1, "c2": 2}, "all_bad": False, "strength": None, "comment": "", "reason": None,
    "active_ms": 900, "wall_ms": None, "ui": "web", "repeat_of": None, "gold": False,
    "supersedes": None, "prev": None,
}  # fmt: skip
ROWS: dict[str, list[Row]] = {
    "judgement": [
        {"kind": "judgement", "prompt_id": f"p{n}", "a": "dpo", "b": "sft", "first": "a",
         "verdict": "a", "score": 0.9, "judge": "rm", "prompt": TURNS, "output_a": "this",
         "output_b": "that", "len_a": 4, "len_b": 4, "error": None,
         "extra": {"category": "sums", "score_a": 1.0, "score_b": 0.5, "log_ratio_a": 0.1,
                   "prompt_tokens": 9, "completion_tokens": 1, "cost": 0.1, "group": "north",
                   "settings": {"temperature": 1.0}, "template": "t", "injection_a": False}}
        for n in range(3)
    ],
    "alpacaeval": [
        {"instruction": f"Which {n}?", "generator_1": "base", "generator_2": "dpo",
         "output_1": "this", "output_2": "that", "preference": 1.5, "annotator": "gpt"}
        for n in range(3)
    ],
    "mtbench": [
        {"question_id": n, "model_1": "dpo", "model_2": "sft", "g1_winner": "model_1",
         "g2_winner": "tie", "judge": ["gpt", "pair"], "turn": 1}
        for n in range(3)
    ],
    "arena": [
        {"question_id": f"q{n}", "model_a": "dpo", "model_b": "sft", "winner": "model_a",
         "judge": "arena"}
        for n in range(3)
    ],
    "arenahard": [
        {"uid": f"q{n}", "model": "dpo", "baseline": "sft", "judge": "gpt",
         "games": [{"score": "A>B"}, {"score": "B>A"}]}
        for n in range(3)
    ],
    "events": [
        EVENT,
        EVENT | {"id": "e2", "annotator": "ben", "ranks": {"c1": 1, "c2": 1}},
        EVENT | {"id": "e3", "repeat_of": "e1"},
        EVENT | {"id": "e4", "action": "undo", "ranks": None, "supersedes": "e2"},
    ],
    "rankings": [
        {"kind": "ranking", "id": f"r{n}", "item": "i1", "prompt": TURNS, "candidates": CANDIDATES,
         "ranks": {"c1": 1, "c2": n + 1}, "annotator": "ab"[n]}
        for n in range(2)
    ],
    "candidates": [
        {"kind": "candidates", "id": "i1", "prompt": TURNS, "candidates": CANDIDATES,
         "gold": {"c1": 1, "c2": 2}, "extra": {"category": "sums"}},
        EVENT,
    ],
    "replies": [
        {"prompt_id": f"p{n}", "policy": "sft", "reply": "hello there", "temperature": 1.0,
         "stopped": True, "reference": "hello", "log_ratio": 0.5, "prompt": "hi"}
        for n in range(3)
    ],
    "labels": [
        {"label": n > 0, "prediction": n > 1, "group": "ns"[n % 2]} for n in range(4)
    ],
    "difficulty": [{"instruction": "Which?", "instruction_difficulty": 0.5}],
    "regulariser": [
        {"model": "m", "std_delta_len": 0.1, "instruction_difficulty": 0.5, "preference": 0.4}
    ],
    "references": [{"prompt": "hi", "reference": ["hello"]}, {"prompt": TURNS, "reference": "x"}],
}  # fmt: skip
# What stands where something else is due. `...` takes the key away.
VALUES: list[Any] = [
    ..., None, True, False, 0, -1, 7, 0.5, 1e308, -1e308, 2**62, "", "x", "\x00", "p0", "c1",
    [], {}, [[]], [{}], [1], ["x"], ["c1", "c1"], {"c1": 1.5}, {"c1": 1e308, "c2": None},
    {"": {}}, {"role": "user"}, [{"role": "user", "content": 5}], CANDIDATES, TURNS,
]  # fmt: skip


def winrates(path: Path, **settings: Any) -> None:
    options = WinrateOptions(bootstrap=0, **settings)
    judgements = read_for([path], options, keep_texts=True)
    report = report_of(judgements, options, [path])
    json.dumps(report)
    winrate_lines(report)
    winrate_page(report, judgements)


def agreements(path: Path) -> None:
    report = agreement_report([path], bootstrap=20)
    json.dumps(report)
    agreement_lines(report)
    agreement_page(report)


def replies(path: Path) -> None:
    for settings in ({"metrics": ["f1"], "labels": True}, {"metrics": []}):
        report = completion_quality_report([path], None, **settings)
        json.dumps(report)
        completion_quality_lines(report)


def drifts(path: Path) -> None:
    report = drift_report(path, path)
    json.dumps(report)
    drift_lines(report)


def fairness(path: Path) -> None:
    json.dumps(report := fairness_report([path], group="group"))
    fairness_lines(report)


def labels(path: Path) -> None:
    json.dumps(report := fairness_report([], group="group", labels=path))
    fairness_lines(report)


def references(path: Path) -> None:
    completion_quality_report([path], path, ["f1"])


def swaps(path: Path) -> None:
    write_swapped(path, ["hi:ho"], path.with_name("swapped.jsonl"))


def people(path: Path) -> None:
    judge_named(f"human:{path}")


def logged(path: Path) -> None:
    """The log's own reader, and what export and training make of its votes."""
    rankings_from_events(read_events(path))
    load_rankings(path)


VOTED = [winrates, agreements, people]
READERS: dict[str, list[Callable[[Path], Any]]] = {
    "judgement": [winrates, partial(winrates, sequential=True), fairness, drifts],
    "alpacaeval": [winrates],
    "mtbench": [winrates],
    "arena": [winrates],
    "arenahard": [winrates],
    "events": [*VOTED, drifts, logged],
    "rankings": VOTED,
    "candidates": [*VOTED, replies],
    "replies": [replies, references, drifts, swaps],
    "labels": [labels],
    "difficulty": [read_difficulty],
    "regulariser": [read_regulariser],
    "references": [read_references],
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a row."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in inner:
        yield (*path, key)
        if isinstance(part, dict | list):
            yield from places(part, (*path, key))


def changed(rows: list[Row], number: int, place: tuple[Any, ...], value: Any) -> list[Row]:
    made = copy.deepcopy(rows)
    target: Any = made[number]
    for key in place[:-1]:
        target = target[key]
    if value is ...:
        del target[place[-1]]
    else:
        target[place[-1]] = value
    return made


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def told(reader: Callable[[Path], Any], path: Path) -> UserError | None:
    """What the reader says against the file, if anything; any other error fails the test."""
    try:
        reader(path)
    except UserError as error:
        return error
    return None


@pytest.mark.parametrize("kind", ROWS)
def test_good_files_are_read(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "f.jsonl", ROWS[kind])
    answers = [told(reader, path) for reader in READERS[kind]]
    # What a file lacks for some reports (another model, references) is said; others take it.
    assert None in answers, answers


@pytest.mark.parametrize("kind", ROWS)
def test_no_value_of_any_key_is_an_internal_error(tmp_path: Path, kind: str) -> None:
    rows = ROWS[kind]
    refused = 0
    # The last row but one: state of earlier rows is there, and more is to come. One combination
    # in five, which meets every place and every value.
    number = max(0, len(rows) - 2)
    every = itertools.product(list(places(rows[number])), VALUES)
    for place, value in itertools.islice(every, 0, None, 5):
        path = write(tmp_path / "f.jsonl", changed(rows, number, place, value))
        for reader in READERS[kind]:
            refused += told(reader, path) is not None
    assert refused > 3


@pytest.mark.parametrize("kind", ROWS)
def test_two_changes_at_once(tmp_path: Path, kind: str) -> None:
    """A sample of pairs of changes, the same every time."""
    rows = ROWS[kind]
    every = [(n, *change) for n, row in enumerate(rows) for change in
             itertools.product(list(places(row)), VALUES)]  # fmt: skip
    refused = 0
    for step in range(150):
        first = every[zlib.crc32(f"{kind} {step}".encode()) % len(every)]
        other = every[zlib.crc32(f"{step} {kind}".encode()) % len(every)]
        try:
            made = changed(changed(rows, *first), *other)
        except (KeyError, IndexError, TypeError):
            continue  # the first change took the second one's place away
        path = write(tmp_path / "f.jsonl", made)
        refused += sum(told(reader, path) is not None for reader in READERS[kind])
    assert refused > 0


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("other", ["judgement", "events", "replies", "candidates"])
def test_kinds_that_are_mixed(tmp_path: Path, kind: str, other: str) -> None:
    for rows in (ROWS[kind] + ROWS[other], ROWS[other] + ROWS[kind]):
        path = write(tmp_path / "f.jsonl", rows)
        for reader in READERS[kind]:
            refused = told(reader, path)
            assert refused is None or refused.message


BROKEN = {
    "empty": (b"", "f.jsonl: no records"),
    "blank": (b"\n \n", "f.jsonl: no records, only 2 blank lines"),
    "no object": (b'{"a": 1}\n[1]\n', "f.jsonl:2: expected object, got array"),
    "nested": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "nested deeper than 64"),
    "key twice": (b'{"a": 1, "a": 2}\n', 'f.jsonl:1: key "a" appears twice'),
    "huge": (b'{"a": 1e999}\n', "f.jsonl:1: number too large"),
    "not a number": (b'{"a": NaN}\n', "f.jsonl:1: NaN is not JSON"),
    "long": (b'{"a": "' + b"x" * (17 << 20) + b'"}\n', "f.jsonl:1: line is 17.0 MiB"),
    "latin": ('{"a": "é"}\n'.encode("latin-1"), "f.jsonl:1:8: byte 0xe9"),
    "half a character": (b'{"a": "\\ud800"}\n', "f.jsonl:1: broken emoji"),
    "comma": (b'{"a": 1,}\n', "f.jsonl:1:9: trailing comma"),
    "nul": (b'{"a": "\x00"}\n', "f.jsonl:1:8: NUL character"),
}
EVERY_READER = {
    "winrate": winrates,
    "agreement": agreements,
    "replies": replies,
    "drift": drifts,
    "fairness": fairness,
    "labels": labels,
    "difficulty": read_difficulty,
    "regulariser": read_regulariser,
    "references": read_references,
    "swap": swaps,
    "people": people,
}


@pytest.mark.parametrize("broken", BROKEN)
def test_every_reader_names_the_place_of_what_is_no_json(tmp_path: Path, broken: str) -> None:
    content, message = BROKEN[broken]
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    for name, reader in EVERY_READER.items():
        if broken == "no object" and name not in ("drift",):
            path.write_bytes(content.split(b"\n")[1] + b"\n")
            first = message.replace(":2:", ":1:").replace("expected object, got array", "a JSON")
            assert first in str(told(reader, path)), name
            path.write_bytes(content)
            continue
        assert message in str(told(reader, path)), name


def test_a_last_line_that_a_power_cut_left_is_told_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "j.jsonl", ROWS["judgement"])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "judgement", "prompt_id"')
    with caplog.at_level(logging.WARNING):
        assert winrate_report([path])["n_judgements"] == 3
    assert f"{path}:4: last line incomplete (power cut?), ignored" in caplog.text


@pytest.mark.parametrize("tail", [b"", b"\0" * 512])
def test_a_row_cut_anywhere_is_a_last_line_that_a_power_cut_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tail: bytes
) -> None:
    """In the middle of a word, a number, an escape or a character; or its block is all NUL."""
    last = r'{"a": true, "b": [null, false, -1.5e+10], "é": "\u00e9\n\\ ✓", "c": {}}'.encode()
    whole = json.dumps(ROWS["judgement"][0]).encode() + b"\n"
    path = tmp_path / "j.jsonl"
    for cut in range(1, len(last)):
        path.write_bytes(whole + last[:cut] + tail)
        caplog.clear()
        assert winrate_report([path], bootstrap=0)["n_judgements"] == 1
        assert f"{path}:2: last line incomplete (power cut?), ignored" in caplog.text
    # The same in the middle of a file is a mistake, and so is a last line that nobody cut.
    path.write_bytes(whole + last[:20] + b"\n" + whole)
    with pytest.raises(DataError, match=r":2:\d+: the line ends in the middle of a value"):
        winrate_report([path])
    path.write_bytes(whole + b'{"a": x}')
    with pytest.raises(DataError, match=r":2:7: not JSON"):
        winrate_report([path])


def test_a_pipe_is_read_once_and_has_the_fingerprint_of_its_bytes(tmp_path: Path) -> None:
    plain = write(tmp_path / "j.jsonl", ROWS["judgement"])
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writing = threading.Thread(target=lambda: pipe.write_bytes(plain.read_bytes()))
    writing.start()
    [heard] = read_judgements([pipe]).inputs
    writing.join()
    [known] = read_judgements([plain]).inputs
    assert (heard["sha256"], heard["rows"]) == (known["sha256"], 3)


def test_an_item_that_two_answers_share_a_name_in_is_refused(tmp_path: Path) -> None:
    twice = [CANDIDATES[0], CANDIDATES[1] | {"cid": "c1"}]
    row = EVENT | {"extra": {"prompt": TURNS, "candidates": twice}}
    path = write(tmp_path / "e.jsonl", [row])
    with pytest.raises(DataError, match=r"e\.jsonl:1: two candidates have the same cid"):
        winrate_report([path])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shown": 1}, "'shown' must be a list of texts, not 1"),
        ({"shown": [[]]}, "'shown' must be a list of texts, not array"),
        ({"shown": {"c1": 1}}, "'shown' must be a list of texts, not object"),
        ({"repeat_of": []}, "'repeat_of' must be text or null, not array"),
        ({"supersedes": 5}, "'supersedes' must be text or null, not 5"),
        ({"annotator": {}}, "'annotator' must be non-empty text, not object"),
        ({"gold": "yes"}, "'gold' must be true, false or null, not 'yes'"),
        ({"active_ms": -1}, "'active_ms' must be a non-negative integer or null, not -1"),
        ({"item": ["i1"]}, "'item' must be non-empty text, not array"),
    ],
)
def test_votes_name_the_field(tmp_path: Path, change: Row, message: str) -> None:
    path = write(tmp_path / "e.jsonl", [EVENT, EVENT | {"id": "e2"} | change])
    with pytest.raises(DataError) as caught:
        agreement_report([path])
    assert str(caught.value).startswith(f"{path}:2: {message}")


def test_a_vote_on_candidates_that_are_not_there_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", [EVENT | {"ranks": {"c1": 1, "c9": 2}}])
    with pytest.raises(DataError, match="a vote on item 'i1' ranks 'c9', which is not"):
        winrate_report([path])


def test_texts_of_a_vote_name_the_field(tmp_path: Path) -> None:
    extra = {"prompt": CANDIDATES, "candidates": CANDIDATES}
    path = write(tmp_path / "e.jsonl", [EVENT, EVENT | {"id": "e2", "extra": extra}])
    with pytest.raises(DataError) as caught:
        winrate_report([path])
    assert str(caught.value).startswith(f'{path}:2: no "prompt[0].role"')


def test_a_vote_whose_texts_are_none_is_named_where_it_becomes_a_ranking(tmp_path: Path) -> None:
    for extra in ({"prompt": 5, "candidates": CANDIDATES}, {"prompt": TURNS, "candidates": [[]]}):
        path = write(tmp_path / "e.jsonl", [EVENT | {"extra": extra}])
        with pytest.raises(DataError, match="vote 'e1' on item 'i1': "):
            rankings_from_events(read_events(path))
        with pytest.raises(DataError, match="vote 'e1' on item 'i1': "):
            load_rankings(path)


def test_a_temperature_that_is_none_is_named(tmp_path: Path) -> None:
    rows = copy.deepcopy(ROWS["replies"])
    rows[2]["temperature"] = {"c1": 1.5, "c2": 1e308}
    path = write(tmp_path / "r.jsonl", rows)
    with pytest.raises(DataError) as caught:
        completion_quality_report([path], None, [])
    assert str(caught.value) == (f"{path}:3: 'temperature' must be a number or null, not object")
    rows[2]["temperature"] = 1e308
    with pytest.raises(DataError, match="'temperature' is 1e\\+308, beyond any plausible"):
        completion_quality_report([write(path, rows)], None, [])


def test_candidates_are_replies_of_their_models(tmp_path: Path) -> None:
    made = copy.deepcopy(CANDIDATES)
    made[0]["gen"] = {"temperature": 0.7, "stopped": False}
    row = {"kind": "candidates", "id": "i1", "prompt": TURNS, "candidates": made}
    report = completion_quality_report([write(tmp_path / "c.jsonl", [row])], None, [])
    assert list(report["policies"]) == ["dpo at T=0.7", "sft"]
    assert report["policies"]["dpo at T=0.7"]["eos_rate"] == 0.0
