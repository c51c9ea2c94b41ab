"""A chat template tried out where it can do no harm: another process, short of time and memory.

Templates come with models and are programs. The sandbox that renders them keeps them from files
and code, not from looping for ever or building a text of a gigabyte; this does, before one is
rendered in the process that trains.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from alignkit.errors import ModelError
from alignkit.model_files import EMBEDDED, read_json

MAX_TEMPLATE = 64 << 10
CPU_SECONDS = 5
MEMORY_BYTES = 1 << 30
MAX_RENDERED = 1 << 20
FURTHER = "additional_chat_templates"
EXAMPLE = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
]


def templates_of(model: Path, given: str | None) -> list[tuple[str, str]]:
    """Every template that may be used, with the file it is in; empty when there is none."""
    if given:
        return [(_limited(Path(given)), given)]
    files = [model / "chat_template.jinja", *sorted((model / FURTHER).glob("*.jinja"))]
    found = [(_limited(path), str(path)) for path in files if path.is_file()]
    for path in (model / "chat_template.json", model / "tokenizer_config.json"):
        if path.is_file():
            texts = _texts(read_json(path).get("chat_template"))
            found += [(text, str(path)) for text in texts]
    return found


def check_templates(model: Path, given: str | None) -> None:
    """Try all templates of a model. Raises ModelError for a harmful one, or when there is none.

    The embedded model's is our own.
    """
    if model in EMBEDDED.values() and not given:
        return
    found = templates_of(model, given)
    if not found:
        raise ModelError(
            "the tokenizer has no chat template",
            where=str(model),
            hint="Add chat_template: FILE.jinja to the backbone of the recipe, or --chat-template",
        )
    for text, where in found:
        check_template(text, where)


@cache
def check_template(text: str, where: str) -> None:
    """Render a short conversation within limits. Raises ModelError saying what went wrong."""
    if len(text) > MAX_TEMPLATE:
        raise ModelError(
            f"a chat template of {len(text):,} characters; 65,536 at most", where=where
        )
    command = [sys.executable, "-I", "-m", "alignkit.template_check"]
    try:
        done = subprocess.run(
            command,
            input=text.encode(errors="replace"),
            capture_output=True,
            check=False,
            timeout=6 * CPU_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(_too_long(), where=where, hint=HINT) from None
    if done.returncode in OUTCOMES:
        raise ModelError(OUTCOMES[done.returncode], where=where, hint=HINT)
    if done.returncode:
        reason = done.stdout.decode(errors="replace").strip() or f"exit {done.returncode}"
        raise ModelError(f"the chat template cannot be rendered: {reason:.200}", where=where)


def _texts(value: Any) -> list[str]:
    """One template, or those of a list of names and templates."""
    if isinstance(value, str):
        return [value]
    entries = value if isinstance(value, list) else []
    texts = [entry.get("template") for entry in entries if isinstance(entry, dict)]
    return [text for text in texts if isinstance(text, str)]


def _limited(path: Path) -> str:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ModelError(f"no chat template: {error.strerror}", where=str(path)) from None
    with stream:
        return stream.read(4 * MAX_TEMPLATE + 1).decode("utf-8", errors="replace")


def _too_long() -> str:
    return f"the chat template takes more than {CPU_SECONDS} seconds for three short messages"


HINT = "Give another one with chat_template"
TOO_MUCH_MEMORY = 21
OUTCOMES = {
    -9: _too_long(),
    -24: _too_long(),
    TOO_MUCH_MEMORY: "the chat template takes more than 1 GiB for three short messages",
}


def _render_limited() -> NoReturn:
    """What the other process does: read a template from stdin and render it."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        text = sys.stdin.buffer.read().decode()
        sys.exit(TOO_MUCH_MEMORY if len(_rendered(text)) > MAX_RENDERED else 0)
    except MemoryError:
        sys.exit(TOO_MUCH_MEMORY)


def _rendered(text: str) -> str:
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Refused(TemplateError):
        """The template itself says that it does not take these messages."""

    def refuse(message: str) -> NoReturn:
        raise Refused(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    values: dict[str, Any] = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_generation_prompt": True,
    }
    try:
        return environment.from_string(text).render(messages=EXAMPLE, **values)
    except Refused:
        return ""
    except (TemplateError, TypeError, ValueError, OverflowError, RecursionError) as error:
        sys.stdout.write(f"{type(error).__name__}: {error}")
        sys.exit(1)


if __name__ == "__main__":
    _render_limited()
