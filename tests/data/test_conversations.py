"""Conversations with tools, thoughts and weights: read by every format, checked, written back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.data.chat import Encoder
from alignkit.data.edit.convert import canonical, convert, read_to_convert
from alignkit.data.edit.split import prompt_key
from alignkit.data.formats import FORMATS
from alignkit.data.pairs import expand, ranking_of
from alignkit.data.read import load_prompts, read_records
from alignkit.data.records import Conversation, Demonstration, Message, Preference, Ranking
from tests.command import Said, alignkit
from tests.data.test_formats import ROWS, rows_in, said, turn, write_lines

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "w",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"name": "get_weather", "arguments": {"city": "Oslo"}}
CALLED = {"type": "function", "function": CALL}
AS_TEXT = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
ASKED = turn("user", "Weather in Oslo?")


def the_record(rows: list[dict[str, Any]], folder: Path, **options: Any) -> Any:
    return next(iter(read_to_convert(write_lines(folder / "in.jsonl", rows), print, **options)))


def there_and_back(rows: list[dict[str, Any]], form: str, folder: Path) -> None:
    source = write_lines(folder / "in.jsonl", rows)
    convert([source], folder / "ours.jsonl")
    convert([folder / "ours.jsonl"], folder / "back.jsonl", to=form)
    assert rows_in(folder / "back.jsonl") == rows


def problems(capsys: pytest.CaptureFixture[str], path: Path, *options: Any) -> list[dict[str, Any]]:
    done = alignkit(capsys, "data", "check", path, "--json", *options)
    return [
        problem
        for report in json.loads(done.out)["files"]
        for problem in report["problems"]
        if problem["level"] != "note"
    ]


def found(capsys: pytest.CaptureFixture[str], path: Path) -> list[tuple[str, str, int]]:
    return [(p["kind"], p["level"], p["line"]) for p in problems(capsys, path)]


# --- beside the messages ------------------------------------------------------------------------

HOLDING = [
    name
    for name, form in FORMATS.items()
    if name not in ("alignkit", "xlam", "openai-preference")  # which say where the tools are
    and form.gather is None  # whose rows say something together only
]


@pytest.mark.parametrize("name", HOLDING)
def test_every_format_reads_and_writes_what_templates_are_given(name: str, tmp_path: Path) -> None:
    row = {
        **{key: value for key, value in ROWS[name][0].items() if key != "tools"},
        "tools": json.dumps([WEATHER]),
        "documents": [{"title": "T", "text": "x"}],
        "chat_template_kwargs": {"x": 1},
        "enable_thinking": False,
    }
    record = the_record([row], tmp_path, format=name)
    assert isinstance(record, Conversation)
    assert record.tools == [WEATHER]
    assert record.documents == [{"title": "T", "text": "x"}]
    assert record.chat_template_kwargs == {"x": 1, "enable_thinking": False}
    assert not {"tools", "documents", "enable_thinking"} & record.extra.keys()
    there_and_back([row], name, tmp_path)


@pytest.mark.parametrize(
    ("columns", "tools"),
    [
        ({"tools": [WEATHER]}, [WEATHER]),
        ({"tools": json.dumps([WEATHER])}, [WEATHER]),
        ({"tools": str([WEATHER])}, [WEATHER]),  # as Python prints it
        ({"tools": [json.dumps(WEATHER)]}, [WEATHER]),
        ({"tools": [WEATHER["function"]]}, [WEATHER]),
        ({"functions": [WEATHER["function"]]}, [WEATHER]),
        ({"functions": json.dumps([WEATHER["function"]])}, [WEATHER]),
        ({"tools": [{"type": "function", **WEATHER["function"]}]}, [WEATHER]),  # type: ignore[dict-item]
        ({"tools": "[]"}, None),
        ({"tools": None}, None),
    ],
)
def test_tools_are_read_however_they_are_written(
    columns: dict[str, Any], tools: list[Any] | None, tmp_path: Path
) -> None:
    row = {"messages": [ASKED, turn("assistant", "3 degrees")], **columns}
    assert the_record([row], tmp_path).tools == tools
    there_and_back([row], "messages", tmp_path)


def test_tools_that_cannot_be_read_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": "Hit it", "completion": "Done", "tools": ["hammer"]},
        {"prompt": "Read it", "completion": "It", "chat_template_kwargs": {"messages": []}},
    ]
    path = write_lines(tmp_path / "d.jsonl", rows)
    assert ("template-key", "warning", 1) in found(capsys, path)
    assert ("template-key", "error", 2) in found(capsys, path)


@pytest.mark.parametrize(
    ("columns", "variables"),
    [
        ({"enable_thinking": True}, {"enable_thinking": True}),
        ({"enable_thinking": "false"}, {"enable_thinking": False}),
        ({"thinking": True, "reasoning_effort": "high"},
         {"thinking": True, "reasoning_effort": "high"}),
        ({"thinking_budget": 512}, {"thinking_budget": 512}),
        ({"chat_template_kwargs": '{"enable_thinking": false}'}, {"enable_thinking": False}),
        ({"chat_template_kwargs": {"enable_thinking": True}, "enable_thinking": False},
         {"enable_thinking": True}),
    ],
)  # fmt: skip
def test_template_variables(
    columns: dict[str, Any], variables: dict[str, Any], tmp_path: Path
) -> None:
    row = {"prompt": "2+2?", "completion": "4", **columns}
    assert the_record([row], tmp_path).chat_template_kwargs == variables
    there_and_back([row], "prompt-completion", tmp_path)


@pytest.mark.parametrize("column", ["reasoning_content", "thinking"])
def test_a_column_of_thoughts_belongs_to_the_answer(column: str, tmp_path: Path) -> None:
    row = {"prompt": "2+2?", "completion": "4", column: "two and two"}
    record = the_record([row], tmp_path)
    assert getattr(record.messages[-1], column) == "two and two"
    assert getattr(record.messages[0], column) is None
    there_and_back([row], "prompt-completion", tmp_path)


def test_tools_survive_a_table(tmp_path: Path) -> None:
    row = {"messages": [ASKED, turn("assistant", "", tool_calls=[CALLED])], "tools": [WEATHER],
           "chat_template_kwargs": {"enable_thinking": True}}  # fmt: skip
    convert([write_lines(tmp_path / "in.jsonl", [row])], tmp_path / "t.csv", to="messages")
    (record,) = read_records(tmp_path / "t.csv")
    assert isinstance(record, Demonstration)
    assert (record.tools, record.chat_template_kwargs) == ([WEATHER], {"enable_thinking": True})
    assert record.messages[-1].tool_calls == [CALLED]


def test_a_format_without_a_place_for_tools_loses_none(tmp_path: Path) -> None:
    """Ours to every format of the kind and back: what the template is given is the same."""
    record = Demonstration(
        messages=[Message(role="user", content="Hi"), Message(role="assistant", content="Ho")],
        tools=[WEATHER],
        documents=[{"text": "x"}],
        chat_template_kwargs={"a": [1]},
    )
    source = tmp_path / "in.jsonl"
    source.write_text(record.model_dump_json())
    for form in FORMATS.values():
        if form.kind == "demonstration" and form.name not in ("text", "xlam"):
            convert([source], tmp_path / "there.jsonl", to=form.name)
            convert([tmp_path / "there.jsonl"], tmp_path / "back.jsonl", format=form.name)
            back = Demonstration.model_validate(rows_in(tmp_path / "back.jsonl")[0])
            assert back.tools == record.tools, form.name
            assert back.documents == record.documents, form.name
            assert back.chat_template_kwargs == record.chat_template_kwargs, form.name


def test_tools_travel_from_votes_to_preferences_and_prompts(tmp_path: Path) -> None:
    row = {"prompt": "P", "completions": ["a", "b"], "ranks": [1, 2], "tools": [WEATHER]}
    ranking = the_record([row], tmp_path)
    assert isinstance(ranking, Ranking)
    (preference,) = expand(ranking)
    assert preference.tools == ranking_of(preference).tools == [WEATHER]
    (prompt,) = load_prompts(tmp_path / "in.jsonl").records
    assert prompt.tools == [WEATHER]


# --- in the messages ----------------------------------------------------------------------------

CALLING = [
    [ASKED, turn("assistant", None, tool_calls=[{"id": "c1", "type": "function",
                                                 "function": AS_TEXT}]),
     turn("tool", '{"t": 3}', tool_call_id="c1"), turn("assistant", "It is 3 degrees.")],
    [ASKED, turn("assistant", None, function_call=AS_TEXT),
     turn("function", '{"t": 3}', name="get_weather"), turn("assistant", "It is 3 degrees.")],
    [ASKED, turn("assistant", "", tool_calls=[CALL]), turn("tool", {"t": 3}),
     turn("assistant", "It is 3 degrees.")],
    [ASKED, turn("assistant", "", tool_calls=json.dumps([CALLED])), turn("tool", '{"t": 3}'),
     turn("assistant", "It is 3 degrees.")],
    [ASKED, turn("tool_call", json.dumps(CALL)), turn("tool_response", '{"t": 3}'),
     turn("assistant", "It is 3 degrees.")],
]  # fmt: skip


@pytest.mark.parametrize("messages", CALLING)
def test_calls_are_read_however_they_are_written(
    messages: list[dict[str, Any]], tmp_path: Path
) -> None:
    record = the_record([{"messages": messages}], tmp_path)
    asked, call, answer, last = record.messages
    assert [m.role for m in record.messages] == ["user", "assistant", "tool", "assistant"]
    assert call.content == ""
    assert call.tool_calls[0]["function"] == CALL  # an object, which a template writes as JSON
    assert call.tool_calls[0]["type"] == "function"
    assert answer.content == '{"t": 3}'
    assert (asked.content, last.content) == ("Weather in Oslo?", "It is 3 degrees.")
    there_and_back([{"messages": messages}], "messages", tmp_path)


def test_calls_of_sharegpt(tmp_path: Path) -> None:
    row = {
        "conversations": [said("human", "Weather in Oslo?"),
                          said("function_call", json.dumps(CALL)),
                          said("observation", '{"t": 3}'), said("gpt", "It is 3 degrees.")],
        "system": "S", "tools": json.dumps([WEATHER["function"]]),
    }  # fmt: skip
    record = the_record([row], tmp_path)
    assert record.messages[2].tool_calls == [CALLED]
    assert record.tools == [WEATHER]
    there_and_back([row], "sharegpt", tmp_path)
    convert([tmp_path / "in.jsonl"], tmp_path / "m.jsonl", to="messages")
    convert([tmp_path / "m.jsonl"], tmp_path / "s.jsonl", to="sharegpt")
    assert rows_in(tmp_path / "s.jsonl")[0]["conversations"][2] == said(
        "function_call", json.dumps(CALL)
    )


def test_openai_gets_its_arguments_as_text(tmp_path: Path) -> None:
    rows = [{"messages": [ASKED, turn("assistant", "", tool_calls=[CALLED], train=True)]}]
    convert([write_lines(tmp_path / "in.jsonl", rows)], tmp_path / "o.jsonl", to="openai-chat")
    last = rows_in(tmp_path / "o.jsonl")[0]["messages"][-1]
    assert last["tool_calls"][0]["function"] == AS_TEXT
    assert (last["weight"], "train" in last) == (1, False)


def test_openai_preferences_keep_their_tools_in_the_input(tmp_path: Path) -> None:
    row = {
        "input": {"messages": [ASKED], "tools": [WEATHER], "parallel_tool_calls": True},
        "preferred_output": [turn("assistant", None, tool_calls=[
            {"id": "1", "type": "function", "function": AS_TEXT}])],
        "non_preferred_output": [turn("assistant", "I cannot know.")],
    }  # fmt: skip
    record = the_record([row], tmp_path)
    assert record.tools == [WEATHER]
    assert record.chosen[0].tool_calls[0]["function"] == CALL
    there_and_back([row], "openai-preference", tmp_path)
    convert([tmp_path / "in.jsonl"], tmp_path / "p.jsonl", to="preference")
    convert([tmp_path / "p.jsonl"], tmp_path / "o.jsonl", to="openai-preference")
    (back,) = rows_in(tmp_path / "o.jsonl")
    assert back["input"]["tools"] == [WEATHER]
    assert "tools" not in back


@pytest.mark.parametrize(
    ("key", "field"),
    [("reasoning_content", "reasoning_content"), ("thinking", "thinking"),
     ("reasoning", "reasoning_content")],
)  # fmt: skip
def test_thoughts_of_messages(key: str, field: str, tmp_path: Path) -> None:
    row = {"messages": [turn("user", "2+2?"), turn("assistant", "4", **{key: "two and two"})]}
    assert getattr(the_record([row], tmp_path).messages[-1], field) == "two and two"
    there_and_back([row], "messages", tmp_path)
    shared = {"conversations": [said("human", "2+2?"), {**said("gpt", "4"), key: "two and two"}]}
    assert getattr(the_record([shared], tmp_path).messages[-1], field) == "two and two"
    there_and_back([shared], "sharegpt", tmp_path)


@pytest.mark.parametrize("name", ["messages", "sharegpt", "openai-chat", "llamafactory-v1"])
def test_chats_with_tools_thoughts_and_weights_change_format_without_loss(
    name: str, tmp_path: Path
) -> None:
    record = Demonstration(
        messages=[
            Message(role="system", content="S"),
            Message(role="user", content="Weather?"),
            Message(role="assistant", reasoning_content="ask", tool_calls=[{"id": "1", **CALLED}]),
            Message(role="tool", content="3", tool_call_id="1", name="get_weather"),
            Message(role="assistant", content="Three", thinking="easy", train=False),
            Message(role="user", content="Sure?"),
            Message(role="assistant", content="Yes", train=True),
        ],
        tools=[WEATHER],
    )
    (tmp_path / "in.jsonl").write_text(record.model_dump_json())
    convert([tmp_path / "in.jsonl"], tmp_path / "there.jsonl", to=name)
    convert([tmp_path / "there.jsonl"], tmp_path / "back.jsonl", format=name)
    back = Demonstration.model_validate(rows_in(tmp_path / "back.jsonl")[0])
    assert canonical([m.model_dump() for m in back.messages]) == canonical(
        [m.model_dump() for m in record.messages]
    )
    assert back.tools == record.tools


def test_two_calls_that_differ_are_no_duplicates_and_no_identical_sides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def side(city: str) -> list[dict[str, Any]]:
        function = {"name": "w", "arguments": {"city": city}}
        return [turn("assistant", "", tool_calls=[{"type": "function", "function": function}])]

    rows = [{"prompt": [ASKED], "chosen": side("Oslo"), "rejected": side("Rome")},
            {"prompt": [ASKED], "chosen": side("Oslo"), "rejected": side("Bonn")}]  # fmt: skip
    path = write_lines(tmp_path / "d.jsonl", rows)
    assert found(capsys, path) == []
    done = alignkit(capsys, "data", "clean", path, "-o", tmp_path / "c.jsonl")
    assert "2 rows read, 2 written" in done.err


def test_xlam_and_swift(tmp_path: Path) -> None:
    record = the_record(ROWS["xlam"], tmp_path)
    assert record.messages[-1].tool_calls == [CALLED]
    assert record.tools[0]["function"]["name"] == "get_weather"
    record = the_record(ROWS["swift"], tmp_path)
    assert [(m.role, m.content) for m in record.messages] == [
        ("system", "S"), ("user", "Hi"), ("assistant", "Hello"), ("user", "So"),
        ("assistant", "Yes"), ("user", "And?"), ("assistant", "Five"),
    ]  # fmt: skip
    assert [m.train for m in record.messages if m.role == "assistant"] == [False, False, None]
    record = the_record(ROWS["swift-messages"], tmp_path)
    assert (record.chosen[0].content, record.rejected[0].content) == ("Four.", "Five.")


# --- which turns are trained --------------------------------------------------------------------

YES = [1, 1.0, True, "1", "1.0", "true", "True"]
NO = [0, 0.0, False, "0", "0.0", "false", "False"]
KEYS = ["weight", "loss_weight", "loss", "train", "training", "train_turn", "trainable"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("shape", ["messages", "conversations"])
def test_a_turn_is_trained_as_its_weight_says(key: str, shape: str, tmp_path: Path) -> None:
    for value in [*YES, *NO, None]:
        if shape == "messages":
            chat = [turn("user", "a"), turn("assistant", "b", **{key: value})]
        else:
            chat = [said("human", "a"), {**said("gpt", "b"), key: value}]
        record = the_record([{shape: chat}], tmp_path)
        expected = None if value is None else value in YES and value not in NO
        if key == "loss_weight" and expected:
            expected = record.messages[-1].train or None  # what the role says: True or unsaid
        assert record.messages[-1].train is expected, value
        source = rows_in(tmp_path / "in.jsonl")
        convert([tmp_path / "in.jsonl"], tmp_path / "ours.jsonl")
        convert([tmp_path / "ours.jsonl"], tmp_path / "back.jsonl",
                to=record.source.format)  # fmt: skip
        assert canonical(rows_in(tmp_path / "back.jsonl")) == canonical(source)


def test_masked_is_the_other_way_round_and_any_no_counts(tmp_path: Path) -> None:
    chat = [turn("user", "a"), turn("assistant", "b", masked=True), turn("user", "c"),
            turn("assistant", "d", masked=False), turn("user", "e"),
            turn("assistant", "f", weight=1, train=False)]  # fmt: skip
    record = the_record([{"messages": chat}], tmp_path)
    assert [m.train for m in record.messages[1::2]] == [False, True, False]


def test_weights_of_turns_that_are_never_trained_say_nothing(tmp_path: Path) -> None:
    chat = [{**said("system", "S"), "weight": None}, {**said("human", "hi"), "weight": 0.0},
            {**said("gpt", "hello"), "weight": 1.0}, {**said("human", "bye"), "weight": 0},
            {**said("gpt", "WRONG"), "weight": 0.0}, {**said("human", "sure?"), "weight": 0},
            {**said("gpt", "good bye"), "weight": 1}]  # fmt: skip
    record = the_record([{"conversations": chat}], tmp_path)
    assert [m.train for m in record.messages] == [None, None, True, None, False, None, True]
    there_and_back([{"conversations": chat}], "sharegpt", tmp_path)


@pytest.mark.parametrize(
    ("target", "key", "shape"),
    [("messages", "train", "messages"), ("openai-chat", "weight", "messages"),
     ("sharegpt", "weight", "conversations"), ("llamafactory-v1", "loss_weight", "messages")],
)  # fmt: skip
def test_weights_are_written_in_the_target_s_words(
    target: str, key: str, shape: str, tmp_path: Path
) -> None:
    chat = [turn("user", "a"), turn("assistant", "WRONG", loss=False), turn("user", "b"),
            turn("assistant", "good", loss=True)]  # fmt: skip
    source = write_lines(tmp_path / "in.jsonl", [{"messages": chat}])
    convert([source], tmp_path / "out.jsonl", to=target)
    written = rows_in(tmp_path / "out.jsonl")[0][shape]
    if target != "messages":
        assert not any("loss" in item for item in written)
        assert [item.get(key) for item in written[1::2]] == [0, 1]
    record = next(iter(read_records(tmp_path / "out.jsonl")))
    assert [m.train for m in record.messages[1::2]] == [False, True]  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [0.5, 2, -1, "half", "0.3", [1]])
def test_a_turn_is_not_trained_in_part(
    value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"messages": [turn("user", "a"), turn("assistant", "b", weight=value)]}]
    path = write_lines(tmp_path / "d.jsonl", rows)
    assert found(capsys, path) == [("turn-weight", "error", 1)]
    (problem,) = problems(capsys, path)
    assert problem["field"] == "messages[1].weight"
    assert "trained wholly or not at all" in problem["message"]
    there_and_back(rows, "openai-chat", tmp_path)


def test_nothing_left_to_train_and_users_to_train_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"messages": [turn("user", "a"), turn("assistant", "b", weight=0)]},
            {"messages": [turn("user", "c", train=True), turn("assistant", "d")]}]  # fmt: skip
    path = write_lines(tmp_path / "d.jsonl", rows)
    assert found(capsys, path) == [("no-target", "error", 1), ("turn-weight", "warning", 2)]
    done = alignkit(
        capsys, "data", "clean", path, "-o", tmp_path / "c.jsonl", "--drop", "no-target"
    )
    assert "dropped: no-target 1" in done.err


# --- sides --------------------------------------------------------------------------------------


def test_only_answers_are_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, more = turn("user", "a"), turn("user", "more?")
    good = [turn("assistant", "x"), more, turn("assistant", "y")]
    bad = [turn("assistant", "z"), more, turn("assistant", "w")]
    for name, row in {
        "preference": {"prompt": [asked], "chosen": good, "rejected": bad},
        "sharegpt-preference": {"conversations": [said("human", "a")],
                                "chosen": [said("gpt", "x"), said("human", "more?"),
                                           said("gpt", "y")],
                                "rejected": said("gpt", "z")},
        "ranked": {"prompt": [asked], "completions": [good, bad], "ranks": [1, 2]},
        "kto": {"prompt": [asked], "completion": good, "label": True},
        "arena": {"model_a": "m", "model_b": "n", "winner": "model_a",
                  "conversation_a": [asked, *good], "conversation_b": [asked, *bad]},
        "openai-preference": {"input": {"messages": [asked]}, "preferred_output": good,
                              "non_preferred_output": bad},
        "preference ": {"prompt": [asked], "chosen": [turn("assistant", "x"), turn("tool", "3"),
                                                      turn("assistant", "y")],
                        "rejected": [turn("assistant", "z")]},
    }.items():  # fmt: skip
        path = write_lines(tmp_path / f"{name.strip()}.jsonl", [row])
        done = alignkit(capsys, "data", "check", path)
        assert done.code == 2, name
        assert "which would be trained as part of the completion" in done.out, name


def test_histories_that_differ_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"chosen": "\n\nHuman: a\n\nAssistant: x\n\nHuman: more?\n\nAssistant: y",
           "rejected": "\n\nHuman: a\n\nAssistant: z\n\nHuman: other?\n\nAssistant: w"}  # fmt: skip
    path = write_lines(tmp_path / "d.jsonl", [row])
    assert ("prompts-differ", "error", 1) in found(capsys, path)


def test_shared_history_is_prompt(tmp_path: Path) -> None:
    past = [turn("user", "a"), turn("assistant", "x"), turn("user", "b")]
    whole = {"chosen": [*past, turn("assistant", "y")], "rejected": [*past, turn("assistant", "z")]}
    for row in (
        {"prompt": past, **whole},  # the sides repeat the prompt
        {"prompt": past[:1], "chosen": whole["chosen"][1:], "rejected": whole["rejected"][1:]},
        {"prompt": [turn("system", "S")], **whole},
        {"prompt": "a", **whole},
        whole,
    ):
        record = the_record([row], tmp_path)
        if row.get("prompt") == past[:1]:  # an answer, then a question: no one answer
            assert record.prompt_chosen is None
            continue
        system = ["system"] if row.get("prompt") == [turn("system", "S")] else []
        assert [m.role for m in record.prompt] == [*system, "user", "assistant", "user"]
        assert [m.content for m in (*record.chosen, *record.rejected)] == ["y", "z"]
        there_and_back([row], "preference", tmp_path)


def test_a_vote_is_on_the_turn_it_names(tmp_path: Path) -> None:
    def chat(*answers: str) -> list[dict[str, Any]]:
        pairs = zip(("q1", "q2"), answers, strict=True)
        return [t for q, a in pairs for t in (turn("user", q), turn("assistant", a))]

    row = {"question_id": 81, "model_a": "m", "model_b": "n", "winner": "model_b", "turn": 1,
           "conversation_a": chat("a1", "a2"), "conversation_b": chat("b1", "b2")}  # fmt: skip
    record = the_record([row], tmp_path)
    assert [m.content for m in record.prompt] == ["q1"]
    assert [c.messages[0].content for c in record.candidates] == ["a1", "b1"]
    there_and_back([row], "arena", tmp_path)
    record = the_record([row | {"turn": 2, "conversation_b": chat("a1", "b2")}], tmp_path)
    assert [m.content for m in record.prompt] == ["q1", "a1", "q2"]


# --- texts --------------------------------------------------------------------------------------

TEXTS = ["An oak is a tree. It grows slowly.", "A plum is a fruit. It is sweet.",
         "The river runs to the sea.", "Snow is cold."]  # fmt: skip


def test_texts_and_answers_without_a_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "t.jsonl", [{"text": TEXTS[0]}, {"text": " \u200b"}])
    assert found(capsys, path) == [("empty-side", "error", 2)]
    record = the_record([{"text": TEXTS[0]}], tmp_path)
    assert record.plain
    there_and_back([{"text": TEXTS[0]}], "text", tmp_path)
    alone = write_lines(tmp_path / "a.jsonl", [{"messages": [turn("assistant", "Hi")]}])
    assert found(capsys, alone) == [("no-prompt", "warning", 1)]
    first = [said("gpt", "I continue"), said("human", "ok"), said("gpt", "good")]
    opens = write_lines(tmp_path / "f.jsonl", [{"conversations": first}])
    (problem,) = problems(capsys, opens)
    assert (problem["kind"], problem["level"]) == ("role-order", "warning")
    assert "begins with an assistant turn" in problem["message"]


def test_equal_texts_stay_in_one_part(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [{"text": text} for text in ("a b", "a b", "c")])
    first, second, third = [prompt_key(record) for record in read_records(path)]
    assert first == second != third


def test_a_text_is_trained_whole_and_ends_in_eos(tiny_tokenizer: Any) -> None:
    encoder = Encoder(tiny_tokenizer)
    tokens = encoder.encode_text("ab<|im_end|>")
    ids = tiny_tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert tokens.ids == [*ids, tiny_tokenizer.eos_token_id]  # its own end is not doubled
    assert tokens.trained == [True] * 3
    assert encoder.encode_text("ab").ids == tokens.ids


def test_texts_are_trained_and_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "t.jsonl", [{"text": text} for text in TEXTS])
    checked = alignkit(capsys, "data", "check", "t.jsonl", "--model", "tiny")
    assert checked.code == 0, checked.out
    assert "100.0% of the tokens are trained" in checked.out
    done = alignkit(capsys, "sft", "--data", "t.jsonl", "--output", "run", "--quantization",
                    "none", "--set", "max_steps=1", "--json")  # fmt: skip
    assert done.code == 0, done.err
    metrics = json.loads(done.out)["metrics"]
    assert (metrics["rows"], metrics["trained_share"], metrics["eos_share"]) == (4, 1.0, 1.0)
    told = alignkit(capsys, "eval", "perplexity", "run", "--data", "t.jsonl", "--quantization",
                    "none", "--json")  # fmt: skip
    assert told.code == 0, told.err
    report = json.loads(told.out)
    # Every token of the texts counts but the four first ones, which nothing predicts.
    assert report["tokens"] == metrics["tokens"] - 4


# --- texts that were something else -------------------------------------------------------------

Q, A = turn("user", "2+2?"), turn("assistant", "4")
TEMPLATED = [
    "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n",
    "<|im_start|>user<|im_sep|>2+2?<|im_end|><|im_start|>assistant<|im_sep|>4<|im_end|>",
    "<|user|>\n2+2?</s>\n<|assistant|>\n4</s>\n",
    "<|user|>\n2+2?<|end|>\n<|assistant|>\n4<|end|>\n<|endoftext|>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n4<|eot_id|>",
    "<bos><start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n4<end_of_turn>\n",
    "<s>[INST] 2+2? [/INST] 4</s>",
    "[INST] 2+2? [/INST]4",
    "<｜begin▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜>4<｜end▁of▁sentence｜>",
    "<|start|>user<|message|>2+2?<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
]


@pytest.mark.parametrize("text", TEMPLATED)
def test_a_templated_text_is_told_and_taken_back_to_turns(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"text": text}])
    (problem,) = problems(capsys, path)
    assert (problem["kind"], problem["level"], problem["line"]) == ("templated", "error", 1)
    command = "alignkit data clean --repair template --to messages"
    assert problem["fix"] == command
    out = tmp_path / "clean.jsonl"
    done = alignkit(capsys, *command.split()[1:], path, "-o", out)
    assert done.code == 0, done.err
    assert rows_in(out) == [{"messages": [Q, A]}]
    assert found(capsys, out) == []
    undone = tmp_path / "undone.jsonl"
    alignkit(capsys, "data", "clean", out, "--undo", f"{out}.changes.jsonl", "-o", undone)
    convert([undone], tmp_path / "back.jsonl", to="text")
    assert rows_in(tmp_path / "back.jsonl") == [{"text": text}]


@pytest.mark.parametrize(
    ("row", "mended"),
    [
        ({"prompt": "2+2?", "completion": "4<|im_end|>"}, {"prompt": "2+2?", "completion": "4"}),
        ({"prompt": "<|user|>\n2+2?</s>\n<|assistant|>\n", "chosen": "4</s>", "rejected": "5</s>"},
         {"prompt": "2+2?", "chosen": "4", "rejected": "5"}),
        ({"prompt": "2+2?", "completion": "<|assistant|>\n4<|end|>"},
         {"prompt": "2+2?", "completion": "4"}),
        ({"prompt": "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n",
          "chosen": "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>",
          "rejected": "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n5<|im_end|>"},
         {"prompt": "2+2?", "chosen": "4", "rejected": "5"}),
        ({"instruction": "2+2?", "output": "<s> 4 </s>"},
         {"instruction": "2+2?", "output": "4", "input": ""}),
    ],
)  # fmt: skip
def test_marks_in_prompts_and_answers(
    row: dict[str, Any],
    mended: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_lines(tmp_path / "d.jsonl", [row])
    assert {kind for kind, _, _ in found(capsys, path)} == {"templated"}
    assert alignkit(capsys, "data", "check", path).code == 2
    out = tmp_path / "clean.jsonl"
    done = alignkit(capsys, "data", "clean", path, "-o", out, "--repair", "template")
    assert done.code == 0, done.err
    assert rows_in(out) == [mended]


@pytest.mark.parametrize(
    "text",
    ["the <s>old</s> price, was <s>9</s>", "a <b>c</b> | d |> e", "Use [INST] tags", "a < b",
     "<s>gone</s> is struck out in HTML, as in <s>this</s>"],
)  # fmt: skip
def test_ordinary_text_has_no_marks(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        found(capsys, write_lines(tmp_path / "d.jsonl", [{"prompt": "a", "completion": text}]))
        == []
    )


def test_a_mark_that_is_spoken_of_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = "The <|assistant|> mark opens a turn."
    row = {"prompt": "What is <|im_end|> for?", "completion": answer}
    path = write_lines(tmp_path / "d.jsonl", [row])
    assert {(kind, level) for kind, level, _ in found(capsys, path)} == {
        ("template-mark", "warning")
    }


def test_a_templated_text_does_not_fit_its_own_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"text": TEMPLATED[0]}])
    out = tmp_path / "c.jsonl"
    done = alignkit(capsys, "data", "clean", path, "-o", out, "--repair", "template")
    assert done.code == 2
    assert "--to messages" in done.err
    assert not out.exists()


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *options: str) -> Said:
    rows = [{"prompt": "2+2?", "completion": "4"}]
    path = write_lines(folder / "d.jsonl", rows)
    done = alignkit(capsys, "data", "clean", path, "-o", folder / "c.jsonl", *options)
    assert done.code == 2
    assert not (folder / "c.jsonl").exists()
    return done


@pytest.mark.parametrize("kind", ["template", "overlong"])
def test_a_drop_that_needs_a_tokenizer_says_so(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"--drop {kind} --model MODEL" in refused(capsys, tmp_path, "--drop", kind).err


def test_a_drop_that_can_do_nothing_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "did you mean 'overlong'" in refused(capsys, tmp_path, "--drop", "overlog").err
    assert "--repair duplicates" in refused(capsys, tmp_path, "--drop", "duplicate").err
    assert "--model" in refused(capsys, tmp_path, "--chat-template", "x.jinja").err


def test_a_drop_with_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "2+2?", "completion": "4"},
            {"prompt": "2+2?", "completion": "four " * 60},
            {"messages": []}]  # fmt: skip
    path = write_lines(tmp_path / "d.jsonl", rows[:2])
    out = tmp_path / "c.jsonl"
    done = alignkit(capsys, "data", "clean", path, "-o", out, "--drop", "overlong",
                    "--model", "tiny", "--max-length", "32")  # fmt: skip
    assert (done.code, "dropped: overlong 1" in done.err) == (0, True), done.err
    assert rows_in(out) == rows[:1]
    strict = tmp_path / "strict.jinja"
    strict.write_text(
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    done = alignkit(capsys, "data", "clean", path, "-o", out, "--drop", "template",
                    "--model", "tiny", "--chat-template", strict)  # fmt: skip
    assert "dropped: template 2" in done.err


@pytest.mark.parametrize(
    "cell",
    ["[{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': '%s'}]",
     '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "%s"}]',
     "[{'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': '%s'}]"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_messages_that_a_table_wrote_as_text_are_messages(
    cell: str, suffix: str, tmp_path: Path
) -> None:
    row = {"prompt": "q", "chosen": cell % "it's good".replace("'", "’"), "rejected": cell % "bad"}
    path = tmp_path / f"d.{suffix}"
    if suffix == "csv":
        quoted = ['"' + row[key].replace('"', '""') + '"' for key in row]
        path.write_text(",".join(row) + "\n" + ",".join(quoted) + "\n")
    else:
        write_lines(path, [row])
    (record,) = read_records(path)
    assert isinstance(record, Preference)
    assert [m.content for m in record.prompt] == ["q"]
    assert (record.chosen[0].content, record.rejected[0].content) == ("it’s good", "bad")
    convert([path], tmp_path / "ours.jsonl")
    convert([tmp_path / "ours.jsonl"], tmp_path / f"back.{suffix}", to="preference")
    assert canonical(rows_in(tmp_path / f"back.{suffix}")) == canonical(rows_in(path))


@pytest.mark.parametrize(
    ("key", "cell"),
    [("messages", "[{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}]"),
     ("conversations", "[{'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'a'}]")],
)  # fmt: skip
def test_whole_chats_as_text(key: str, cell: str, tmp_path: Path) -> None:
    record = the_record([{key: cell}], tmp_path)
    assert [m.content for m in record.messages] == ["q", "a"]
    there_and_back([{key: cell}], record.source.format, tmp_path)


@pytest.mark.parametrize(
    "cell",
    ["[{'role': 'user', 'content': 'q'}\n {'role': 'assistant', 'content': 'a'}]",
     "array([{'role': 'user', 'content': 'q'}], dtype=object)",
     "[{'role': 'user', 'content': 'q'}, {'role': 'assi"],
)  # fmt: skip
def test_messages_that_cannot_be_read_back_are_told(
    cell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"prompt": "q", "completion": cell}])
    (problem,) = problems(capsys, path)
    assert (problem["kind"], problem["line"]) == ("list-as-text", 1)
    assert "json.dumps" in problem["fix"]


def test_lists_as_text_and_mixtures_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "d.jsonl", [
        {"prompt": "q", "completion": "['Paris', 'Rome']"}, {"prompt": "r", "completion": "[1]"},
    ])  # fmt: skip
    assert found(capsys, path) == [("list-as-text", "warning", 1)]
    written = "[{'role': 'user', 'content': 'q'}]"
    path = write_lines(tmp_path / "m.jsonl", [
        {"prompt": "q", "completion": "a"}, {"prompt": written, "completion": "b"},
    ])  # fmt: skip
    assert ("mixed", "error", 2) in found(capsys, path)


@pytest.mark.parametrize("blank", ["\u200b", " \u200b\u200d\n", "\ufeff", "\u2060", "\u2800",
                                   "\u3164", "\u00ad", "\u200e\u202c", "\U000e0020"])  # fmt: skip
def test_what_cannot_be_seen_is_empty(
    blank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "q", "chosen": blank, "rejected": "b"},
            {"prompt": "r", "chosen": f"b{blank}", "rejected": "b"}]  # fmt: skip
    kinds = found(capsys, write_lines(tmp_path / "d.jsonl", rows))
    assert ("empty-side", "error", 1) in kinds
    assert ("identical", "error", 2) in kinds


def test_family_emoji_and_joined_letters_are_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "q", "chosen": "👩\u200d👧", "rejected": "می\u200cخواهم"}]
    assert found(capsys, write_lines(tmp_path / "d.jsonl", rows)) == []


def test_a_call_is_told_when_templates_cannot_write_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = {"type": "function", "function": {"name": "w", "arguments": "{oops"}}
    rows = [
        {"messages": [turn("user", text), turn("assistant", "", tool_calls=[call])]}
        for text, call in (("a", torn), ("b", {"id": "1"}))
    ]
    path = write_lines(tmp_path / "d.jsonl", rows)
    assert [(kind, line) for kind, _, line in found(capsys, path)] == [
        ("tool-call", 1), ("tool-call", 2)
    ]  # fmt: skip


# --- a template of one's own --------------------------------------------------------------------

OWN = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + ' ' + m['content'] + "
    "eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained with a template of its own."""
    from alignkit.cli import main

    folder = tmp_path_factory.mktemp("own")
    (folder / "own.jinja").write_text(OWN)
    rows = [{"prompt": f"what is {n}", "completion": "it is a number"} for n in range(4)]
    write_lines(folder / "rows.jsonl", rows)
    with pytest.raises(SystemExit) as stop:
        main(["sft", "--data", str(folder / "rows.jsonl"), "--output", str(folder / "run"),
              "--quantization", "none", "--chat-template", str(folder / "own.jinja"),
              "--set", "max_steps=1"])  # fmt: skip
    assert not stop.value.code
    return folder


def test_a_run_is_measured_with_the_template_beside_it(
    own_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["eval", "perplexity", own_run / "run", "--data", own_run / "rows.jsonl",
              "--quantization", "none", "--json"]  # fmt: skip
    unasked = alignkit(capsys, *common)
    given = alignkit(capsys, *common, "--chat-template", own_run / "own.jinja")
    assert (unasked.code, given.code) == (0, 0), unasked.err
    assert json.loads(unasked.out)["perplexity"] == json.loads(given.out)["perplexity"]
    bare = ["eval", "perplexity", "tiny", *common[3:]]
    own = alignkit(capsys, *bare, "--chat-template", own_run / "own.jinja")
    theirs = alignkit(capsys, *bare)
    assert json.loads(own.out)["perplexity"] != json.loads(theirs.out)["perplexity"]


def test_another_template_is_refused_with_the_way_out(
    own_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_run / "other.jinja").write_text(OWN.replace("' '", "'-'"))
    done = alignkit(capsys, "eval", "perplexity", own_run / "run", "--data",
                    own_run / "rows.jsonl", "--quantization", "none",
                    "--chat-template", own_run / "other.jinja")  # fmt: skip
    assert done.code == 2
    assert "remove chat_template" in done.err


def test_a_contest_of_runs_with_two_templates(
    own_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_run / "length_judge.py").write_text(
        "def shorter(prompt, completion):\n    return -len(completion)\n"
    )
    monkeypatch.syspath_prepend(str(own_run))
    done = alignkit(capsys, "eval", "winrate", "--policies", f"own={own_run / 'run'}",
                    "base=tiny", "--prompts", own_run / "rows.jsonl", "--judge",
                    "length_judge:shorter",
                    "--quantization", "none", "--max-new-tokens", "4", "--work",
                    own_run / "work", "--json")  # fmt: skip
    assert done.code == 0, done.err


def test_training_goes_on_with_the_run_s_template(
    own_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "what is it", "chosen": "a number", "rejected": "a fish"},
            {"prompt": "what is that", "chosen": "a number", "rejected": "a bird"}]  # fmt: skip
    write_lines(own_run / "pairs.jsonl", rows)
    done = alignkit(capsys, "reward", "--data", own_run / "pairs.jsonl", "--output",
                    own_run / "reward", "--model", own_run / "run", "--quantization", "none",
                    "--set", "max_steps=1")  # fmt: skip
    assert done.code == 0, done.err
    assert (own_run / "reward" / "adapter" / "chat_template.jinja").read_text() == OWN
    told = alignkit(capsys, "eval", "reward", own_run / "reward", "--data",
                    own_run / "pairs.jsonl", "--quantization", "none")  # fmt: skip
    assert told.code == 0, told.err
    checked = alignkit(capsys, "data", "check", own_run / "pairs.jsonl", "--model",
                       own_run / "run")  # fmt: skip
    assert checked.code == 0, checked.out


def test_chat_speaks_with_the_run_s_template(own_run: Path) -> None:
    from alignkit.collect.chat_models import SamplingSettings, load_chat_model
    from alignkit.recipe.settings import BackboneConfig

    config = BackboneConfig.model_validate(
        {"model_name_or_path": str(own_run / "run"), "quantization": "none"}
    )
    speak = load_chat_model(config, SamplingSettings(temperature=0, max_new_tokens=3))
    with torch.no_grad():
        assert isinstance(
            speak([Message(role="user", content="what is 2")], 0, lambda _: None), str
        )


def test_every_kind_of_problem_can_be_named_to_drop() -> None:
    """A kind that a rule finds and `--drop` does not know would be refused as a slip."""
    import ast

    from alignkit.data import rules
    from alignkit.data.checks.tokens import TOKEN_KINDS

    tree = ast.parse(Path(rules.__file__).read_text(encoding="utf-8"))
    kinds = {
        call.args[0].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) == "Finding"
        and isinstance(call.args[0], ast.Constant)
    }
    assert kinds == set(rules.RULE_KINDS)
    assert {"template", "overlong"} <= set(TOKEN_KINDS)
