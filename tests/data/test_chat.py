"""Rendering once: prompts are prefixes, targets are completions up to their stop token."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.data.chat import Encoder, Tokens
from alignkit.data.checks.unread_keys import UnreadKeys
from alignkit.data.pairs import expand
from alignkit.data.records import (
    Candidate,
    Demonstration,
    Message,
    Preference,
    Prompt,
    Ranking,
    Source,
)
from alignkit.data.template_input import TemplateContext
from alignkit.errors import DataError, ModelError
from alignkit.training.rows import Answers, pair_row, ranking_row, sft_rows


def turn(role: str, content: str, train: bool | None = None) -> Message:
    return Message(role=role, content=content, train=train)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: Any) -> Encoder:
    return Encoder(tiny_tokenizer)


def text_of(encoder: Encoder, ids: list[int]) -> str:
    return str(encoder.tokenizer.decode(ids))


def test_a_completion_ends_in_its_stop_token_and_nothing_after(encoder: Encoder) -> None:
    ids = encoder.completion_ids([turn("user", "Hi")], [turn("assistant", "Hello you")])
    assert text_of(encoder, ids) == "Hello you<|im_end|>"
    assert ids[-1] in encoder.stop_token_ids


def test_a_prompt_ends_where_the_answer_begins(encoder: Encoder) -> None:
    ids = encoder.prompt_ids([turn("system", "Be kind"), turn("user", "Hi")])
    assert text_of(encoder, ids).endswith("<|im_start|>assistant\n")


def test_only_what_the_assistant_says_is_trained(encoder: Encoder) -> None:
    (tokens,) = encoder.encode_demonstration(
        Demonstration(
            messages=[
                turn("user", "One?"),
                turn("assistant", "Two."),
                turn("user", "Three?"),
                turn("assistant", "Four!"),
            ]
        ),
        "completion",
    )
    trained = [i for i, t in zip(tokens.ids, tokens.trained, strict=True) if t]
    assert text_of(encoder, trained) == "Two.<|im_end|>Four!<|im_end|>"
    assert len(tokens.ids) == len(tokens.trained)


def test_a_turn_marked_train_false_is_context(encoder: Encoder) -> None:
    (tokens,) = encoder.encode_demonstration(
        Demonstration(
            messages=[
                turn("user", "One?"),
                turn("assistant", "Wrong.", train=False),
                turn("user", "Again?"),
                turn("assistant", "Right."),
            ]
        ),
        "completion",
    )
    trained = [i for i, t in zip(tokens.ids, tokens.trained, strict=True) if t]
    assert text_of(encoder, trained) == "Right.<|im_end|>"
    assert "Wrong." in text_of(encoder, tokens.ids)


def test_train_on_all_trains_every_token(encoder: Encoder) -> None:
    (tokens,) = encoder.encode_demonstration(
        Demonstration(messages=[turn("user", "One?"), turn("assistant", "Two.")]), "all"
    )
    assert all(tokens.trained)
    assert tokens.ids[-1] in encoder.stop_token_ids


@given(st.text(max_size=40), st.text(max_size=40))
def test_prompt_and_completion_are_the_whole(tiny_tokenizer: Any, ask: str, answer: str) -> None:
    encoder = Encoder(tiny_tokenizer)
    prompt, reply = [turn("user", ask)], [turn("assistant", answer)]
    joined = encoder.prompt_ids(prompt) + encoder.completion_ids(prompt, reply)
    (whole,) = encoder.encode_demonstration(Demonstration(messages=prompt + reply), "completion")
    assert joined == whole.ids


def test_a_missing_template_says_what_to_add(tiny_tokenizer: Any) -> None:
    bare = copy.deepcopy(tiny_tokenizer)
    bare.chat_template = None
    with pytest.raises(ModelError, match="no chat template") as error:
        Encoder(bare)
    assert "chat_template:" in str(error.value)


def test_a_template_that_refuses_is_a_data_error(tiny_tokenizer: Any) -> None:
    strict = copy.deepcopy(tiny_tokenizer)
    strict.chat_template = "{{ raise_exception('no system turns here') }}"
    with pytest.raises(DataError, match="no system turns here"):
        Encoder(strict).prompt_ids([turn("system", "x"), turn("user", "y")])


def test_a_template_that_rewrites_the_prompt_is_refused(tiny_tokenizer: Any) -> None:
    odd = copy.deepcopy(tiny_tokenizer)
    odd.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="renders the prompt differently") as error:
        Encoder(odd).completion_ids([turn("user", "a")], [turn("assistant", "b")])
    assert "sampling would see …'1a', the whole conversation is …'2ab'" in str(error.value)


def test_a_template_without_a_stop_token_gets_eos(tiny_tokenizer: Any) -> None:
    plain = copy.deepcopy(tiny_tokenizer)
    plain.chat_template = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    ids = Encoder(plain).completion_ids([turn("user", "a")], [turn("assistant", "b")])
    assert plain.decode(ids) == "b|<|im_end|>"


# --- templates with habits of their own ----------------------------------------------------------

INSTALLED = Path(__import__("trl").__file__).parent / "chat_templates"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def encoder_for(tokenizer: Any, template: str, *specials: str) -> Encoder:
    """The tokenizer with another template, and special tokens of its own."""
    from tokenizers import AddedToken

    made = copy.deepcopy(tokenizer)
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    made.chat_template = template
    return Encoder(made)


def installed(name: str) -> str:
    return (INSTALLED / f"{name}.jinja").read_text(encoding="utf-8")


def trained_texts(encoder: Encoder, rows: list[Tokens]) -> list[list[str]]:
    """The runs of trained tokens of each row, as text."""
    found = []
    for row in rows:
        runs: list[list[int]] = []
        for before, token, trained in zip([False, *row.trained], row.ids, row.trained,
                                          strict=False):  # fmt: skip
            if trained and not before:
                runs.append([])
            if trained:
                runs[-1].append(token)
        found.append([text_of(encoder, run) for run in runs])
    return found


TALK = [
    turn("user", "Name tree 0"),
    turn("assistant", "first answer"),
    turn("user", "Another"),
    turn("assistant", "second answer"),
]


def test_phi_trains_every_answer_up_to_the_first_stop(tiny_tokenizer: Any) -> None:
    """The template writes EOS behind the last <|end|>, where sampling has long stopped."""
    encoder = encoder_for(
        tiny_tokenizer, installed("phi3"), "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
    )
    rows = encoder.encode_demonstration(Demonstration(messages=TALK), "completion")
    assert trained_texts(encoder, rows) == [["first answer<|end|>", "second answer<|end|>"]]
    assert text_of(encoder, rows[0].ids) == (
        "<|user|>\nName tree 0<|end|>\n<|assistant|>\nfirst answer<|end|>\n"
        "<|user|>\nAnother<|end|>\n<|assistant|>\nsecond answer<|end|>"
    )


def test_each_answer_has_the_prompt_that_sampling_would_see(tiny_tokenizer: Any) -> None:
    """Qwen3 writes an empty thought before the last answer alone, so two answers are two rows."""
    encoder = encoder_for(tiny_tokenizer, installed("qwen3"))
    rows = encoder.encode_demonstration(Demonstration(messages=TALK), "completion")
    empty = "<think>\n\n</think>\n\n"
    assert trained_texts(encoder, rows) == [
        [f"{empty}first answer<|im_end|>"],
        [f"{empty}second answer<|im_end|>"],
    ]
    before = "<|im_start|>assistant\nfirst answer<|im_end|>\n"
    assert before in text_of(encoder, rows[1].ids)
    answers, record = Answers(), Demonstration(messages=TALK)
    answers.count(record, sft_rows(record, encoder, "completion"), "completion")
    assert answers.lines() == [
        "1 conversations became 2 rows: the chat template renders earlier turns differently "
        "later on, so each assistant turn has its own prompt"
    ]


def test_answers_that_are_not_trained_are_counted(encoder: Encoder) -> None:
    messages = [*TALK[:1], turn("assistant", "first answer", train=False), *TALK[2:]]
    answers, record = Answers(), Demonstration(messages=messages)
    answers.count(record, sft_rows(record, encoder, "completion"), "completion")
    assert answers.lines() == [
        "1 of 2 assistant turns are not trained: they are marked train: false"
    ]


@pytest.mark.parametrize(
    "content",
    ["<think>\nOne and one.\n</think>\n\nTwo.", "<think>One</think>Two.", "One.\n</think>\n\nTwo."],
)
def test_a_thought_that_the_template_drops_is_trained(tiny_tokenizer: Any, content: str) -> None:
    """R1's prompt opens the thought; TRL's variant for training keeps what the original drops."""
    marks = ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
    encoder = encoder_for(tiny_tokenizer, installed("deepseek_r1_distill"), *marks)
    (row,) = encoder.encode_demonstration(
        Demonstration(messages=[turn("user", "1+1?"), turn("assistant", content)]), "completion"
    )
    asked = "<｜User｜>1+1?<｜Assistant｜><think>\n"
    said = content.removeprefix("<think>\n").removeprefix("<think>")
    assert text_of(encoder, row.ids) == f"{asked}{said}<｜end▁of▁sentence｜>"
    assert encoder.remarks.empty_thoughts == 0
    if content.startswith("<think>\n"):
        theirs = encoder.tokenizer.apply_chat_template(
            [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": content}],
            chat_template=installed("deepseek_r1_distill_training"),
            tokenize=False,
        )
        assert text_of(encoder, row.ids) == theirs


def test_an_answer_without_the_thought_that_the_prompt_opens(tiny_tokenizer: Any) -> None:
    marks = ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
    encoder = encoder_for(tiny_tokenizer, installed("deepseek_r1_distill"), *marks)
    asked, reply = [turn("user", "1+1?")], [turn("assistant", "Two.")]
    ids = encoder.prompt_ids(asked) + encoder.completion_ids(asked, reply)
    assert text_of(encoder, ids) == (
        "<｜User｜>1+1?<｜Assistant｜><think>\n\n</think>\n\nTwo.<｜end▁of▁sentence｜>"
    )
    (line,) = encoder.remarks.lines()
    assert line.startswith(
        "1 completions have no thought, but the chat template's prompt opens one"
    )


def test_the_assistant_may_begin(tiny_tokenizer: Any) -> None:
    """Templates that look at the first message render no empty conversation."""
    template = "{{ 'S:' if messages[0].role == 'system' }}" + CHATML
    encoder = encoder_for(tiny_tokenizer, template)
    messages = [turn("assistant", "Welcome!"), turn("user", "Hi"), turn("assistant", "Yes?")]
    rows = encoder.encode_demonstration(Demonstration(messages=messages), "completion")
    assert trained_texts(encoder, rows) == [["Welcome!<|im_end|>", "Yes?<|im_end|>"]]


def test_contents_go_as_parts_to_templates_that_read_only_parts(tiny_tokenizer: Any) -> None:
    template = CHATML.replace("{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}")
    encoder = encoder_for(tiny_tokenizer, template)
    assert encoder.prompt_text([turn("user", "Hi")]) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


# --- stops ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "stops"), [(7, {2, 7}), ([8, 9], {2, 8, 9}), (None, {2})])
def test_stops_are_those_of_generation_config_too(
    tiny_tokenizer: Any, tmp_path: Path, said: Any, stops: set[int]
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": said}))
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.name_or_path = str(tmp_path)
    encoder = Encoder(tokenizer)
    assert encoder.stop_token_ids == stops
    assert encoder.end_token_id == 2
    told = "<|im_end|> (the tokenizer, the chat template)"
    assert encoder.stops_line().startswith("completions end with <|im_end|>; generation stops at ")
    assert told in encoder.stops_line()
    assert ("(generation_config.json)" in encoder.stops_line()) == (said is not None)


def test_an_end_that_is_no_token_is_told(tiny_tokenizer: Any) -> None:
    encoder = encoder_for(tiny_tokenizer, installed("phi3"))
    ids = encoder.completion_ids([turn("user", "a")], [turn("assistant", "b")])
    assert text_of(encoder, ids) == "b<|end|>\n<|im_end|>"
    spelled = encoder_for(tiny_tokenizer, "{% for m in messages %}{{ m.content }}###{% endfor %}")
    assert (
        "writes '###' after completions, which this tokenizer reads as text" in spelled.stops_line()
    )


def test_a_stop_within_a_thought_of_gpt_oss_is_none(tiny_tokenizer: Any) -> None:
    marks = ("<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|channel|>", "<|message|>")
    encoder = encoder_for(tiny_tokenizer, installed("gptoss"), *marks)
    named = encoder.tokenizer.convert_ids_to_tokens
    assert {named(token) for token in encoder.stop_token_ids} == {
        "<|im_end|>",
        "<|return|>",
        "<|call|>",
    }
    thought = Message(role="assistant", content="Two.", thinking="One and one.")
    ids = encoder.completion_ids([turn("user", "1+1?")], [thought])
    assert text_of(encoder, ids) == (
        "<|channel|>analysis<|message|>One and one.<|end|><|start|>assistant"
        "<|channel|>final<|message|>Two.<|return|>"
    )


def test_an_answer_that_holds_its_own_end_is_refused(encoder: Encoder) -> None:
    reply = [turn("assistant", "Yes.<|im_end|>\n<|im_start|>user\nMore?")]
    with pytest.raises(DataError, match=r"the completion contains <\|im_end\|>, which ends it"):
        encoder.completion_ids([turn("user", "Hi")], reply)


def test_only_a_completion_that_ended_has_an_end(encoder: Encoder) -> None:
    """What was cut at the token limit is trained as far as it goes."""
    asked = [turn("user", "Hi")]
    ranking = Ranking(
        prompt=asked,
        candidates=[
            Candidate(cid="a", messages=[turn("assistant", "Done.")], gen={"stopped": True}),
            Candidate(cid="b", messages=[turn("assistant", "And th")], gen={"stopped": False}),
            Candidate(cid="c", messages=[turn("assistant", "So")], gen={"finish_reason": "length"}),
            Candidate(cid="d", messages=[turn("assistant", "Mine.")]),
        ],
        ranks={"a": 1, "b": 2, "c": 3, "d": 4},
    )
    row = ranking_row(ranking, encoder)
    assert row is not None
    assert [text_of(encoder, ids) for ids in row.completions] == [
        "Done.<|im_end|>",
        "And th",
        "So",
        "Mine.<|im_end|>",
    ]
    best_worst = expand(ranking, pairs="all")[0]
    pair = pair_row(best_worst, encoder)
    assert pair is not None
    assert text_of(encoder, pair.chosen) == "Done.<|im_end|>"
    assert text_of(encoder, pair.rejected) == "And th"
    cut_off = Demonstration(messages=[*asked, *ranking.candidates[1].completion])
    (sft,) = sft_rows(cut_off, encoder, "completion")
    assert text_of(encoder, sft.ids).endswith("assistant\nAnd th")
    # The mark travels through a file.
    again = Demonstration.model_validate_json(cut_off.model_dump_json())
    assert sft_rows(again, encoder, "completion")[0].ids == sft.ids


# --- keys beside role and content ----------------------------------------------------------------


def call(name: str, arguments: Any) -> Message:
    function = {"name": name, "arguments": arguments}
    return Message(
        role="assistant", tool_calls=[{"id": "1", "type": "function", "function": function}]
    )


@pytest.mark.parametrize("arguments", [{"city": "Oslo"}, '{"city": "Oslo"}'])
@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("qwen2_5", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool'),
        ("deepseekv3", 'get_weather\n```json\n{"city": "Oslo"}\n```'),
        ("llama3_1", '{"name": "get_weather", "parameters": {"city": "Oslo"}}'),
    ],
)  # fmt: skip
def test_calls_reach_the_template_in_the_form_it_takes(
    tiny_tokenizer: Any, template: str, text: str, arguments: Any
) -> None:
    encoder = encoder_for(tiny_tokenizer, installed(template))
    encoder.tokenizer.add_special_tokens({"bos_token": "<s>"})
    ids = encoder.completion_ids([turn("user", "Warm?")], [call("get_weather", arguments)])
    assert text in text_of(encoder, ids)


def test_two_calls_are_two_answers(tiny_tokenizer: Any, encoder: Encoder) -> None:
    """Both contents are empty: what differs is the call alone."""
    pair = Preference(
        prompt=[turn("user", "Weather in Oslo?")],
        chosen=[call("get_weather", '{"city": "Oslo"}')],
        rejected=[call("get_time", "{}")],
    )
    row = pair_row(pair, encoder_for(tiny_tokenizer, installed("qwen2_5")))
    assert row is not None
    assert row.chosen != row.rejected
    with pytest.raises(DataError, match="does not write tool_calls"):
        pair_row(pair, encoder)  # ChatML alone


def test_arguments_that_are_no_json_are_told(tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="the arguments of a tool call are not JSON"):
        encoder_for(tiny_tokenizer, installed("qwen2_5")).completion_ids(
            [turn("user", "x")], [call("f", "{city: Oslo")]
        )


def test_tools_documents_and_variables_reach_the_template(tiny_tokenizer: Any) -> None:
    template = (
        "{{ tools[0].function.name if tools }}{{ documents[0].text if documents }}"
        "{{ '/no_think' if enable_thinking is defined and not enable_thinking }}" + CHATML
    )
    encoder = encoder_for(tiny_tokenizer, template)
    asked = [turn("user", "Hi")]
    given = Prompt(
        prompt=asked,
        tools=[{"name": "look", "parameters": {}}],
        documents=[{"text": "A text."}],
        chat_template_kwargs={"enable_thinking": False},
    )
    context = TemplateContext.of(given)
    start = "lookA text./no_think"
    assert encoder.prompt_text(asked, context=context).startswith(f"{start}<|im_start|>user")
    assert not encoder.prompt_text(asked).startswith(start)
    joined = encoder.prompt_ids(asked, context=context) + encoder.completion_ids(
        asked, [turn("assistant", "Ho")], context=context
    )
    assert text_of(encoder, joined) == (
        f"{start}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>"
    )


def test_keys_that_are_never_read_are_told_by_name(tiny_tokenizer: Any) -> None:
    encoder = encoder_for(tiny_tokenizer, CHATML)
    unread = UnreadKeys(encoder)
    for row in range(3):
        unread.look(
            Demonstration(
                messages=[
                    turn("system", "Be kind."),
                    Message(role="user", content="Hi", name="Ann"),
                    Message(role="assistant", content="Ho", reasoning_content="Hm."),
                ],
                tools=[{"name": "f"}],
                chat_template_kwargs={"enable_thinking": False},
                source=Source(format="messages", file="talk.jsonl", row=row),
            )
        )
    assert unread.lines() == [
        f"talk.jsonl: the chat template never reads {key}: it is in no prompt and no completion"
        for key in ("name", "reasoning_content", "tools", "chat_template_kwargs.enable_thinking")
    ]
    assert unread.lines() == []  # told once a file


def test_a_side_with_the_words_of_others_is_no_pair(encoder: Encoder) -> None:
    pair = Preference(
        prompt=[turn("user", "a")],
        chosen=[turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")],
        rejected=[turn("assistant", "e")],
    )
    with pytest.raises(DataError, match="chosen holds a turn of role user"):
        pair_row(pair, encoder)


def test_what_is_prepared_is_what_is_asked_for(tiny_tokenizer: Any) -> None:
    records = [Demonstration(messages=TALK), Prompt(prompt=TALK[:1])]
    plain, prepared = (encoder_for(tiny_tokenizer, installed("qwen3")) for _ in range(2))
    prepared.prepare(records)
    first = records[0]
    assert isinstance(first, Demonstration)
    assert prepared.encode_demonstration(first, "completion") == plain.encode_demonstration(
        first, "completion"
    )
