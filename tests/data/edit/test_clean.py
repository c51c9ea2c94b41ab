"""Repairs: each does what its name says, is counted, logged and can be undone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.data.edit.clean import (
    DEFAULT,
    DEFAULT_DROPS,
    TEXT_REPAIRS,
    CleaningPlan,
    Pattern,
    clean,
    filler,
    undo,
)
from alignkit.data.edit.convert import convert
from alignkit.data.edit.pii import FINDERS, Masker, iban, luhn
from alignkit.data.read import read_records
from alignkit.data.records import Preference
from alignkit.errors import AlignkitError, DataError
from alignkit.files.problems import RowError

E_ACUTE = "e\u0301"


def preference(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("unicode", f"caf{E_ACUTE}", "caf\u00e9"),
        ("control", "a\x07b\ufeff\r\nc\td\x00", "ab\nc\td"),
        ("whitespace", "  a  \n\n\n\n\nb \t\n", "a\n\n\nb"),
        ("mojibake", "It\u00e2\u20ac\u2122s a caf\u00c3\u00a9", "It\u2019s a caf\u00e9"),
        ("mojibake", "S\u00e3o Paulo, \u00c9t\u00e9", "S\u00e3o Paulo, \u00c9t\u00e9"),
    ],
)
def test_a_text_repair(name: str, before: str, after: str) -> None:
    repair, _ = TEXT_REPAIRS[name]
    assert repair(before) == after
    assert repair(after) == after


@pytest.mark.parametrize("name", TEXT_REPAIRS)
@given(text=st.text(max_size=60))
def test_a_text_repair_done_twice_is_done_once(name: str, text: str) -> None:
    repair, _ = TEXT_REPAIRS[name]
    if name == "mojibake":  # a text may be misread several times over
        repair(text)
        return
    assert repair(repair(text)) == repair(text)


def test_the_default_set_repairs_counts_and_logs(tmp_path: Path) -> None:
    rows = [preference("P?", f"caf{E_ACUTE}", "no\x07"), preference("Q?", "a", ""),
            preference("R?", "a", "a "), preference("S?", "a", "b"),
            preference("S?", "a", "b")]  # fmt: skip
    path, out = write(tmp_path / "d.jsonl", rows), tmp_path / "out.jsonl"
    done = clean(path, out, CleaningPlan())
    assert (done.read, done.written) == (5, 2)
    assert done.changed == {"unicode": 1, "control": 1}
    assert done.dropped == {"empty-side": 1, "identical": 1, "duplicates": 1}
    assert rows_in(out) == [preference("P?", "caf\u00e9", "no"), preference("S?", "a", "b")]
    assert path.read_bytes() == write(tmp_path / "again.jsonl", rows).read_bytes()
    log = rows_in(tmp_path / "out.jsonl.changes.jsonl")
    assert [(entry["line"], entry["repair"]) for entry in log] == [
        (1, "unicode"), (1, "control"), (2, "empty-side"), (3, "identical"), (5, "duplicates")
    ]  # fmt: skip
    assert (log[0]["before"], log[0]["after"]) == (f"caf{E_ACUTE}", "caf\u00e9")


def test_cleaning_can_be_undone(tmp_path: Path) -> None:
    rows = [preference("Mail a@b.org", f"caf{E_ACUTE}", "b", note={"x.y": ["c@d.org", 1]}),
            preference("Q?", "", "b"), preference("R?", "x\x07", "y"),
            preference("R?", "x", "y"), preference("T?", "1", "2")]  # fmt: skip
    path, out = write(tmp_path / "d.jsonl", rows), tmp_path / "out.jsonl"
    convert([path], tmp_path / "ours.jsonl")
    done = clean(path, out, CleaningPlan(repairs=[*DEFAULT, "pii"]), to="alignkit")
    assert (done.written, done.changed["pii"]) == (3, 2)
    undo(out, f"{out}.changes.jsonl", tmp_path / "back.jsonl")
    assert (tmp_path / "back.jsonl").read_bytes() == (tmp_path / "ours.jsonl").read_bytes()


def test_malformed_rows_stop_cleaning_unless_they_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(preference("P?", "a", "b")) + "\n{broken\n")
    with pytest.raises(DataError, match=r"d\.jsonl:2"):
        clean(path, tmp_path / "out.jsonl", CleaningPlan())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.jsonl"]
    done = clean(path, tmp_path / "out.jsonl", CleaningPlan(drops=[*DEFAULT_DROPS, "malformed"]))
    assert done.dropped == {"malformed": 1}


def test_the_input_is_never_the_output(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [preference("P?", "a", "b")])
    with pytest.raises(DataError, match="the output is an input"):
        clean(path, path, CleaningPlan())
    with pytest.raises(DataError, match="the output is an input"):
        convert([path], tmp_path / "." / "d.jsonl")


def test_held_out_and_nearly_equal_prompts_are_dropped(tmp_path: Path) -> None:
    words = " ".join(f"word{i}" for i in range(40))
    rows = [preference(f"{words} one", "a", "b"), preference(f"{words} two", "a", "b"),
            preference("kept for testing", "a", "b")]  # fmt: skip
    path = write(tmp_path / "d.jsonl", rows)
    test = write(tmp_path / "t.jsonl", [{"prompt": " kept for testing"}])
    plan = CleaningPlan(repairs=["near-duplicates"], not_in=[str(test)])
    done = clean(path, tmp_path / "out.jsonl", plan)
    assert done.dropped == {"near-duplicates": 1, "held out": 1}
    assert [row["prompt"] for row in rows_in(tmp_path / "out.jsonl")] == [f"{words} one"]


def test_placeholders_are_filled_by_name() -> None:
    fill = filler({"name": "Ada", "author": "us"})
    assert fill("{{name}} by {{ author }}, not {{other}}") == "Ada by us, not {{other}}"


def test_unknown_repairs_get_the_nearest_name(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [preference("P?", "a", "b")])
    with pytest.raises(AlignkitError, match="did you mean 'mojibake'"):
        clean(path, tmp_path / "out.jsonl", CleaningPlan(repairs=["mojibak"]))


# --- personal data ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to ada.l+x@mail.example.org.", "Write to [EMAIL_1]."),
        ("a@b.org, c@d.org and A@b.org", "[EMAIL_1], [EMAIL_2] and [EMAIL_1]"),
        ("call +44 20 7946 0958 now", "call [PHONE_1] now"),
        ("call (555) 123-4567 or 555-123-4567", "call [PHONE_1] or [PHONE_1]"),
        ("at 192.168.0.1, not 1.2.3 or 999.1.1.1", "at [IP_1], not 1.2.3 or 999.1.1.1"),
        ("at 2001:db8::1 and 12:30", "at [IP_1] and 12:30"),
        ("card 4111 1111 1111 1111", "card [CARD_1]"),
        ("card 4111 1111 1111 1112", "card 4111 1111 1111 1112"),
        ("DE89 3704 0044 0532 0130 00 it is", "[IBAN_1] it is"),
        ("GB83 WEST 1234 5698 7654 32", "GB83 WEST 1234 5698 7654 32"),
        ("in 1999 and 2024, 3.14159, version 10.2", "in 1999 and 2024, 3.14159, version 10.2"),
    ],
)
def test_personal_data_are_masked(text: str, masked: str) -> None:
    assert Masker().mask(text) == masked


def test_masks_agree_within_a_row_and_start_anew_in_the_next(tmp_path: Path) -> None:
    rows = [preference("I am a@b.org and c@d.org", "Hello c@d.org", "Hi a@b.org", note="a@b.org"),
            preference("I am c@d.org", "Hello c@d.org", "no")]  # fmt: skip
    path, out = write(tmp_path / "d.jsonl", rows), tmp_path / "out.jsonl"
    clean(path, out, CleaningPlan(repairs=["pii"]))
    first, second = rows_in(out)
    assert "a@b.org" not in out.read_text()
    assert first["prompt"].removeprefix("I am ").split(" and ") == [
        first["rejected"].removeprefix("Hi "), first["chosen"].removeprefix("Hello ")
    ]  # fmt: skip
    assert first["note"] == first["rejected"].removeprefix("Hi ")
    assert second["chosen"] == "Hello [EMAIL_1]"


def test_what_was_kept_of_the_row_as_read_does_not_leak(tmp_path: Path) -> None:
    row = {"instruction": "Reply", "input": "from a@b.org", "output": "Dear a@b.org"}
    path, out = write(tmp_path / "d.jsonl", [row]), tmp_path / "out.jsonl"
    clean(path, out, CleaningPlan(repairs=["pii"]), to="alignkit")
    assert "a@b.org" not in out.read_text()


def test_checksums() -> None:
    assert luhn("79927398713")
    assert not luhn("79927398710")
    assert iban("GB82WEST12345698765432")
    assert not iban("GB82WEST12345698765431")


@pytest.mark.parametrize("kind", FINDERS)
@pytest.mark.parametrize(
    "unit", ["a", "1", "a@", "1.", "1 ", "+1 ", "A1", "DE89 ", "a.b@c.", "::", "(1", "1-"]
)
def test_a_hostile_megabyte_takes_under_a_second(kind: str, unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    started = time.process_time()
    list(FINDERS[kind](text))
    assert time.process_time() - started < 1


@pytest.mark.parametrize("name", TEXT_REPAIRS)
@pytest.mark.parametrize("unit", ["\u00e2\u20ac", "\u00c3\u00a9", " \n", " ", "\x00", "e\u0301"])
def test_a_hostile_megabyte_is_repaired_in_under_a_second(name: str, unit: str) -> None:
    started = time.process_time()
    TEXT_REPAIRS[name][0](unit * (1_000_000 // len(unit)))
    assert time.process_time() - started < 1


def test_user_patterns_have_a_time_limit() -> None:
    assert Pattern.parse("colou?r=>hue")("color, colour") == "hue, hue"
    evil = Pattern.parse("^(a|a)*(b|b)*(a|aa)+$=>x")
    started = time.monotonic()
    with pytest.raises(DataError, match="takes over"):
        evil("a" * 5000 + "!")
    assert time.monotonic() - started < 5
    with pytest.raises(AlignkitError, match="REGEX=>REPLACEMENT"):
        Pattern.parse("x")
    with pytest.raises(AlignkitError, match="--pattern"):
        Pattern.parse("(=>x")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]), max_size=12)] * 3),
                min_size=1, max_size=5))  # fmt: skip
def test_any_rows_survive_cleaning_and_undoing(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("clean")
    path = write(folder / "d.jsonl", [preference(*row) for row in texts])
    try:
        convert([path], folder / "ours.jsonl")
    except RowError:
        return
    plan = CleaningPlan(repairs=[*TEXT_REPAIRS, "duplicates", "pii"])
    clean(path, folder / "out.jsonl", plan, to="alignkit")
    undo(folder / "out.jsonl", folder / "out.jsonl.changes.jsonl", folder / "back.jsonl")
    assert (folder / "back.jsonl").read_bytes() == (folder / "ours.jsonl").read_bytes()
    kept = list(read_records(folder / "out.jsonl")) if (folder / "out.jsonl").stat().st_size else []
    assert all(isinstance(record, Preference) for record in kept)
