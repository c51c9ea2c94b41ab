"""Try a model's chat templates on several conversations before anything is loaded.

A template that behaves here may not on the data, so every later render has the same limits
(`alignkit.model.rendering`). This check reports early, and names the file.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from alignkit.errors import ModelError
from alignkit.model.files import EMBEDDED, read_json
from alignkit.model.rendering import HINT, RENDERER, TemplateRefusal, job

MAX_TEMPLATE = 64 << 10
FURTHER = "additional_chat_templates"
USUAL = '{"bos_token": "<s>", "eos_token": "</s>", "tools": null, "documents": null}'


def _turns(*contents: str) -> list[dict[str, Any]]:
    """Return turns of a user and an assistant, alternating."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


CALL = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "find_place", "arguments": {"name": "Paris"}},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "find_place",
        "description": "Looks a place up.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}},
    },
}
PLAIN = _turns("What is the capital of France?", "Paris.", "And of Italy?")
# Conversations with further variables: templates have a branch for each of these.
EXAMPLES: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
    (PLAIN, {}),
    ([{"role": "system", "content": "Be brief."}, *PLAIN], {}),
    (_turns("One?", "Two.", "Three?", "Four.", "Five?"), {"tools": [TOOL]}),
    (
        [
            *PLAIN,
            {"role": "assistant", "content": "", "tool_calls": [CALL], "thinking": "Look it up."},
            {"role": "tool", "tool_call_id": "call12345", "name": "find_place", "content": "{}"},
        ],
        {"tools": [TOOL], "documents": [{"title": "Paris", "text": "A city."}]},
    ),
]


def templates_of(model: Path, given: str | None) -> list[tuple[str, str]]:
    """Return every template that may be used, with its file; empty when there is none."""
    if given:
        return [(_read_limited(Path(given)), given)]
    files = [model / "chat_template.jinja", *sorted((model / FURTHER).glob("*.jinja"))]
    templates = [(_read_limited(path), str(path)) for path in files if path.is_file()]
    for path in (model / "chat_template.json", model / "tokenizer_config.json"):
        if path.is_file():
            texts = _texts(read_json(path).get("chat_template"))
            templates += [(text, str(path)) for text in texts]
    return templates


def check_templates(model: Path, given: str | None) -> None:
    """Try all templates of a model. Raises ModelError for a harmful one, or when there is none.

    The embedded model's template is our own.
    """
    if model in EMBEDDED.values() and not given:
        return
    templates = templates_of(model, given)
    if not templates:
        raise ModelError(
            "the tokenizer has no chat template",
            where=str(model),
            hint="Add chat_template: FILE.jinja to the backbone of the recipe, or --chat-template",
        )
    for text, where in templates:
        check_template(text, where)


@cache
def check_template(text: str, where: str) -> None:
    """Render short conversations within limits. Raises ModelError with what went wrong.

    A template may refuse conversations, and may fail at tools and system turns it does not support.
    """
    if len(text) > MAX_TEMPLATE:
        raise ModelError(
            f"a chat template of {len(text):,} characters; at most 65,536 are allowed", where=where
        )
    for messages, further in EXAMPLES:
        variables = json.dumps({**json.loads(USUAL), **further})
        for prompts in (True, False):
            example = job(map(json.dumps, messages), variables, add_generation_prompt=prompts)
            try:
                RENDERER.render(text, [example])
            except ModelError as error:
                error.where = error.where or where
                raise
            except TemplateRefusal as error:
                if messages is PLAIN and not error.deliberate:
                    raise ModelError(
                        f"the chat template cannot be rendered: {error.message:.200}",
                        where=where,
                        hint=HINT,
                    ) from None


def _texts(value: Any) -> list[str]:
    """Return one template, or those of a list of names and templates."""
    if isinstance(value, str):
        return [value]
    entries = value if isinstance(value, list) else []
    texts = [entry.get("template") for entry in entries if isinstance(entry, dict)]
    return [text for text in texts if isinstance(text, str)]


def _read_limited(path: Path) -> str:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ModelError(f"no chat template: {error.strerror}", where=str(path)) from None
    with stream:
        return stream.read(4 * MAX_TEMPLATE + 1).decode("utf-8", errors="replace")
