"""Columns beside a question: system prompts, earlier turns, and the text the question is about.

They belong to the prompt in every format that has a question, so they are read in one place, after
the format's own reader: a format only names the column of its question (`Format.asks`).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from alignkit.data.formats.chat import is_transcript, transcript
from alignkit.data.formats.shape import (
    FROM,
    Fields,
    Format,
    Row,
    Turn,
    assistant,
    expected,
    json_list,
    not_text,
    shared,
    system_turn,
    turns,
    user,
)
from alignkit.files.problems import RowError

# What a column is to the question -> the names it goes by, in the order they are read.
NAMES = {
    "system": ("system", "system_prompt", "system_message", "system_instruction"),
    "history": ("history", "chat_history", "conversation_history", "dialogue_history",
                "dialog_history", "previous_turns"),
    "context": ("input", "context", "contexts", "passage", "passages", "document", "documents",
                "article", "background", "knowledge"),
}  # fmt: skip
PART = {name: part for part, names in NAMES.items() for name in names}
BESIDE = frozenset(PART)
# Columns that hold a whole chat, its questions and its answers: only a system prompt joins it.
CHATS = ("messages", "conversations")


def columns(row: Row, form: Format) -> list[str]:
    """The columns of the row that belong to the format's question, in the order of the table."""
    if form.asks is None or BESIDE.isdisjoint(row):
        return []
    names = names_in(row, form.own(row))
    return [name for name in names if PART[name] == "system"] if form.asks in CHATS else names


def names_in(row: Row, taken: Container[str]) -> list[str]:
    """The columns beside a question in a row, those that are read otherwise left out."""
    return [name for name in PART if name in row and name not in taken and _joins(name, row[name])]


def claims(form: Format, name: str, value: object) -> bool:
    """Whether the format would read this column of a row as part of its question."""
    if form.asks is None or name not in PART or name in form.keys:
        return False
    return PART[name] == "system" if form.asks in CHATS else _joins(name, value)


def _joins(name: str, value: object) -> bool:
    """Objects are no context that could be written as text: they stay columns of their own."""
    if PART[name] != "context":
        return True
    return not (
        isinstance(value, dict)
        or (isinstance(value, list) and any(not isinstance(item, str) for item in value))
    )


def join(fields: Fields, row: Row, form: Format) -> None:
    """Add what stands beside the question to the prompt of `fields`."""
    names = columns(row, form)
    if names and form.asks in CHATS and "messages" in fields:
        system = [text for name in names for text in _system(row[name], name)]
        fields["messages"] = _asked(fields["messages"], system, [], [])
    elif names:
        add(fields, row, names, row.get(form.asks or ""))


def add(fields: Fields, row: Row, names: Sequence[str], asked: Any = None) -> None:
    """Add these columns of the row to the prompt of `fields`; `asked` is the question's value.

    System prompt first, then the earlier turns, then the question with its context on the next
    line, as Alpaca's instruction and input are joined. Text that the prompt holds already is not
    said twice.
    """
    parts: dict[str, list[Any]] = {"system": [], "history": [], "context": []}
    for name in names:
        part = PART[name]
        parts[part] += READERS[part](row[name], name)
    where = "messages" if "messages" in fields else "prompt"
    # A demonstration's prompt is as long as the question's column; the rest is the answer.
    end = (len(asked) if isinstance(asked, list) else 1) if where == "messages" else None
    whole = fields[where]
    prompt = _asked(whole if end is None else whole[:end], **parts)
    if end is not None:
        prompt = [_untrained(turn) for turn in prompt]
    fields[where] = prompt + ([] if end is None else whole[end:])
    for own in ("prompt_chosen", "prompt_rejected"):
        if own in fields:
            fields[own] = _asked(fields[own], **parts)


def _untrained(turn: Turn) -> Turn:
    return {**turn, "train": False} if turn["role"] == "assistant" else turn


def _asked(
    prompt: list[Turn], system: list[str], history: list[Turn], context: list[str]
) -> list[Turn]:
    """System, history, question with its context."""
    told = [turn for turn in prompt[:1] if turn["role"] == "system"]
    rest = prompt[len(told) :]
    given = "\n\n".join(text for text in dict.fromkeys(system) if text)
    if told and given and told[0]["content"].strip() != given.strip():
        raise RowError(
            "two-systems",
            "the prompt has a system turn, and a column gives another system prompt",
            "keep one of them: remove the column, or the turn",
            field="prompt",
        )
    return [*(told or system_turn(given)), *_question([*history, *rest], context)]


def _question(conversation: list[Turn], context: list[str]) -> list[Turn]:
    """The conversation with the context behind its last user turn, or as that turn."""
    said = "\n".join(turn["content"] for turn in conversation)
    new = [text for text in dict.fromkeys(context) if text and not is_said(text, said)]
    if not new:
        return conversation
    spoken = [i for i, turn in enumerate(conversation) if turn["role"] == "user"]
    if not spoken:
        return [user("\n".join(new)), *conversation]
    last = conversation[spoken[-1]]
    content = "\n".join(text for text in (last["content"], *new) if text)
    return [
        *conversation[: spoken[-1]],
        {**last, "content": content},
        *conversation[spoken[-1] + 1 :],
    ]


def is_said(text: str, said: str) -> bool:
    """Whether `said` holds the text as lines of its own, or long enough to be no accident."""
    return f"\n{text}\n" in f"\n{said}\n" or (len(text) >= LONG and text in said)


LONG = 30  # characters: the word "oak" in a question is no sign that an input "oak" was pasted in

# --- the values of these columns ----------------------------------------------------------------


def _system(value: Any, key: str) -> list[str]:
    if value is None or type(value) is str:
        return [value or ""]
    raise not_text(value, key)


def _context(value: Any, key: str) -> list[str]:
    """Text, or texts found by a search, a blank line between them."""
    if value is None or type(value) is str:
        return [value or ""]
    if type(value) is list and all(type(item) is str for item in value):
        return ["\n\n".join(value)]
    raise not_text(value, key)


def _history(value: Any, key: str) -> list[Turn]:
    """Earlier turns: [question, answer] pairs, messages, or texts in turn, the user's first."""
    if value is None or value == "":
        return []
    past = json_list(value)
    if past is None:
        if is_transcript(value):
            return transcript(value, key)
        if type(value) is str:
            return [user(value)]
        raise expected(value, "an array of [question, answer]", key)
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
            f'"{key}" holds {len(texts)} texts: who speaks first is unclear before a question',
            "write [question, answer] pairs, or messages",
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
    raise expected(item, "[question, answer]", key)


def _our_role(item: Turn) -> Turn:
    role = item["role"]
    return {**item, "role": FROM[role]} if isinstance(role, str) and role in FROM else item


READERS: dict[str, Any] = {"system": _system, "history": _history, "context": _context}
