"""Read and write what a chat template receives besides messages: tools, documents, variables.

They are columns next to the conversation in rows of any format, often as JSON text, since tables
and typed columns cannot nest deeper.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from alignkit.data.formats.literals import parse_literal
from alignkit.data.records import TEMPLATE_KEYS, Conversation, Record, template_keys

Fields = dict[str, Any]

# Columns that are template variables themselves, with the types of such a variable. `thinking` is
# DeepSeek's switch if it is true or false, and the assistant's thought if it is text.
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
# What the template receives from elsewhere: a variable must not replace it.
RESERVED = frozenset(
    ("messages", "conversation", "tools", "documents", "add_generation_prompt", "chat_template",
     "continue_final_message", "tokenize", "chat_template_kwargs", "tokenizer_kwargs",
     "return_dict", "return_tensors", "return_assistant_tokens_mask", "padding", "truncation",
     "max_length")
)  # fmt: skip

SWITCHES = {"true": True, "false": False, "True": True, "False": False}


# --- reading ------------------------------------------------------------------------------------


def read_template_keys(
    row: Mapping[str, Any], unknown: Collection[str], kind: type[Record]
) -> tuple[Fields, set[str]]:
    """Return (tools, documents and variables of a row, the keys they were read from).

    A key whose value has another form is left to whoever keeps unknown keys.
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
    """Put the thought that a column holds into the turn; return the keys it was read from."""
    taken = {
        key
        for key in REASONING
        if key in unknown and isinstance(row[key], str) and row[key].strip() and key not in turn
    }
    turn.update((key, row[key]) for key in taken)
    return taken


def _structure(value: Any) -> Any:
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        return parse_literal(value)
    return value


def tools_of(value: Any) -> list[Fields] | None:
    """Return a list of tools as templates read it; None if it is not such a list."""
    items = _structure(value)
    items = [_structure(item) for item in items] if isinstance(items, list) else None
    if not items or not all(isinstance(item, dict) for item in items):
        return None
    return [_tool(item) for item in items]


def _tool(item: Fields) -> Fields:
    """Wrap a bare function, as older files and other services write it, in {type, function}."""
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
    """Return the value of a variable; None if it is of another type."""
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
    """Return the keys meant for the template that could not be read as such."""
    return [
        key
        for key in (*TEMPLATE_KEYS, "functions")
        if key in record.extra and record.extra[key] not in (None, "", "[]", "{}", "null", [], {})
    ]


# --- tool calls ---------------------------------------------------------------------------------


def calls_of(value: Any) -> list[Fields] | None:
    """Return tool calls as {type, function}, from a list, an object or JSON text; else None."""
    value = _structure(value)
    items = value if isinstance(value, list) else [value]
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
    """Return the calls of a turn that is only JSON {name, arguments}, or a list of them."""
    value = _structure(text)
    items = value if isinstance(value, list) else [value]
    if not items or not all(
        isinstance(item, dict)
        and isinstance(item.get("name"), str)
        and item.keys() <= {"name", "arguments"}
        for item in items
    ):
        return None
    return [_call(item) for item in items]


def call_text(calls: list[Fields]) -> str | None:
    """Return the JSON text that `spoken_calls` reads as these; None if they hold more."""
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
    """Return tool calls with their arguments as JSON text, as OpenAI requires."""
    return [_with_text(call) for call in calls]


def _with_text(call: Fields) -> Fields:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
        return call
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


# --- writing ------------------------------------------------------------------------------------


def write_template_keys(record: Record, placed: Collection[str]) -> Fields:
    """Write tools, documents and variables as columns, except those `placed` elsewhere."""
    return {key: value for key, value in template_keys(record).items() if key not in placed}
