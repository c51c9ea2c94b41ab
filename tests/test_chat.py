"""Rendering once: prompts are prefixes, targets are completions up to their stop token."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.data.chat import Encoder
from alignkit.data.records import Demonstration, Message
from alignkit.errors import DataError, ModelError


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
    with pytest.raises(DataError, match="renders the prompt differently"):
        Encoder(odd).completion_ids([turn("user", "a")], [turn("assistant", "b")])


def test_a_template_without_a_stop_token_gets_eos(tiny_tokenizer: Any) -> None:
    plain = copy.deepcopy(tiny_tokenizer)
    plain.chat_template = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    ids = Encoder(plain).completion_ids([turn("user", "a")], [turn("assistant", "b")])
    assert plain.decode(ids) == "b|<|im_end|>"
