"""Read the columns that join the prompt: system prompt, earlier turns, context.

They belong to the prompt in every format that has one, so they are read in one place, after the
format's own reader: a format only names its prompt's column (`Format.asks`).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from alignkit.data.formats.chat import is_transcript, transcript
from alignkit.data.formats.fields import (
    FROM,
    Fields,
    Format,
    Row,
    Turn,
    assistant,
    expected,
    not_text,
    shared,
    system_turn,
    turns,
    untrained,
    user,
)
from alignkit.data.formats.literals import json_list
from alignkit.files.problems import RowError

# Part of the prompt -> names of its columns, in the order they are read.
NAMES = {
    "system": ("system", "system_prompt", "system_message", "system_instruction"),
    "history": ("history", "chat_history", "conversation_history", "dialogue_history",
                "dialog_history", "previous_turns"),
    "context": ("input", "context", "contexts", "passage", "passages", "document", "documents",
                "article", "background", "knowledge"),
}  # fmt: skip
PART = {name: part for part, names in NAMES.items() for name in names}
ALL_NAMES = frozenset(PART)
# Columns that hold a whole chat, prompts and completions: only a system prompt joins it.
CHATS = ("messages", "conversations")


def columns(row: Row, form: Format) -> list[str]:
    """Return the row's columns that join the format's prompt, in the order of the table."""
    if form.asks is None or ALL_NAMES.isdisjoint(row):
        return []
    names = names_in(row, form.own(row))
    return [name for name in names if PART[name] == "system"] if form.asks in CHATS else names


def names_in(row: Row, taken: Container[str]) -> list[str]:
    """Return the columns of a row that join a prompt, except those already taken."""
    return [name for name in PART if name in row and name not in taken and _joins(name, row[name])]


def claims(form: Format, name: str, value: object) -> bool:
    """Return whether the format would read this column of a row as part of its prompt."""
    if form.asks is None or name not in PART or name in form.keys:
        return False
    return PART[name] == "system" if form.asks in CHATS else _joins(name, value)


def _joins(name: str, value: object) -> bool:
    """Return whether a value can join; objects cannot become text and stay columns."""
    if PART[name] != "context":
        return True
    return not (
        isinstance(value, dict)
        or (isinstance(value, list) and any(not isinstance(item, str) for item in value))
    )


def join(fields: Fields, row: Row, form: Format) -> None:
    """Add the columns that join the prompt to `fields`."""
    names = columns(row, form)
    if names and form.asks in CHATS and "messages" in fields:
        system = [text for name in names for text in _system(row[name], name)]
        fields["messages"] = _asked(fields["messages"], system, [], [])
    elif names:
        add(fields, row, names, row.get(form.asks or ""))


def add(fields: Fields, row: Row, names: Sequence[str], asked: Any = None) -> None:
    """Add these columns of the row to the prompt of `fields`; `asked` is the prompt's value.

    The order is system prompt, earlier turns, prompt, and context on the next line, as Alpaca joins
    instruction and input. Text that the prompt already contains is not repeated.
    """
    parts: dict[str, list[Any]] = {"system": [], "history": [], "context": []}
    for name in names:
        part = PART[name]
        parts[part] += READERS[part](row[name], name)
    where = "messages" if "messages" in fields else "prompt"
    # A demonstration's prompt is as long as the prompt's column; the rest is the completion.
    end = (len(asked) if isinstance(asked, list) else 1) if where == "messages" else None
    whole = fields[where]
    prompt = _asked(whole if end is None else whole[:end], **parts)
    if end is not None:
        prompt = [untrained(turn) for turn in prompt]
    fields[where] = prompt + ([] if end is None else whole[end:])
    for own in ("prompt_chosen", "prompt_rejected"):
        if own in fields:
            fields[own] = _asked(fields[own], **parts)


def _asked(
    prompt: list[Turn], system: list[str], history: list[Turn], context: list[str]
) -> list[Turn]:
    """Put system, history, and the prompt with its context together."""
    system_turns = [turn for turn in prompt[:1] if turn["role"] == "system"]
    rest = prompt[len(system_turns) :]
    given = "\n\n".join(text for text in dict.fromkeys(system) if text)
    if system_turns and given and system_turns[0]["content"].strip() != given.strip():
        raise RowError(
            "two-systems",
            "the prompt has a system turn, and a column holds a different system prompt",
            "keep one of them: remove the column, or the turn",
            field="prompt",
        )
    return [*(system_turns or system_turn(given)), *_question([*history, *rest], context)]


def _question(conversation: list[Turn], context: list[str]) -> list[Turn]:
    """Append the context to the last user turn, or add it as a user turn if there is none."""
    whole = "\n".join(turn["content"] for turn in conversation)
    new = [text for text in dict.fromkeys(context) if text and not contains_text(whole, text)]
    if not new:
        return conversation
    asked = [i for i, turn in enumerate(conversation) if turn["role"] == "user"]
    if not asked:
        return [user("\n".join(new)), *conversation]
    last = conversation[asked[-1]]
    content = "\n".join(text for text in (last["content"], *new) if text)
    return [
        *conversation[: asked[-1]],
        {**last, "content": content},
        *conversation[asked[-1] + 1 :],
    ]


def contains_text(whole: str, text: str) -> bool:
    """Return whether `whole` has the text as its own lines, or has a text too long for chance."""
    return f"\n{text}\n" in f"\n{whole}\n" or (len(text) >= LONG and text in whole)


LONG = 30  # characters: the word "oak" in a prompt does not mean that an input "oak" was pasted in

# --- the values of these columns ----------------------------------------------------------------


def _system(value: Any, key: str) -> list[str]:
    if value is None or type(value) is str:
        return [value or ""]
    raise not_text(value, key)


def _context(value: Any, key: str) -> list[str]:
    """Return text, or texts found by a search joined by blank lines."""
    if value is None or type(value) is str:
        return [value or ""]
    if type(value) is list and all(type(item) is str for item in value):
        return ["\n\n".join(value)]
    raise not_text(value, key)


def _history(value: Any, key: str) -> list[Turn]:
    """Read [prompt, completion] pairs, messages, or alternating texts that the user begins."""
    if value is None or value == "":
        return []
    past = json_list(value)
    if past is None:
        if is_transcript(value):
            return transcript(value, key)
        if type(value) is str:
            return [user(value)]
        raise expected(value, "an array of [prompt, completion]", key)
    if past and all(type(item) is str for item in past):
        return _in_turn(past, key)
    earlier: list[Turn] = []
    for position, item in enumerate(past):
        earlier += _exchange(item, f"{key}[{position}]")
    return earlier


def _in_turn(texts: Sequence[str], key: str) -> list[Turn]:
    if len(texts) % 2:
        raise RowError(
            "history",
            f'"{key}" holds {len(texts)} texts, an odd number: unclear who speaks first',
            "write [prompt, completion] pairs, or messages",
            field=key,
        )
    return [(assistant if i % 2 else user)(text) for i, text in enumerate(texts)]


ASKER = ("user", "human", "question", "query", "prompt", "instruction", "input")
ANSWERER = ("assistant", "bot", "gpt", "answer", "response", "output", "completion")


def _exchange(item: Any, key: str) -> list[Turn]:
    if type(item) is list and [type(side) for side in item] == [str, str]:
        return [user(item[0]), assistant(item[1])]
    if type(item) is dict and "role" in item:
        return turns([_our_role(item)], key)
    if type(item) is dict and "from" in item:
        return [shared(item, key)]
    if type(item) is dict:
        asked = next((item[name] for name in ASKER if name in item), None)
        answer = next((item[name] for name in ANSWERER if name in item), None)
        if type(asked) is str and type(answer) is str:
            return [user(asked), assistant(answer)]
    raise expected(item, "[prompt, completion]", key)


def _our_role(item: Turn) -> Turn:
    role = item["role"]
    return {**item, "role": FROM[role]} if isinstance(role, str) and role in FROM else item


READERS: dict[str, Any] = {"system": _system, "history": _history, "context": _context}
