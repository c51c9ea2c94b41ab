"""Build the input of a chat template: messages with all their keys, and further variables.

Templates disagree on forms. Some want a text as a list of parts; some want a call's arguments as an
object, some as JSON text; some want a turn that only calls tools without content. `Forms` states
what a template takes, and `Encoder` finds it out by rendering.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from json.encoder import encode_basestring_ascii as as_json_text
from typing import Any, Literal

from alignkit.data.records import TEMPLATE_KEYS, Message, Record
from alignkit.errors import DataError

# Keys of a message that a template may read, besides role and content.
MESSAGE_KEYS = ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")
OURS = {"messages", "add_generation_prompt", "continue_final_message", *TEMPLATE_KEYS}


@dataclass(frozen=True)
class TemplateContext:
    """What a template receives besides messages, as a JSON object; equal ones compare equal."""

    variables: str = "{}"

    @classmethod
    def of(cls, record: Record) -> TemplateContext:
        """Collect the tools, documents and further variables of a record."""
        given = {name: getattr(record, name, None) for name in TEMPLATE_KEYS}
        if not any(value is not None for value in given.values()):
            return NOTHING
        further = given.pop("chat_template_kwargs") or {}
        taken = sorted(OURS & further.keys())
        if taken:
            raise DataError(
                f"chat_template_kwargs must not contain {taken[0]!r}",
                hint="Fix: messages, tools and documents are keys of the row itself",
            )
        if given["tools"] is not None:
            given["tools"] = [_wrapped(tool) for tool in given["tools"]]
        return cls(json.dumps({**further, **given}))

    def within(self, usual: str) -> str:
        """Return a render's variables as JSON: the tokenizer's own, overridden by these."""
        return _merged(usual, self.variables)


NOTHING = TemplateContext()


@lru_cache(maxsize=64)
def _merged(usual: str, further: str) -> str:
    whole = {**json.loads(usual), "tools": None, "documents": None, **json.loads(further)}
    return json.dumps(whole)


@dataclass(frozen=True)
class Forms:
    """The forms a template takes; `silent` is the content of a turn that only calls tools."""

    parts: bool = False
    arguments: Literal["object", "text"] = "object"
    silent: Literal["empty", "absent", "null"] = "empty"


# Tried in order until the template writes a call's name and arguments.
CALL_FORMS = [
    (arguments, silent)
    for arguments in ("object", "text")
    for silent in ("empty", "absent", "null")
]


def as_given(message: Message, forms: Forms) -> str:
    """Return the message as the template receives it, as JSON. DataError for bad arguments."""
    if not forms.parts and not any(getattr(message, key) for key in MESSAGE_KEYS):
        # Most messages are text only; this takes a tenth of the time of `dumps`.
        return f'{{"role": "{message.role}", "content": {as_json_text(message.content)}}}'
    given: dict[str, Any] = {"role": message.role, "content": _content(message.content, forms)}
    for key in MESSAGE_KEYS:
        value = getattr(message, key)
        if value is not None:
            given[key] = value
    if message.tool_calls:
        given["tool_calls"] = [_call(call, forms) for call in message.tool_calls]
        if not message.content and forms.silent == "null":
            given["content"] = None
        elif not message.content and forms.silent == "absent":
            del given["content"]
    return json.dumps(given)


def _content(text: str, forms: Forms) -> Any:
    return [{"type": "text", "text": text}] if forms.parts else text


def _call(call: dict[str, Any], forms: Forms) -> dict[str, Any]:
    """Return a call as `{"type": "function", "function": {"name", "arguments"}}`."""
    wrapped = _wrapped(call)
    function = wrapped.get("function")
    if not isinstance(function, dict) or "arguments" not in function:
        return wrapped
    arguments = function["arguments"]
    if forms.arguments == "object":
        arguments = _parsed(arguments)
    elif not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**wrapped, "function": {**function, "arguments": arguments}}


def _parsed(arguments: Any) -> Any:
    """Return arguments as an object: OpenAI's data hold JSON text, templates want a mapping."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments) if arguments.strip() else {}
    except ValueError as error:
        raise DataError(
            f"the arguments of a tool call are not JSON: {error}",
            hint='Fix: give an object, or its text such as "{\\"city\\": \\"Oslo\\"}"',
        ) from None


def _wrapped(function: dict[str, Any]) -> dict[str, Any]:
    """Put a bare function into the envelope in which templates look for it."""
    if "function" in function or "name" not in function:
        return function
    envelope = {key: value for key, value in function.items() if key in ("id", "type")}
    inner = {key: value for key, value in function.items() if key not in ("id", "type")}
    return {"type": "function", **envelope, "function": inner}
