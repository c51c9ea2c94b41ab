"""Render chat templates in a process with little time and memory, and without files.

A program of its own, which `alignkit.model.rendering` starts as `python -I template_worker.py`; it
imports nothing of alignkit. A template sees and may do what transformers' `apply_chat_template`
allows, so both give the same text.

Requests and responses are JSON after four bytes of length, one response per request:
    {"template": key, "text": source or null, "date": ISO, "jobs": [variables, …]}
    {"texts": [text, …]} or {"refused": why}, if the template calls raise_exception,
    or {"failed": why} or {"limit": what}
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

CPU_SECONDS = 5.0
MEMORY_BYTES = 1 << 30
# A rendered conversation may be longer than its messages (headers, JSON escapes), up to a limit.
FREE_CHARACTERS = 1 << 20
GROWTH = 16
REASONING = ("reasoning_content", "thinking", "reasoning")


class Refused(TemplateError):
    """The template itself refuses these messages."""


class TooLong(Exception):
    """A rendered text is far longer than what went into it."""


class GenerationTag(Extension):
    """`{% generation %}` marks assistant turns for other tools; render its body as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """Render the body, as transformers does, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body", [])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return str(caller())


class PlainDict:
    """`dict(…)` without access to the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """`dict.fromkeys`."""
        return dict.fromkeys(*args)


class PlainNamespace(Namespace):
    """`namespace(…)` that refuses names with a leading underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: N805  `self` may be a template's name
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _public(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _public(name)
        super().__setitem__(name, value)


def _public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name with a leading underscore: {name!r}")


def environment(now: Callable[[str], str]) -> Environment:
    """Return filters, globals and white space as transformers sets them."""
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    sandbox.filters["tojson"] = _to_json
    sandbox.globals |= {
        "raise_exception": _refuse,
        "strftime_now": now,
        "dict": PlainDict(),
        "namespace": PlainNamespace,
    }
    return sandbox


def _refuse(message: str) -> NoReturn:
    raise Refused(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class Worker:
    """Compiles each template once, and renders requests."""

    def __init__(self) -> None:
        self.date = datetime.now()
        self.environment = environment(lambda form: self.date.strftime(form))
        self.templates: dict[str, Template] = {}

    def respond(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the rendered texts of a request, or why there are none."""
        try:
            # When the time is up the kernel ends this process, whatever it is doing.
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            self.date = datetime.fromisoformat(request["date"])
            template = self._template(request)
            return {"texts": [_render(template, job) for job in request["jobs"]]}
        except Refused as error:
            return {"refused": str(error)}
        except MemoryError:
            return {"limit": "memory"}
        except TooLong:
            return {"limit": "length"}
        except Exception as error:
            # A template is a program and may fail in any way; the caller reports the reason.
            return {"failed": f"{type(error).__name__}: {error}"[:500]}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _template(self, request: dict[str, Any]) -> Template:
        key = request["template"]
        if key not in self.templates:
            self.templates[key] = self.environment.from_string(request["text"])
        return self.templates[key]


def _render(template: Template, variables: dict[str, Any]) -> str:
    messages = [_with_reasoning(message) for message in variables["messages"]]
    text = template.render(**{**variables, "messages": messages})
    if len(text) > FREE_CHARACTERS and len(text) > GROWTH * len(json.dumps(variables)):
        raise TooLong
    return text


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Give a thought, which has several names, under all names that templates read."""
    thought = next((message[key] for key in REASONING if message.get(key) is not None), None)
    if thought is None:
        return message
    return {"thinking": thought, **message, "reasoning_content": thought}


def main() -> None:
    """Answer requests until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the process that asks
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    worker = Worker()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while len(header := source.read(4)) == 4:
        request = json.loads(source.read(int.from_bytes(header)))
        response = json.dumps(worker.respond(request)).encode()
        sink.write(len(response).to_bytes(4) + response)
        sink.flush()


if __name__ == "__main__":
    main()
