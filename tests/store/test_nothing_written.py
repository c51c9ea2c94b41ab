"""Refused with nothing written: files that are not what a command adds to or undoes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignkit.collect.exports import merge_events
from alignkit.collect.log import Conflict, EventLog
from alignkit.data.edit.clean import CleaningPlan, clean, undo
from alignkit.data.pairs import rankings_from_votes
from alignkit.data.records import Event
from alignkit.errors import DataError
from tests.command import alignkit

ROWS = [{"prompt": "Q?", "chosen": "a", "rejected": "b"}] * 2
TEXTS = {
    "prompt": [{"role": "user", "content": "Hi?"}],
    "candidates": [
        {"cid": cid, "messages": [{"role": "assistant", "content": cid}]} for cid in ("a", "b")
    ],
}


def event(number: int, **fields: object) -> Event:
    """A vote on item 1."""
    given = {
        "id": f"e{number}", "ts": "2026-01-01T00:00:00Z", "annotator": "ann", "item": "1",
        "action": "rank", "ranks": {"a": 1, "b": 2}, "extra": TEXTS,
    }  # fmt: skip
    return Event.model_validate(given | fields)


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- event files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"thesis", b"thesis\n", b"PAR1\x00\x01", b'{"prompt": "a"}\n', b"[1]", b'{"kind":']
)
def test_a_file_that_is_no_event_file_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    """A last line without an end is healed in an event file, and in no other."""
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not an event file; nothing was added"), EventLog(path):
        pass
    assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("torn", [b'{"v":1', b'{"v":1,"kind":"event","id":"x"', b"{", b"\n", b""])
def test_the_beginning_of_a_first_event_is_healed(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_bytes(torn)
    with EventLog(path) as log:
        log.append(event(1))
    assert [json.loads(line)["id"] for line in path.read_text().split()] == ["e1"]


def test_a_new_event_file_of_a_refused_command_goes_again(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    with pytest.raises(DataError), EventLog(path):
        raise DataError("no")
    assert list(tmp_path.iterdir()) == []

    def stored_and_refused() -> None:
        with EventLog(path) as log:
            log.append(event(1))
            raise DataError("later")

    with pytest.raises(DataError, match="later"):
        stored_and_refused()
    assert path.read_bytes().count(b"\n") == 1  # what was acknowledged stays


def test_an_import_with_a_conflict_adds_nothing(tmp_path: Path) -> None:
    with EventLog(tmp_path / "votes.jsonl") as log:
        log.append(event(2))
        before = (tmp_path / "votes.jsonl").read_bytes()
        with pytest.raises(Conflict, match="e2 is already stored"):
            merge_events([event(1), event(2, ranks={"a": 2, "b": 1})], log)
        assert (tmp_path / "votes.jsonl").read_bytes() == before


@pytest.mark.parametrize("second", ['{"prompt": "a"}\n', '{"broken\n', "42\n"])
def test_import_reads_every_file_before_the_first_is_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], second: str
) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(event(1).model_dump_json() + "\n")
    bad.write_text(second)
    said = alignkit(capsys, "rank", "import", good, bad, "--output", tmp_path / "votes.jsonl")
    assert said.code == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bad.jsonl", "good.jsonl"]


@pytest.mark.parametrize(
    "texts",
    [
        {"prompt": "Hi?", "candidates": TEXTS["candidates"]},
        {"prompt": 3, "candidates": TEXTS["candidates"]},
        {"prompt": TEXTS["prompt"], "candidates": [1, 2]},
        {"prompt": [["Hi?"]], "candidates": {}},
        {"prompt": TEXTS["prompt"], "candidates": TEXTS["candidates"][:1]},
    ],
)
def test_a_vote_whose_texts_are_none_is_named(texts: dict[str, object]) -> None:
    with pytest.raises(DataError, match="vote 'e1' on item '1': "):
        rankings_from_votes([event(1, extra=texts)])


# --- change logs ---------------------------------------------------------------------------------


@pytest.fixture
def cleaned(tmp_path: Path) -> Path:
    """`out.jsonl`, cleaned, its log beside it, and the log of another file."""
    clean(
        write_rows(tmp_path / "d.jsonl", ROWS),
        tmp_path / "out.jsonl",
        CleaningPlan(),
        to="alignkit",
    )
    return tmp_path


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "a"}', "log.jsonl:1: not a line of a change log"),
        ('{"position": -1, "path": []}', "not a line of a change log"),
        ('{"position": 0}', "not a line of a change log"),
        ('{"position": 0, "dropped": {}}', "lacks a record that the log mentions"),
        ('{"position": 0, "dropped": {"kind": ["x"]}}', "lacks a record that the log mentions"),
        ('{"position": 0, "dropped": {"kind": "prompt"}}', "lacks a record that the log mentions"),
        ('{"position": 0, "path": ["x", 0], "before": 1}', "lacks a record that the log mentions"),
        ('{"position": 0, "path": [], "before": 1}', "lacks a record that the log mentions"),
        ('{"position": 9, "path": ["id"], "before": "x"}', "lacks a record that the log mentions"),
    ],
)
def test_a_log_of_something_else_undoes_nothing(cleaned: Path, line: str, says: str) -> None:
    (cleaned / "log.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=".") as found:
        undo(cleaned / "out.jsonl", cleaned / "log.jsonl", cleaned / "back.jsonl")
    assert says in str(found.value)
    assert not (cleaned / "back.jsonl").exists()


def test_undoing_stops_at_a_row_that_cannot_be_read(cleaned: Path) -> None:
    """Left out, it would shift every later row against the log."""
    (cleaned / "out.jsonl").write_text("{broken\n" + (cleaned / "out.jsonl").read_text())
    with pytest.raises(DataError, match="out.jsonl:1"):
        undo(cleaned / "out.jsonl", cleaned / "out.jsonl.changes.jsonl", cleaned / "back.jsonl")
    assert not (cleaned / "back.jsonl").exists()


def test_what_was_dropped_to_the_last_row_comes_back(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "d.jsonl", [{"prompt": "Q?", "chosen": "a", "rejected": "a"}])
    clean(path, tmp_path / "out.jsonl", CleaningPlan(), to="alignkit")
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    log = tmp_path / "out.jsonl.changes.jsonl"
    assert undo(tmp_path / "out.jsonl", log, tmp_path / "back.jsonl") == 1


def test_the_log_of_cleaning_is_not_written_over_its_output(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "d.jsonl", ROWS)
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match="the log and the output are the same file"):
        clean(path, out, CleaningPlan(), log=str(out))
    assert not out.exists()
