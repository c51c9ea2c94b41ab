"""No column of text is lost in silence: it joins the prompt, or it is told by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.data.checks.file_check import check_file
from alignkit.data.edit.convert import canonical, convert
from alignkit.data.read import load_demonstrations, read_records
from alignkit.errors import DataError
from tests.command import alignkit


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prompt_of(record: Any) -> list[tuple[str, str]]:
    messages = record.messages[:-1] if record.kind == "demonstration" else record.prompt
    return [(message.role, message.content) for message in messages]


# --- columns beside the question ----------------------------------------------------------------

FERRY = "The ferry Aurora was built in 1931."
ANSWERS: dict[str, dict[str, Any]] = {
    "completion": {"completion": "A."},
    "response": {"response": "A."},
    "preference": {"chosen": "A.", "rejected": "B."},
    "ranks": {"completions": ["A.", "B."], "ranks": [1, 2]},
    "label": {"completion": "A.", "label": True},
    "prompts only": {},
}


@pytest.mark.parametrize("shape", ANSWERS)
@pytest.mark.parametrize("name", ["context", "input", "passage"])
def test_context_follows_the_question(shape: str, name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "When?", name: FERRY} | ANSWERS[shape])
    (record,) = read_records(path)
    assert prompt_of(record) == [("user", f"When?\n{FERRY}")]


@pytest.mark.parametrize("shape", ANSWERS)
@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
def test_a_system_column_is_a_system_turn(shape: str, name: str, tmp_path: Path) -> None:
    row = {name: "Answer in French.", "prompt": "Name a tree"} | ANSWERS[shape]
    (record,) = read_records(write(tmp_path / "d.jsonl", row))
    assert prompt_of(record) == [("system", "Answer in French."), ("user", "Name a tree")]


@pytest.mark.parametrize("shape", ANSWERS)
@pytest.mark.parametrize(
    "past",
    [
        [["Hi", "Hello"], ["So?", "Yes"]],
        ["Hi", "Hello", "So?", "Yes"],
        '[["Hi", "Hello"], ["So?", "Yes"]]',
        "[['Hi', 'Hello'], ('So?', 'Yes')]",
        [{"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Hello"),
                                               ("user", "So?"), ("assistant", "Yes"))],
        [{"from": r, "value": c} for r, c in (("human", "Hi"), ("gpt", "Hello"),
                                             ("human", "So?"), ("gpt", "Yes"))],
        [{"user": "Hi", "assistant": "Hello"}, {"user": "So?", "assistant": "Yes"}],
        "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: So?\n\nAssistant: Yes",
    ],
    ids=["pairs", "texts", "json", "python", "messages", "sharegpt", "objects", "transcript"],
)  # fmt: skip
def test_history_becomes_earlier_turns(shape: str, past: Any, tmp_path: Path) -> None:
    row = {"history": past, "prompt": "And?", "system": "S"} | ANSWERS[shape]
    (record,) = read_records(write(tmp_path / "d.jsonl", row))
    assert prompt_of(record) == [
        ("system", "S"), ("user", "Hi"), ("assistant", "Hello"), ("user", "So?"),
        ("assistant", "Yes"), ("user", "And?"),
    ]  # fmt: skip
    if record.kind == "demonstration":
        assert [m.train for m in record.messages if m.role == "assistant"] == [False, False, None]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Name a fruit", "context": "", "response": "Plum."}, "Name a fruit"),
        ({"question": "When?", "context": None, "answer": "1931."}, "When?"),
        ({"question": "When?", "contexts": ["One.", "Two."], "answer": "1"}, "When?\nOne.\n\nTwo."),
        ({"instruction": "Add", "input": "2", "context": "In base 3.", "output": "2"},
         "Add\n2\nIn base 3."),
        # A templated prompt holds its input already: it is not said twice.
        ({"prompt": f"Read this: {FERRY} When?", "context": FERRY, "response": "1931."},
         f"Read this: {FERRY} When?"),
        ({"prompt": "### Input:\noak\n### Reply:", "input": "oak", "completion": "x"},
         "### Input:\noak\n### Reply:"),
        # A word that happens to occur in the question is still its input.
        ({"instruction": "Is an oak a tree?", "input": "oak", "output": "Yes"},
         "Is an oak a tree?\noak"),
    ],
)  # fmt: skip
def test_what_a_question_is_made_of(row: dict[str, Any], expected: str, tmp_path: Path) -> None:
    (record,) = load_demonstrations(write(tmp_path / "d.jsonl", row)).records
    assert record.messages[0].content == expected


def test_context_belongs_to_the_last_question_of_a_chat(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
             {"role": "user", "content": "When?"}]  # fmt: skip
    answer = [{"role": "assistant", "content": "1931."}, {"role": "user", "content": "Sure?"},
              {"role": "assistant", "content": "Yes."}]  # fmt: skip
    path = write(tmp_path / "d.jsonl", {"prompt": asked, "completion": answer, "context": FERRY})
    (record,) = load_demonstrations(path).records
    assert [m.content for m in record.messages] == [
        "Hi", "Hello", f"When?\n{FERRY}", "1931.", "Sure?", "Yes."
    ]  # fmt: skip


def test_context_of_whole_chats_and_of_sides_without_a_prompt(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "1931."}]
    other = [chat[0], {"role": "assistant", "content": "1930."}]
    rows = write(tmp_path / "a.jsonl", {"chosen": chat, "rejected": other, "context": FERRY})
    (record,) = read_records(rows)
    assert prompt_of(record) == [("user", f"When?\n{FERRY}")]
    bare = write(tmp_path / "b.jsonl", {"context": FERRY, "chosen": "Old.", "rejected": "New."})
    (record,) = read_records(bare)
    assert prompt_of(record) == [("user", FERRY)]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
         "system_prompt": "S"},
        {"messages": [{"role": "user", "content": "Hi"},
                      {"role": "assistant", "content": "Hello"}], "system": "S"},
    ],
)  # fmt: skip
def test_a_system_column_joins_a_whole_chat(row: dict[str, Any], tmp_path: Path) -> None:
    (record,) = load_demonstrations(write(tmp_path / "d.jsonl", row)).records
    assert [(m.role, m.content, m.train) for m in record.messages] == [
        ("system", "S", None), ("user", "Hi", None), ("assistant", "Hello", None)
    ]  # fmt: skip


def test_texts_that_were_found_join_and_objects_stay_columns(tmp_path: Path) -> None:
    row = {"query": "When?", "documents": ["Built in 1931.", "In Turku."], "answer": "1931."}
    path = write(tmp_path / "d.jsonl", row, row | {"documents": [{"text": "Built in 1931."}]})
    first, second = load_demonstrations(path).records
    assert first.messages[0].content == "When?\nBuilt in 1931.\n\nIn Turku."
    assert second.messages[0].content == "When?"


def test_two_system_prompts_are_a_question_for_the_user(tmp_path: Path) -> None:
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    path = write(tmp_path / "d.jsonl", {"system": "Be curt.", "prompt": asked, "completion": "x"})
    with pytest.raises(DataError, match="a different system prompt") as error:
        list(read_records(path))
    assert f"{path}:1: " in str(error.value)
    same = write(tmp_path / "e.jsonl", {"system": "Be kind.", "prompt": asked, "completion": "x"})
    (record,) = read_records(same)
    assert prompt_of(record) == [("system", "Be kind."), ("user", "Hi")]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "completion": "b", "system": 3}, '"system" is a number, expected text'),
        ({"prompt": "a", "completion": "b", "input": 5}, '"input" is a number, expected text'),
        ({"prompt": "a", "completion": "b", "history": 5}, "expected an array of [prompt"),
        ({"prompt": "a", "completion": "b", "history": ["x"]}, "who speaks first"),
        ({"prompt": "a", "completion": "b", "history": [["x"]]}, '"history[0]" is an array'),
    ],
)
def test_what_cannot_join_is_told_by_line(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", row)
    with pytest.raises(DataError) as error:
        list(read_records(path))
    assert words in str(error.value)
    assert f"{path}:1: " in str(error.value)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "When?", "context": FERRY, "response": "1931.", "category": "closed_qa"},
        {"id": "flan.1", "system_prompt": "S", "question": "Q", "response": "A"},
        {"prompt": "P", "completion": "C", "system": "S", "history": [["a", "b"]]},
        {"prompt": "P", "chosen": "C", "rejected": "R", "context": "x", "system": ""},
        {"question": "Q", "answer": "A", "context": {"title": ["t"], "sentences": [["Some s."]]}},
    ],
)
def test_there_and_back_is_the_same_row(row: dict[str, Any], tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", row)
    name = check_file(source)[0].format
    assert name is not None
    convert([source], tmp_path / "ours.jsonl")
    convert([tmp_path / "ours.jsonl"], tmp_path / "back.jsonl", to=name)
    assert canonical(json.loads((tmp_path / "back.jsonl").read_text())) == canonical(row)


def test_a_column_of_a_chat_format_does_not_join_the_question_of_another(tmp_path: Path) -> None:
    """Nothing is added to a prompt by a conversion: what would be is told as lost."""
    row = {"messages": [{"role": "user", "content": "Hi"},
                        {"role": "assistant", "content": "Hello"}], "context": FERRY}  # fmt: skip
    source = write(tmp_path / "in.jsonl", row)
    with pytest.raises(DataError, match="cannot hold: extra in 1 rows"):
        convert([source], tmp_path / "out.jsonl", to="prompt-completion")
    convert([source], tmp_path / "out.jsonl", to="prompt-completion", lossy=True)
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {
        "prompt": "Hi", "completion": "Hello"
    }  # fmt: skip


# --- columns that nothing reads -----------------------------------------------------------------


def told(path: Path) -> dict[str | None, str]:
    """Column -> the message about it."""
    report, _ = check_file(path)
    found = [p for p in report.problems if p.kind == "unread-column"]
    assert all(p.line is None and p.level == "warning" for p in found)
    return {p.field: p.message for p in found}


def test_a_column_of_text_is_told_once_with_its_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i}", "response": f"A{i}", "notes": "Check this one." if i % 3 else ""}
            for i in range(30)]  # fmt: skip
    path = write(tmp_path / "d.jsonl", *rows)
    assert told(path) == {
        "notes": 'column "notes" holds text in 20 rows and is not read as prompt-response'
    }


BASE = {"prompt": "What is two and two?", "response": "It is four."}


@pytest.mark.parametrize(
    "value",
    [
        {"choices": ["five", "four"]}, {"answers": {"text": ["4"], "answer_start": [3]}},
        {"rationale": "Four"}, {"cot": "2+2=4"}, {"reference_answer": "4"}, {"answer": "4"},
        {"hint_2": "Count."}, {"whatever": "Two and two make four."}, {"whatever": "Yes."},
        {"choices": ["It is five.", "It is six, I believe."]},
        {"extra_info": {"why": "Because it has always been so."}},
        {"whatever": "二加二等于四没错"}, {"steps": "one\ntwo"},
        {"category": FERRY + " So it says."},
    ],
)  # fmt: skip
def test_text_that_is_not_used_is_told(value: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", BASE | value)
    assert list(told(path)) == list(value)


@pytest.mark.parametrize(
    "value",
    [
        {"id": "a-1"}, {"uuid": "9f0c"}, {"category": "closed qa"}, {"source": "flan v2 (cot)"},
        {"language": "English"}, {"url": "https://example.org/a b"}, {"model": "gpt-4 turbo"},
        {"split": "train"}, {"created_at": "2024-01-01 10:00:00"}, {"tags": ["math", "easy"]},
        {"metadata": {"source": "some data set of 2024", "n": 3}}, {"length": 12},
        {"is_synthetic": True}, {"images": []}, {"dataset_name": "open hermes 2.5"},
        {"sha256": "ab"}, {"whatever": "token"}, {"notes": ""}, {"notes": None},
        # What the record says already is not lost.
        {"question": "What is two and two?"}, {"text": "What is two and two?\nIt is four."},
    ],
)  # fmt: skip
def test_metadata_and_repetitions_are_quiet(value: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", BASE | value)
    assert told(path) == {}


def test_a_few_short_values_over_many_rows_are_categories(tmp_path: Path) -> None:
    kinds = ["general question answering", "creative story writing"]
    rows = [{"prompt": f"Q{i}?", "response": f"A{i}.", "skill": kinds[i % 2]} for i in range(20)]
    assert told(write(tmp_path / "d.jsonl", *rows)) == {}
    different = [row | {"skill": f"a skill called {i}"} for i, row in enumerate(rows)]
    assert list(told(write(tmp_path / "e.jsonl", *different))) == ["skill"]


def test_the_commands_that_read_the_file_tell_it_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "d.jsonl", BASE | {"notes": "Check this one."})
    said = f'warning: {path}: column "notes" holds text in 1 row and is not read'
    for command in (
        ["check", path],
        ["convert", path, "-o", tmp_path / "o.jsonl"],
        ["clean", path, "-o", tmp_path / "c.jsonl"],
        ["split", path, "-o", tmp_path / "s{}.jsonl"],
    ):
        result = alignkit(capsys, "data", *command)
        assert result.code == 0, result.err
        assert (result.out + result.err).count(said) == 1, command
    assert [p.field for p in load_demonstrations(path).problems] == ["notes"]
    allow = ("--allow", "unread-column")
    assert alignkit(capsys, "data", "check", "--strict", *allow, path).code == 0
    assert alignkit(capsys, "data", "check", "--strict", path).code == 1


def test_every_unread_column_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = {f"remark_{'abcdefgh'[i]}": f"This is remark number {i}." for i in range(8)}
    path = write(tmp_path / "d.jsonl", BASE | many)
    output = alignkit(capsys, "data", "check", path).out
    assert all(f'"{name}"' in output for name in many)
    assert "more of kind" not in output
