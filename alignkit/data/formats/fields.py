"""Build the readers and writers of all formats from fields, messages, roles and prompts.

A reader turns a row into the fields of a record: plain dictionaries, which the record types
validate in one place. A writer turns a record into a row. Both raise RowError and know no file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeGuard

from alignkit.data.formats.literals import json_list
from alignkit.data.formats.template_keys import (
    REASONING,
    call_text,
    calls_as_openai,
    calls_of,
    spoken_calls,
)
from alignkit.data.records import Message, Preference
from alignkit.errors import did_you_mean
from alignkit.files.json_text import type_name
from alignkit.files.problems import RowError

if TYPE_CHECKING:
    from alignkit.files.rows import Row as FileRow

Row = Mapping[str, Any]
Fields = dict[str, Any]
Turn = dict[str, Any]
Reader = Callable[[Row], Fields | list[Fields]]
Writer = Callable[[Any], Fields]
Gatherer = Callable[[Iterator["FileRow"]], Iterator["FileRow"]]


@dataclass(frozen=True)
class Format:
    """One format of rows: the keys it requires and understands, its reader and its writer.

    `sample` names a field that may be text or messages; a file must not mix the two. `merge` joins
    the rows written for the records of one row (of several annotators, say) into one again.
    `places` are template keys (such as tools) that the writer puts in their place; the others
    become columns. `asks` names the prompt's column, which other columns may join
    (`prompt_columns`). `reads` returns the columns of a row that are read, if `keys` and `also` do
    not tell. `gather` builds rows of the format `gathered` from rows that mean something only
    together.
    """

    name: str
    kind: str
    keys: frozenset[str]
    read: Reader
    write: Writer
    also: frozenset[str] = frozenset()
    when: Callable[[Row], bool] | None = field(default=None, repr=False)
    sample: str | None = None
    about: str = ""
    merge: Callable[[Sequence[Fields]], Fields] | None = field(default=None, repr=False)
    places: frozenset[str] = frozenset()
    asks: str | None = None
    reads: Callable[[Row], frozenset[str]] | None = field(default=None, repr=False)
    inside: str | None = None
    gather: Gatherer | None = field(default=None, repr=False)
    gathered: str = ""

    @cached_property
    def all_keys(self) -> frozenset[str]:
        """Return the keys it requires or understands, in any row."""
        return self.keys | self.also

    def own(self, row: Row) -> frozenset[str]:
        """Return the keys of this row that its reader reads."""
        return self.all_keys if self.reads is None else self.reads(row)

    def fits(self, row: Row) -> bool:
        """Return whether the row looks like this format."""
        return self.keys <= row.keys() and (self.when is None or self.when(row))


def keys(*names: str) -> frozenset[str]:
    """Return the set of these keys."""
    return frozenset(names)


# --- fields -------------------------------------------------------------------------------------


def missing(row: Row, wanted: frozenset[str]) -> RowError:
    """Build `no "rejected". Found: prompt, choosen. Did you mean "chosen"?`"""
    absent = sorted(wanted - row.keys())
    misspelled = {
        name: key
        for name in absent
        for key in row
        # `question_id` is not a slip for `question`, nor `id` one for `kind`.
        if key not in wanted and not key.startswith(name) and _nearly(key, name)
    }
    if not absent:  # they are present but not text
        name = min(wanted)
        return not_text(row[name], name)
    absent.sort(key=lambda name: name in misspelled)
    message = f'no "{absent[0]}". Found: {", ".join(list(row)[:12]) or "no keys"}'
    if misspelled:
        message += f'. Did you mean "{next(iter(misspelled))}"?'
    return RowError(
        "missing-key",
        message,
        "name the column with --map, e.g. --map chosen=answer_a",
        field=absent[0],
    )


def _nearly(key: str, name: str) -> bool:
    return SequenceMatcher(None, key, name).ratio() > 0.75


def text(row: Row, key: str) -> str:
    """Return the text under `key`; anything but text is an error that names the key."""
    value = row[key]
    if type(value) is not str:
        raise not_text(value, key)
    return value


def optional_text(row: Row, key: str) -> str:
    """Return the text under `key`, empty if it is absent or null."""
    return "" if row.get(key) is None else text(row, key)


def not_text(value: object, key: str) -> RowError:
    """Build `"chosen" is null, expected text`."""
    return RowError(
        "type",
        f'"{key}" is {_with_article(value)}, expected text',
        "write text, or remove the row",
        field=key,
    )


def expected(value: object, what: str, key: str) -> RowError:
    """Build `"turns" is text, expected an array of texts`."""
    return RowError(
        "type",
        f'"{key}" is {_with_article(value)}, expected {what}',
        "correct or remove the row",
        field=key,
    )


def _with_article(value: object) -> str:
    name = type_name(value)
    return {
        "object": "an object",
        "array": "an array",
        "number": "a number",
        "boolean": "a boolean",
    }.get(name, name)


def objects(row: Row, key: str) -> list[dict[str, Any]]:
    """Return the list of objects under `key`."""
    items = json_list(row[key])
    if items is None or any(type(item) is not dict for item in items):
        raise expected(row[key], "an array of objects", key)
    return items


def texts(row: Row, key: str) -> list[str]:
    """Return the list of texts under `key`."""
    items = json_list(row[key])
    if items is None:
        raise expected(row[key], "an array of texts", key)
    for position, item in enumerate(items):
        if type(item) is not str:
            raise not_text(item, f"{key}[{position}]")
    return items


def boolean(row: Row, key: str) -> bool:
    """Return true or false, also as tables write it: 1, 0, "1", "0", "true", "false"."""
    value = row[key]
    if isinstance(value, bool):
        return value
    if isinstance(value, int | str) and str(value).strip().lower() in BOOLEANS:
        return BOOLEANS[str(value).strip().lower()]
    raise expected(value, "true or false", key)


BOOLEANS = {"1": True, "0": False, "true": True, "false": False}


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a JSON value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_number(value: object) -> float | None:
    """Return a finite number, also as tables write it; None for anything else."""
    if is_number(value):
        number = float(value)
    elif isinstance(value, str) and value[:20].strip()[:1] in tuple("+-.0123456789"):
        try:
            number = float(value)
        except ValueError:
            return None
    else:
        return None
    return number if isfinite(number) else None


def one_of(row: Row, key: str, choices: Mapping[Any, Any]) -> Any:
    """Return the choice that the value under `key` stands for."""
    value = row[key]
    if (value is None or isinstance(value, str | int | float)) and value in choices:
        return choices[value]
    number = as_number(value)  # tables write numbers as text
    if number is not None and number in choices:
        return choices[number]
    raise RowError(
        "value",
        f'"{key}" is {value!r:.40}, expected one of {", ".join(map(str, choices))}',
        "correct or remove the row",
        field=key,
    )


# --- messages -----------------------------------------------------------------------------------

ROLES = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "developer": "system",
    "function": "tool",
    "tool_call": "assistant",
    "tool_response": "tool",
    "ipython": "tool",
}

_PLAIN = frozenset(("role", "content"))
_TOOL_FIELDS = ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")


def user(content: str) -> Turn:
    """Return a user turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Turn:
    """Return an assistant turn."""
    return {"role": "assistant", "content": content}


def untrained(turn: Turn) -> Turn:
    """Mark an assistant turn as context, not a target; leave other turns."""
    return {**turn, "train": False} if turn["role"] == "assistant" else turn


def system_turn(content: str) -> list[Turn]:
    """Return a system turn, or none if the content is empty."""
    return [{"role": "system", "content": content}] if content else []


def turns(value: Any, key: str) -> list[Turn]:
    """Read messages `{role, content}`; unknown roles and wrong types are errors."""
    if type(value) is str:
        value = messages_in(value, key) or value
    if type(value) is not list:
        raise expected(value, "an array of messages", key)
    return [
        item
        if type(item) is dict
        and item.keys() == _PLAIN
        and item["role"] in _OURS
        and type(item["content"]) is str
        else _turn(item, f"{key}[{position}]")
        for position, item in enumerate(value)
    ]


_OURS = ("user", "assistant", "system", "tool")
# How a list of messages begins if a table wrote it as text: by Python, NumPy or JSON.
_WRITTEN = re.compile(
    r"""\s*(?:(?:np\.|numpy\.)?array\(\s*)?\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:"""
)


def messages_in(text: str, key: str) -> list[Any] | None:
    """Return the messages that a cell holds as text; None if it is ordinary text.

    Raises RowError for a printed list that cannot be read back, such as NumPy's.
    """
    if _WRITTEN.match(text) is None:
        return None
    items = json_list(text)
    if items is None:
        raise RowError(
            "list-as-text",
            f'"{key}" holds messages as printed text that cannot be read back',
            "write the column as JSON: json.dumps(messages) in Python",
            field=key,
        )
    return items if all(_is_message(item) for item in items) else None


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and ("role" in item or {"from", "value"} <= item.keys())


def _turn(item: Any, key: str) -> Turn:
    """Read one message of OpenAI's shape: content may be parts, or null next to tool calls."""
    if type(item) is not dict:
        raise expected(item, "a message {role, content}", key)
    if "role" not in item:
        if {"from", "value"} <= item.keys():
            return shared(item, key)
        raise missing(item, _PLAIN).within(key)
    role = ROLES.get(item["role"]) if isinstance(item["role"], str) else None
    if role is None:
        raise unknown_role(item["role"], ROLES, f"{key}.role")
    turn: Turn = {"role": role, "content": _content(item, key)}
    extra = {name: item[name] for name in item.keys() - _PLAIN}
    _further(turn, extra)
    if item["role"] in CALLING:
        _speaks_calls(turn)
    if role != item["role"]:
        extra["role"] = item["role"]
    if extra:
        turn["extra"] = extra
    return turn


CALLING = ("function_call", "tool_call")


def _speaks_calls(turn: Turn) -> bool:
    """Convert a turn that is only the JSON of tool calls; return whether it was."""
    calls = None if "tool_calls" in turn else spoken_calls(turn["content"])
    if calls is not None:
        turn["tool_calls"], turn["content"] = calls, ""
    return calls is not None


def _further(turn: Turn, extra: Fields) -> None:
    """Move what templates read, and whether the turn is trained, out of `extra`."""
    for name, usual in ALIASES.items():
        if name in extra and usual not in extra and (value := _alias(name, extra[name])):
            del extra[name]
            extra[usual] = value
    for name in _TOOL_FIELDS:
        value = extra.get(name)
        if name == "tool_calls" and value is not None:
            value = calls_of(value) or value
        if value is not None and (type(value) is str or name not in REASONING):
            turn[name] = value
            del extra[name]
    if not TRAINED_BY.keys().isdisjoint(extra):
        _weigh(turn, extra)


# Older and other names -> the name that templates use.
ALIASES = {"function_call": "tool_calls", "reasoning": "reasoning_content"}


def _alias(name: str, value: Any) -> Any:
    if name == "function_call":
        return calls_of(value) if isinstance(value, dict | str) and value else None
    return value if isinstance(value, str) else None


# --- which turns are trained --------------------------------------------------------------------

# Keys of a turn that state whether it is trained -> their value if it is.
TRAINED_BY = {
    "weight": True,
    "loss_weight": True,
    "loss_scale": True,
    "loss": True,
    "train": True,
    "training": True,
    "trainable": True,
    "train_turn": True,
    "train_on_turn": True,
    "masked": False,
}


def _weigh(turn: Turn, extra: Fields) -> None:
    """Set `train` by the keys in `extra` that state it in a known form; any no decides.

    Only assistant turns are ever trained, so a no on another turn carries no information.
    """
    verdicts = []
    for key, trained in TRAINED_BY.items():
        verdict = yes_or_no(extra[key]) if key in extra else None
        if verdict is not None:
            del extra[key]
            verdicts.append(verdict is trained)
    if verdicts and (turn["role"] == "assistant" or all(verdicts)):
        turn["train"] = all(verdicts)


def yes_or_no(value: Any) -> bool | None:
    """Return whether a weight is one or zero, also as tables write it; None for anything else."""
    if isinstance(value, str):
        return _WEIGHTS.get(value.strip().lower())
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    return None


_WEIGHTS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


def unknown_role(role: object, roles: Mapping[str, str], key: str) -> RowError:
    """Build `unknown role "bot"`, with the known roles."""
    guess = did_you_mean(role, roles) if isinstance(role, str) else ""
    return RowError(
        "role",
        f"unknown role {role!r:.40}{guess}".replace("'", '"'),
        f"use one of {', '.join(roles)}",
        field=key,
    )


# --- contents -----------------------------------------------------------------------------------


def _content(item: Row, key: str) -> str:
    content = item.get("content")
    if type(content) is str:
        return content
    if content is None and any(item.get(name) for name in SPEAK_WITHOUT_CONTENT):
        return ""
    if type(content) is list:
        return "".join(_part(part, f"{key}.content[{i}]") for i, part in enumerate(content))
    if "content" not in item:
        raise missing(item, _PLAIN).within(key)
    if type(content) is dict and ROLES.get(item["role"]) == "tool":
        return json.dumps(content, ensure_ascii=False)  # what a tool returned, as models read it
    raise not_text(content, f"{key}.content")


SPEAK_WITHOUT_CONTENT = ("tool_calls", "function_call", "reasoning_content", "thinking", "refusal")
TEXT_PARTS = ("text", "input_text", "output_text")


def _part(part: Any, key: str) -> str:
    """Return the text of a part: OpenAI's {type: text, text}, LLaMA-Factory's {type, value}."""
    if type(part) is dict and part.get("type") in TEXT_PARTS:
        for name in ("text", "value"):
            if type(part.get(name)) is str:
                return str(part[name])
    raise RowError("type", f'"{key}" is not a text part', "keep text only", field=key)


# --- ShareGPT -----------------------------------------------------------------------------------

FROM = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "user": "user",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function_response": "tool",
    "tool_call": "assistant",
    "tool_response": "tool",
}
TO = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def shared(item: Any, key: str) -> Turn:
    """Read one ShareGPT turn {from, value}; keep a tag that we would write differently."""
    if type(item) is not dict:
        raise expected(item, "a turn {from, value}", key)
    if "from" not in item or "value" not in item:
        if "role" in item:
            return turns([item], key)[0]
        raise missing(item, keys("from", "value")).within(key)
    tag = item["from"]
    role = FROM.get(tag) if isinstance(tag, str) else None
    if role is None:
        raise unknown_role(tag, FROM, f"{key}.from")
    value = item["value"]
    if value is None and any(item.get(name) for name in SPEAK_WITHOUT_CONTENT):
        value = ""
    if type(value) is not str:
        raise not_text(value, f"{key}.value")
    turn: Turn = {"role": role, "content": value}
    extra = {name: item[name] for name in item if name not in ("from", "value")}
    if extra:
        _further(turn, extra)
    calls = tag in CALLING and _speaks_calls(turn)
    if tag != ("function_call" if calls else TO[role]):
        extra["from"] = tag
    if extra:
        turn["extra"] = extra
    return turn


def shared_rows(messages: Sequence[Message]) -> list[Turn]:
    """Write messages as ShareGPT turns, with `weight` if a turn states whether it is trained."""
    return [_shared_row(message) for message in messages]


def _shared_row(message: Message) -> Turn:
    extra = dict(message.extra)
    tag, value = extra.pop("from", TO[message.role]), message.content
    tool_fields = _tool_fields(message)
    spoken = call_text(message.tool_calls) if message.tool_calls and not value else None
    if spoken is not None and (tag in CALLING or "from" not in message.extra):
        # LLaMA-Factory's form, which cannot hold a call's id.
        tag, value = (tag if tag in CALLING else "function_call"), spoken
        del tool_fields["tool_calls"]
    row = {"from": tag, "value": value, **tool_fields, **extra}
    return row if message.train is None else row | {"weight": int(message.train)}


# --- sides --------------------------------------------------------------------------------------


def either(value: Any, key: str, role: str) -> list[Turn]:
    """Read text as one turn of `role`, or messages, also if a table wrote them as text.

    A column that mixes both is reported by whoever sees more than one row.
    """
    if type(value) is not str:
        return turns(value, key)
    messages = messages_in(value, key) if "{" in value[:40] else None
    return [{"role": role, "content": value}] if messages is None else turns(messages, key)


def split_completion(conversation: list[Turn], key: str) -> tuple[list[Turn], list[Turn]]:
    """Return (prompt, completion): the last turn is the completion and must be an assistant's."""
    if not conversation or conversation[-1]["role"] != "assistant":
        raise RowError(
            "ends-with-user",
            f'"{key}" does not end with an assistant turn',
            "end the conversation with an assistant turn, or remove the row",
            field=key,
        )
    return conversation[:-1], conversation[-1:]


def split_sides(chosen: list[Turn], rejected: list[Turn]) -> Fields:
    """Return the preference between two conversations that begin alike.

    The prompt is what both share, cut back to a turn boundary before a completion. If the two
    were written for different prompts, each side keeps its own.
    """
    before_chosen, answer = split_completion(chosen, "chosen")
    before_rejected, other = split_completion(rejected, "rejected")
    if before_chosen == before_rejected:
        return {"prompt": before_chosen, "chosen": answer, "rejected": other}
    shared = 0
    while (
        shared < min(len(before_chosen), len(before_rejected))
        and before_chosen[shared] == before_rejected[shared]
    ):
        shared += 1
    if _answers(chosen[shared:]) and _answers(rejected[shared:]):
        return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
    while shared and before_chosen[shared - 1]["role"] == "assistant":
        shared -= 1
    return {
        "prompt": before_chosen[:shared],
        "chosen": answer,
        "rejected": other,
        "prompt_chosen": before_chosen,
        "prompt_rejected": before_rejected,
    }


def _answers(rest: Sequence[Turn]) -> bool:
    """Return whether these turns are one completion: further assistant turns only after tools."""
    before = "user"
    for turn in rest:
        role = turn["role"]
        if role not in ("assistant", "tool") or (role == "assistant") == (before == "assistant"):
            return False
        before = role
    return bool(rest) and before == "assistant"


# --- writing ------------------------------------------------------------------------------------


def message_row(message: Message) -> Turn:
    """Write a message as {role, content} with its tool fields and its extra keys."""
    extra = dict(message.extra)
    row: Turn = {"role": extra.pop("role", message.role), "content": message.content}
    return row | _tool_fields(message) | extra


def _tool_fields(message: Message) -> Turn:
    values = ((name, getattr(message, name)) for name in _TOOL_FIELDS)
    return {name: value for name, value in values if value is not None}


def message_rows(messages: Sequence[Message]) -> list[Turn]:
    """Write messages as {role, content} objects."""
    return [message_row(message) for message in messages]


def trained_rows(messages: Sequence[Message], key: str, kind: type) -> list[Turn]:
    """Write `message_rows` with `key` on turns that state whether they are trained."""
    return [
        row if message.train is None else row | {key: kind(message.train)}
        for row, message in zip(message_rows(messages), messages, strict=True)
    ]


def openai_rows(messages: Sequence[Message]) -> list[Turn]:
    """Write messages for OpenAI's fine-tuning: `weight` 0 or 1, arguments as JSON text."""
    rows = trained_rows(messages, "weight", int)
    for row in rows:
        if row.get("tool_calls"):
            row["tool_calls"] = calls_as_openai(row["tool_calls"])
    return rows


def only_text(messages: Sequence[Message], key: str) -> str:
    """Return the text of a side that must be a single turn; plain text cannot hold more."""
    if len(messages) != 1:
        raise RowError(
            "shape",
            f'"{key}" has {len(messages)} turns, this format holds one text',
            "choose a format that holds messages",
            field=key,
        )
    return messages[0].content


def text_or_rows(messages: Sequence[Message], role: str) -> str | list[Turn]:
    """Return text if one plain turn of `role` holds everything, else messages."""
    if len(messages) == 1 and messages[0].role == role and _is_plain(messages[0]):
        return messages[0].content
    return message_rows(messages)


def _is_plain(message: Message) -> bool:
    return message.model_fields_set <= _PLAIN or message == Message(
        role=message.role, content=message.content
    )


def sides_of(record: Preference) -> tuple[list[Message], list[Message]]:
    """Return (prompt + chosen, prompt + rejected) of a preference, each with its own prompt."""
    before_chosen = record.prompt if record.prompt_chosen is None else record.prompt_chosen
    before_rejected = record.prompt if record.prompt_rejected is None else record.prompt_rejected
    return [*before_chosen, *record.chosen], [*before_rejected, *record.rejected]


# --- rankings -----------------------------------------------------------------------------------


def ranking(
    prompt: list[Turn],
    completions: Sequence[str],
    ranks: Sequence[int | None],
    *,
    cids: Sequence[str] | None = None,
    models: Sequence[str | None] | None = None,
    scores: Sequence[float | None] | None = None,
) -> Fields:
    """Return the fields of a ranking; a null rank leaves its completion unranked."""
    names = cids or [f"c{position}" for position in range(len(completions))]
    candidates = [
        {
            "cid": cid,
            "messages": [assistant(completion)],
            "model": models[position] if models else None,
            "score": scores[position] if scores else None,
        }
        for position, (cid, completion) in enumerate(zip(names, completions, strict=True))
    ]
    ranked = {cid: rank for cid, rank in zip(names, ranks, strict=True) if rank is not None}
    return {"prompt": prompt, "candidates": candidates, "ranks": ranked}


def ranks_by_score(scores: Sequence[float | None]) -> list[int | None]:
    """Rank the highest score 1; equal scores tie, a missing score stays unranked."""
    order = sorted({score for score in scores if score is not None}, reverse=True)
    return [None if score is None else order.index(score) + 1 for score in scores]


def only_candidate(record: Any) -> Any:
    """Return the candidate of a record that must have one; a flat format cannot hold more."""
    if len(record.candidates) != 1:
        raise RowError("shape", "this format holds one completion per row", "choose another format")
    return record.candidates[0]


def two_candidates(record: Any, what: str) -> tuple[str, str, str]:
    """Return (first text, second text, `first`|`second`|`tie`|`none`) of a ranking of two."""
    order = two_ranks(record, what)
    left, right = record.candidates
    return only_text(left.messages, left.cid), only_text(right.messages, right.cid), order


def two_ranks(record: Any, what: str) -> str:
    """Return which of a ranking's two candidates is better: `first`, `second`, `tie`, `none`."""
    if len(record.candidates) != 2:
        raise RowError(
            "shape",
            f"{len(record.candidates)} candidates, {what} holds two",
            "alignkit data pairs cuts rankings into pairs",
        )
    left, right = record.candidates
    first, second = record.ranks.get(left.cid), record.ranks.get(right.cid)
    return "none" if first is None or second is None else _order(first, second)


def _order(first: int, second: int) -> str:
    return "tie" if first == second else "first" if first < second else "second"


PAIR_RANKS: dict[str, tuple[int | None, int | None]] = {
    "first": (1, 2),
    "second": (2, 1),
    "tie": (1, 1),
    "none": (None, None),
}


def prompt_text(record: Any) -> str:
    """Return the prompt as the single user text that a plain format holds."""
    return only_text(record.prompt, "prompt")
