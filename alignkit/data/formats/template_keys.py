"""What a chat template is given beside the messages: where rows keep it and how they write it.

Tools, documents and template variables stand beside the conversation in rows of any format, often
as JSON text, since tables and typed columns hold nothing deeper.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Collection, Mapping
from typing import Any

from alignkit.data.records import TEMPLATE_KEYS, Conversation, Record, template_keys
from alignkit.files.json_text import decode
from alignkit.files.problems import RowError

Fields = dict[str, Any]

# Columns that are template variables by themselves, with the types such a variable has. `thinking`
# is DeepSeek's switch where it is true or false, and what the assistant thought where it is text.
VARIABLES: dict[str, tuple[type, ...]] = {
    "enable_thinking": (bool,),
    "thinking": (bool,),
    "preserve_thinking": (bool,),
    "clear_thinking": (bool,),
    "thinking_budget": (int,),
    "reasoning_effort": (str, int, float),
    "model_identity": (str,),
    "date_string": (str,),
    "builtin_tools": (list,),
    "tools_in_user_message": (bool,),
    "xml_tools": (list,),
    "python_tools": (list,),
}
REASONING = ("reasoning_content", "thinking")
KEYS = frozenset((*TEMPLATE_KEYS, "functions", *VARIABLES, *REASONING))
# What the template gets from elsewhere: a variable must not take its place.
RESERVED = frozenset(
    ("messages", "conversation", "tools", "documents", "add_generation_prompt", "chat_template",
     "continue_final_message", "tokenize", "chat_template_kwargs", "tokenizer_kwargs",
     "return_dict", "return_tensors", "return_assistant_tokens_mask", "padding", "truncation",
     "max_length")
)  # fmt: skip

SWITCHES = {"true": True, "false": False, "True": True, "False": False}
LONGEST_LITERAL = 1 << 20


def listed(text: str) -> list[Any] | None:
    """The list that a text spells in JSON or in Python; null when it spells none."""
    text = text.strip()
    if text[:1] != "[" or text[-1:] != "]":
        return None
    found = spelt(text)
    return found if isinstance(found, list) else None


def spelt(text: str) -> Any:
    """The value that a text spells in JSON or as a literal of Python; null when neither."""
    try:
        return decode(text.encode())
    except (RowError, UnicodeEncodeError):
        pass
    if len(text) > LONGEST_LITERAL:
        return None
    try:
        return _as_json(ast.literal_eval(text.strip()))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _as_json(value: Any) -> Any:
    """A literal as JSON has it: tuples are arrays; sets, bytes and other keys are a ValueError."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key that is no text")
        return {key: _as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inner) for inner in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError("no JSON value")


# --- reading ------------------------------------------------------------------------------------


def read_template_keys(
    row: Mapping[str, Any], unknown: Collection[str], kind: type[Record]
) -> tuple[Fields, set[str]]:
    """(tools, documents and variables of a row, the keys they were read from).

    A key whose value is no such thing is left to whoever keeps unknown keys.
    """
    if KEYS.isdisjoint(unknown) or not issubclass(kind, Conversation):
        return {}, set()
    fields: Fields = {}
    taken: set[str] = set()
    for key, name, read in READERS:
        value = read(row[key]) if key in unknown and name not in fields else None
        if value:
            fields[name] = value
            taken.add(key)
    variables = {
        key: value
        for key, types in VARIABLES.items()
        if key in unknown and (value := _variable(row[key], types)) is not None
    }
    if variables:
        given = fields.get("chat_template_kwargs", {})
        fields["chat_template_kwargs"] = variables | given
        taken |= variables.keys()
    return fields, taken


def read_reasoning(row: Mapping[str, Any], unknown: Collection[str], turn: Fields) -> set[str]:
    """Put what a column says the assistant thought into its turn; the keys it was read from."""
    taken = {
        key
        for key in REASONING
        if key in unknown and isinstance(row[key], str) and row[key].strip() and key not in turn
    }
    turn.update((key, row[key]) for key in taken)
    return taken


def _structure(value: Any) -> Any:
    return spelt(value) if isinstance(value, str) and value.strip()[:1] in ("[", "{") else value


def tools_of(value: Any) -> list[Fields] | None:
    """A list of tools as templates read it; null when it is no such list."""
    items = _structure(value)
    items = [_structure(item) for item in items] if isinstance(items, list) else None
    if not items or not all(isinstance(item, dict) for item in items):
        return None
    return [_tool(item) for item in items]


def _tool(item: Fields) -> Fields:
    """A function by itself, as older files and other services write it, as {type, function}."""
    if "function" in item or not isinstance(item.get("name"), str):
        return item
    return {
        "type": "function",
        "function": {key: value for key, value in item.items() if (key, value) != FUNCTION},
    }


FUNCTION = ("type", "function")


def _documents(value: Any) -> list[Fields] | None:
    items = _structure(value)
    if not isinstance(items, list):
        return None
    documents = [{"text": item} if isinstance(item, str) else item for item in items]
    return documents if all(isinstance(item, dict) for item in documents) else None


def _variables(value: Any) -> Fields | None:
    given = _structure(value)
    return given if isinstance(given, dict) else None


def _variable(value: Any, types: tuple[type, ...]) -> Any:
    """The value of a variable; null when it is of another type."""
    if isinstance(value, str) and bool in types:
        value = SWITCHES.get(value.strip())
    if isinstance(value, str) and list in types:
        value = _structure(value)
    if isinstance(value, bool) and bool not in types:
        return None
    return value if isinstance(value, types) and value != "" else None


READERS = (
    ("tools", "tools", tools_of),
    ("functions", "tools", tools_of),
    ("documents", "documents", _documents),
    ("chat_template_kwargs", "chat_template_kwargs", _variables),
)


def unread(record: Record) -> list[str]:
    """Keys with something for the template in them that could not be read as such."""
    return [
        key
        for key in (*TEMPLATE_KEYS, "functions")
        if key in record.extra and record.extra[key] not in (None, "", "[]", "{}", "null", [], {})
    ]


# --- tool calls ---------------------------------------------------------------------------------


def calls_of(value: Any) -> list[Fields] | None:
    """Tool calls as {type, function}, of a list, an object or JSON text; null when it is none."""
    found = _structure(value)
    items = found if isinstance(found, list) else [found]
    if not all(isinstance(item, dict) for item in items):
        return None
    return [_call(item) for item in items]


def _call(item: Fields) -> Fields:
    if "function" in item or not isinstance(item.get("name"), str):
        return item
    named = {key: item[key] for key in ("name", "arguments", "parameters") if key in item}
    if "parameters" in named and "arguments" not in named:
        named["arguments"] = named.pop("parameters")
    rest = {key: value for key, value in item.items() if key not in named and key != "parameters"}
    return {**rest, "type": "function", "function": named}


def spoken_calls(text: str) -> list[Fields] | None:
    """The calls of a turn that is nothing but JSON {name, arguments}, or a list of such."""
    found = _structure(text)
    items = found if isinstance(found, list) else [found]
    if not items or not all(
        isinstance(item, dict)
        and isinstance(item.get("name"), str)
        and item.keys() <= {"name", "arguments"}
        for item in items
    ):
        return None
    return [_call(item) for item in items]


def call_text(calls: list[Fields]) -> str | None:
    """The JSON text that `spoken_calls` reads as these; null when they hold more than it can."""
    named = [call.get("function") for call in calls]
    plain = all(
        call == {"type": "function", "function": function}
        and isinstance(function, dict)
        and function.keys() <= {"name", "arguments"}
        for call, function in zip(calls, named, strict=True)
    )
    if not plain or not calls:
        return None
    return json.dumps(named[0] if len(named) == 1 else named, ensure_ascii=False)


def calls_as_openai(calls: list[Fields]) -> list[Fields]:
    """Tool calls with their arguments as the JSON text that OpenAI asks for."""
    return [_with_text(call) for call in calls]


def _with_text(call: Fields) -> Fields:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
        return call
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


# --- writing ------------------------------------------------------------------------------------


def write_template_keys(record: Record, placed: Collection[str]) -> Fields:
    """Tools, documents and variables as columns of their own, but for those `placed` elsewhere."""
    return {key: value for key, value in template_keys(record).items() if key not in placed}
