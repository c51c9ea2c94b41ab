"""What data check finds across rows, what it prints, and what it costs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.cli import main
from alignkit.data.checks.dataset_checks import wilson
from alignkit.data.checks.file_check import FileReport, check_file, check_files
from alignkit.data.checks.near import NearIndex
from alignkit.data.read import load_preferences
from alignkit.errors import UserError

WORDS = [f"word{i}" for i in range(400)]


def preference(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def checked(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> FileReport:
    return check_file(write(tmp_path / "d.jsonl", rows), **options)[0]


def found(report: FileReport, kind: str) -> list[tuple[int | None, str]]:
    return [(p.line, p.message) for p in report.problems if p.kind == kind]


def clean_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=30))

    return [preference(text() + "?", text(), text()) for _ in range(count)]


def test_clean_rows_have_no_problem(tmp_path: Path) -> None:
    report = checked(tmp_path, clean_rows(100))
    assert (report.ok, report.problems) == (True, [])


def test_a_duplicate_names_the_first_of_its_kind(tmp_path: Path) -> None:
    rows = clean_rows(3)
    report = checked(tmp_path, [*rows, rows[1], rows[1]])
    assert found(report, "duplicate") == [
        (4, "the same row as line 2"), (5, "the same row as line 2")
    ]  # fmt: skip


def test_a_prompt_with_one_word_changed_is_nearly_the_same(tmp_path: Path) -> None:
    rows = clean_rows(50)
    words = rows[7]["prompt"].split()
    words[-1] = "other?"
    report = checked(tmp_path, [*rows, preference(" ".join(words), "yes", "no")])
    assert found(report, "near-duplicate") == [(51, "nearly the same prompt as line 8")]


def test_a_pair_the_other_way_round_contradicts(tmp_path: Path) -> None:
    rows = [preference("P?", "a", "b"), preference("Q?", "a", "b"), preference("P?", "b", "a ")]
    report = checked(tmp_path, rows)
    assert found(report, "contradiction") == [
        (3, "contradicts line 1: the same completions the other way round")
    ]


def test_a_cycle_names_all_its_lines(tmp_path: Path) -> None:
    rows = [preference("P?", "a", "b"), preference("P?", "b", "c"), preference("P?", "x", "y"),
            preference("P?", "c", "a")]  # fmt: skip
    report = checked(tmp_path, rows)
    assert found(report, "contradiction") == [(4, "closes a cycle with lines 1, 2")]


def test_rankings_contradict_within_one_annotator_only(tmp_path: Path) -> None:
    def ranked(ranks: list[int], annotator: str) -> dict[str, Any]:
        return {"prompt": "P?", "completions": ["a", "b"], "ranks": ranks, "annotator": annotator}

    report = checked(tmp_path, [ranked([1, 2], "ann"), ranked([2, 1], "bob")])
    assert found(report, "contradiction") == []
    report = checked(tmp_path, [ranked([1, 2], "ann"), ranked([2, 1], "ann")])
    assert len(found(report, "contradiction")) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_contradictions_are_exactly_the_cycles(
    tmp_path_factory: pytest.TempPathFactory, beats: list[tuple[int, int]]
) -> None:
    edges = [(a, b) for a, b in beats if a != b]
    rows = [preference("P?", f"answer {a}", f"answer {b}") for a, b in edges] or clean_rows(1)
    report = checked(tmp_path_factory.mktemp("c"), rows)
    remaining, peeled = set(edges), True
    while peeled:  # a graph has no cycle if and only if losers that never win can all be peeled off
        winners = {a for a, _ in remaining}
        kept = {(a, b) for a, b in remaining if b in winners}
        peeled, remaining = kept != remaining, kept
    assert bool(found(report, "contradiction")) == bool(remaining)


def test_a_prompt_on_both_sides_is_a_leak(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", clean_rows(30))
    rows = clean_rows(10, seed=1)
    rows[3]["prompt"] = clean_rows(30)[5]["prompt"] + " "
    rows[8]["prompt"] = clean_rows(30)[9]["prompt"] + " please"
    test = write(tmp_path / "test.jsonl", rows)
    report, _ = check_files([train], held_out=[test])
    assert found(report, "leak") == [(6, f"the prompt is also held out: {test}:4")]
    assert found(report, "near-leak") == [(10, f"nearly the same prompt is held out: {test}:9")]


def test_a_preference_for_length_is_measured(tmp_path: Path) -> None:
    rows = [preference(f"Question {i}?", "long answer " * 9, "short") for i in range(90)]
    rows += [preference(f"Other {i}?", "brief", "long answer " * 9) for i in range(10)]
    ((line, message),) = found(checked(tmp_path, rows), "length-bias")
    assert line is None
    low, high = wilson(90, 100)
    assert message.endswith(f"90.0% of 100 [{low:.1%}, {high:.1%}]")
    assert (round(low, 4), round(high, 4)) == (0.8256, 0.9448)


def test_a_preference_for_the_first_place_is_measured(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i}?", "completions": [f"a{i}", f"b{i}"], "ranks": [1, 2]}
            for i in range(60)]  # fmt: skip
    ((_, message),) = found(checked(tmp_path, rows), "position-bias")
    assert message.startswith("the completion listed first is preferred in 100.0% of 60")


def test_labels_out_of_balance(tmp_path: Path) -> None:
    rows = [{"text": f"film {i}", "label": int(i % 10 == 0)} for i in range(100)]
    ((_, message),) = found(checked(tmp_path, rows), "label-balance")
    assert message.startswith("label true in 10.0% of 100")


def test_outliers_in_length_and_script(tmp_path: Path) -> None:
    rows = clean_rows(199)
    rows[20]["chosen"] = "word " * 5000
    rows.append(preference("Кто там?", "Это мы, и это ответ.", "Никого здесь нет."))
    report = checked(tmp_path, rows)
    assert [line for line, _ in found(report, "length-outlier")] == [21]
    assert found(report, "language-outlier") == [
        (200, "written in Cyrillic script, the others in Latin")
    ]


@pytest.mark.parametrize(
    ("text", "kind", "level"),
    [
        ("I am {{name}}.", "placeholder", "error"),
        ("run: ${{ secrets.TOKEN }}", "placeholder", "warning"),
        ("It\u00e2\u20ac\u2122s", "mojibake", "warning"),
        ("caf\u00c3\u00a9", "mojibake", "warning"),
        ("lost \ufffd", "mojibake", "warning"),
        ("bell \x07", "control", "warning"),
        ("mark \ufeff", "bom", "warning"),
    ],
)
def test_texts_with_something_broken(text: str, kind: str, level: str, tmp_path: Path) -> None:
    report = checked(tmp_path, [preference("P?", text, "fine")])
    assert [(p.kind, p.level, p.line) for p in report.problems] == [(kind, level, 1)]


def test_typographic_text_is_not_broken(tmp_path: Path) -> None:
    rows = [
        preference("“Qué?” – ‘naïve’ …", "Ça va, l’été à São Paulo €5", "日本語 \u2028 ok\u0085")
    ]
    assert checked(tmp_path, rows).problems == []


def test_prompt_roles(tmp_path: Path) -> None:
    def turn(role: str) -> dict[str, str]:
        return {"role": role, "content": role}

    rows = [{"prompt": [turn("user"), turn("user")], "chosen": [turn("assistant")],
             "rejected": [{"role": "assistant", "content": "no"}]},
            {"prompt": [turn("user"), turn("assistant")], "chosen": [turn("assistant")],
             "rejected": [{"role": "assistant", "content": "no"}]}]  # fmt: skip
    report = checked(tmp_path, rows)
    assert found(report, "role-order") == [(1, '"prompt[1]": two user turns in a row')]
    assert found(report, "prompt-end") == [
        (2, "the prompt ends with an assistant turn, not a user turn")
    ]


# --- what it prints -----------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["data", "check", *map(str, arguments)])
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out, said.err


def test_the_report_as_json_has_its_documented_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "d.jsonl", [preference("P?", "a", "")])
    code, out, _ = run(capsys, path, "--json")
    assert code == 2
    assert json.loads(out) == {
        "files": [
            {
                "file": str(path),
                "format": "preference",
                "rows": 1,
                "ok": False,
                "problems": [
                    {
                        "line": 1,
                        "field": "rejected",
                        "kind": "empty-side",
                        "message": "'rejected' is empty",
                        "fix": "remove the row, or: alignkit data clean --drop empty-side",
                        "level": "error",
                    }
                ],
            }
        ]
    }


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "good.jsonl", clean_rows(3))
    rows = clean_rows(2)
    doubtful = write(tmp_path / "doubtful.jsonl", [*rows, rows[0]])
    bad = write(tmp_path / "bad.jsonl", [preference("P?", "a", "a")])
    assert run(capsys, good)[0] == 0
    assert run(capsys, good, "--strict")[0] == 0
    assert run(capsys, doubtful)[0] == 0
    assert run(capsys, doubtful, "--strict")[0] == 1
    assert run(capsys, doubtful, "--strict", "--allow", "duplicate")[0] == 0
    assert run(capsys, bad)[0] == 2
    assert run(capsys, bad, "--allow", "identical")[0] == 0


def test_many_problems_of_a_kind_are_counted_not_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "d.jsonl", [preference(f"P{i}?", "a", "") for i in range(30)])
    _, out, _ = run(capsys, path)
    assert out.count("'rejected' is empty") == 5
    assert "and 25 more of kind empty-side" in out
    assert "preference, 30 rows, empty-side 30" in out


# --- cost ---------------------------------------------------------------------------------------


def test_no_torch_on_the_way_to_a_check(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", clean_rows(60))
    code = (
        "import sys\n"
        "from alignkit.cli import main\n"
        "try:\n"
        f"    main(['data', 'check', {str(path)!r}])\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'trl', 'pyarrow', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    line = json.dumps(preference("Which of them is it?", "x " * 4000, "y " * 4000))
    with path.open("w") as file:
        for number in range(5000):
            file.write(line.replace("Which", f"Which {number}") + "\n")
    code = (
        "import sys\n"
        "from alignkit.data.checks.file_check import check_file\n"
        "assert check_file(sys.argv[1])[0].rows == 5000\n"
        # Not ru_maxrss: a child inherits its parent's peak through vfork.
        "status = open('/proc/self/status').read()\n"
        "print(int(status.split('VmHWM:')[1].split()[0]) // 1024)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert path.stat().st_size > 75e6
    assert int(said) < 150


# --- near-duplicates ----------------------------------------------------------------------------


def similarity(left: str, right: str) -> float:
    def triples(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return set(zip(words, words[1:], words[2:], strict=False))

    return len(triples(left) & triples(right)) / len(triples(left) | triples(right))


def test_planted_near_duplicates_are_found_and_nothing_else() -> None:
    rng = random.Random(5)
    index, texts, planted = NearIndex(), [], {}
    for number in range(4000):
        text = " ".join(rng.choices(WORDS, k=60))
        if number % 40 == 39:
            source = rng.randrange(len(texts))
            words = texts[source].split()
            words[rng.randrange(60)] = "changed"
            planted[number] = source
            text = " ".join(words)
        texts.append(text)
        index.add(text)
    pairs = {later: earlier for earlier, later in index.pairs()}
    hits = Counter(pairs.get(later) == earlier for later, earlier in planted.items())
    assert hits[True] >= 95  # all have a similarity of about 0.9, the threshold is 0.8
    assert all(similarity(texts[a], texts[b]) > 0.6 for b, a in pairs.items())


def test_the_order_of_batches_does_not_matter_and_case_neither() -> None:
    index = NearIndex()
    for text in ["Who are you?", "", "who ARE you?", "one two", "One  two", ""]:
        index.add(text)
    assert list(index.pairs()) == [(0, 2), (3, 4)]


def test_all_rows_are_counted_the_malformed_ones_too(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    good = json.dumps(preference("P?", "a", "b"))
    path.write_text(f"{{bad\n{good}\n\n42\n{good[:-1]},}}\n" + '{"prompt": "Q?"}\n')
    report, _ = check_file(path)
    assert report.rows == 5
    assert [p.line for p in report.problems] == [1, 4, 5, 6]


def test_a_file_of_no_known_format_says_so_even_when_bad_rows_may_go(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"foo": 1}])
    with pytest.raises(UserError, match=r'd\.jsonl:1: no "\w+"\. Found: foo'):
        load_preferences(path, on_bad_row="drop")
