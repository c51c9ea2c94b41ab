"""Templates are programs: rendered as by transformers, within limits, on a fixed day."""

from __future__ import annotations

import copy
import json
import os
import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from alignkit.data.chat import Encoder
from alignkit.data.records import Message, Prompt
from alignkit.data.template_input import TemplateContext
from alignkit.errors import DataError, ModelError
from alignkit.model.rendering import RENDERER, Renderer, TemplateRefusal, dated, job, rendering_date
from alignkit.model.template_check import check_template

FEATURES = """
{%- set ns = namespace(n=0) -%}
{%- macro shout(text) -%}{{ text | upper }}{%- endmacro -%}
{%- for m in messages if m.role != 'system' -%}
    {%- if loop.index0 == 3 %}{% break %}{% endif -%}
    {%- set ns.n = ns.n + 1 -%}
    {% generation %}[{{ ns.n }} {{ shout(m.content) }} {{ m | tojson }}]{% endgeneration %}
{%- endfor -%}
{{ dict(a=1) | tojson(indent=2) }}|{{ tools }}|{{ documents }}|{{ flag is defined }}|{{ bos_token }}
{{ 'é' | tojson }} {{ messages[0].content.split('e')[-1] | trim }} {{ messages | length }}
"""
TURNS = [
    {"role": "system", "content": "Bé brief"},
    {"role": "user", "content": "Hi \u2028 there"},
    {"role": "assistant", "content": "Yes", "thinking": "hm"},
]


def rendered(template: str, turns: list[dict[str, Any]], **variables: Any) -> str:
    wanted = job(map(json.dumps, turns), json.dumps(variables), add_generation_prompt=False)
    return RENDERER.render(template, [wanted])[0]


def test_what_a_template_makes_is_what_transformers_makes(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    theirs = tokenizer.apply_chat_template(
        TURNS, chat_template=FEATURES, tokenize=False, flag=True, tools=None
    )
    ours = rendered(FEATURES, TURNS, bos_token="<s>", flag=True, tools=None, documents=None)
    assert ours == theirs
    assert "HI" in ours


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ namespace(_x=1) }}",
        "{{ dict.__init__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_the_sandbox_keeps_a_template_from_what_is_behind(template: str) -> None:
    try:
        text = rendered(template, TURNS)
    except TemplateRefusal as error:
        text = error.message
    assert "Security" in text or text == ""  # undefined, which renders as nothing


# Harmless on a plain question: each waits for what the data may hold.
TRAPS = {
    "content": "{% if 'Now' in messages[0].content %}BOMB{% endif %}",
    "tools": "{% if tools is defined and tools %}BOMB{% endif %}",
    "turns": "{% if messages | length > 9 %}BOMB{% endif %}",
    "kwargs": "{% if enable_thinking is defined %}BOMB{% endif %}",
}
BOMBS = {
    "power": "{{ 10 ** (messages | length * 10 ** 9) }}",
    "memory": "{% set n = namespace(s='x' * 99) %}{% for i in range(40) %}"
    "{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "length": "{{ 'x' * 40000000 }}",
}
SPRUNG: dict[str, tuple[list[Message], dict[str, Any]]] = {
    "content": ([Message(role="user", content="Now!")], {}),
    "tools": ([Message(role="user", content="Hi")], {"tools": [{"name": "f"}]}),
    "turns": ([Message(role="user", content=str(n)) for n in range(10)], {}),
    "kwargs": (
        [Message(role="user", content="Hi")],
        {"chat_template_kwargs": {"enable_thinking": True}},
    ),
}


@pytest.mark.parametrize(("trap", "bomb"), [
    ("content", "power"), ("tools", "memory"), ("turns", "length"), ("kwargs", "memory"),
])  # fmt: skip
def test_limits_hold_at_every_render(trap: str, bomb: str, tiny_tokenizer: Any) -> None:
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = TRAPS[trap].replace("BOMB", BOMBS[bomb]) + plain
    encoder = Encoder(tokenizer)
    assert encoder.prompt_text([Message(role="user", content="Hi")]) == "Hi"
    messages, keys = SPRUNG[trap]
    began = time.monotonic()
    with pytest.raises(ModelError, match="the chat template (takes more than|makes a text)"):
        encoder.prompt_ids(messages, context=TemplateContext.of(Prompt(prompt=messages, **keys)))
    assert time.monotonic() - began < 60
    # The process that rendered is gone; the next question starts another.
    assert encoder.prompt_text([Message(role="user", content="Ho")]) == "Ho"


@pytest.mark.parametrize(
    "condition", ["tools", "messages[0].role == 'system'", "messages | length > 4",
                  "messages[-1].role == 'tool'", "documents"],
)  # fmt: skip
def test_a_template_is_tried_with_tools_system_turns_and_documents(condition: str) -> None:
    text = f"{{% if {condition} %}}{BOMBS['length']}{{% endif %}}ok"
    with pytest.raises(ModelError, match=r"trap\.jinja: the chat template makes a text"):
        check_template(text, "trap.jinja")


def test_a_template_that_fails_on_tools_alone_is_usable() -> None:
    check_template("{{ raise_exception('no tools') if tools else 'ok' }}", "t.jinja")
    check_template("{{ tools[0].nothing.at.all if tools else 'ok' }}", "t.jinja")


def test_a_renderer_survives_a_fork() -> None:
    mine = Renderer()
    wanted = job(map(json.dumps, TURNS), "{}", add_generation_prompt=True)
    assert mine.render("a{{ messages | length }}", [wanted]) == ["a3"]
    child = os.fork()
    if not child:
        same = mine.render("b{{ messages | length }}", [wanted]) == ["b3"]
        mine.close()
        os._exit(0 if same else 1)
    assert mine.render("c{{ messages | length }}", [wanted]) == ["c3"]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    mine.close()


def test_arguments_of_two_jobs_do_not_mix() -> None:
    jobs = [
        job([json.dumps({"role": "user", "content": word})], "{}", add_generation_prompt=prompt)
        for word in ("one", "two")
        for prompt in (True, False)
    ]
    text = "{{ messages[0].content }}{{ '?' if add_generation_prompt }}"
    assert RENDERER.render(text, jobs) == ["one?", "one", "two?", "two"]


# --- the date ----------------------------------------------------------------------------------

DATED = "{{ strftime_now('%d %b %Y %H:%M') }}"


def test_a_date_is_the_day_that_was_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    with dated(date(2024, 7, 26)):
        assert rendered(DATED, TURNS) == "26 Jul 2024 00:00"
        with dated(None):
            assert rendering_date() == datetime(2024, 7, 26)
    assert rendering_date().date() == date.today()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert rendering_date().date() == datetime.fromtimestamp(1700000000, UTC).date()
    assert rendering_date(date(2020, 1, 2)).date() == date(2020, 1, 2)


def test_the_tokens_of_a_frozen_day_do_not_change(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = DATED + "{{ messages[0].content }}"
    asked = [Message(role="user", content="Hi")]
    with dated(date(2024, 7, 26)):
        first = Encoder(tokenizer).prompt_ids(asked)
    with dated(date(2024, 7, 27)):
        other = Encoder(tokenizer).prompt_ids(asked)
    tokenizer.template_date = date(2024, 7, 26)  # as of a finished run
    assert Encoder(tokenizer).prompt_ids(asked) == first != other


def test_reserved_variables_are_refused() -> None:
    record = Prompt(prompt=[Message(role="user", content="x")],
                    chat_template_kwargs={"messages": []})  # fmt: skip
    with pytest.raises(DataError, match="chat_template_kwargs must not contain 'messages'"):
        TemplateContext.of(record)


def test_the_worker_needs_nothing_of_the_package() -> None:
    import alignkit.model.template_worker as worker

    source = Path(worker.__file__).read_text(encoding="utf-8")
    assert "import alignkit" not in source
    assert "from alignkit" not in source
