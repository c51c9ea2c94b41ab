"""Find the tokens that end a completion, from generation_config, tokenizer and template.

generation_config.json and the tokenizer name theirs. The template's is found by rendering: it is
whatever follows a completion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from pathlib import Path
from typing import Any

from alignkit.data.records import Message
from alignkit.errors import DataError
from alignkit.model.files import read_json

ASKED, SAID, NEXT = "Quokka?", "Wombat.", "Numbat!"
CALLED, FOUND = "spot_wombat", "burrow_seven"
GENERATION, TOKENIZER, TEMPLATE = "generation_config.json", "the tokenizer", "the chat template"

Render = Callable[[Sequence[Message]], str]


@dataclass
class Stops:
    """Stop tokens with their sources; `end` closes a completion, `call_end` one that calls tools.

    `spelled` is what the template writes after a completion if none of its tokens is a stop.
    """

    end: int
    call_end: int
    spelled: str = ""
    sources: dict[int, list[str]] = field(default_factory=dict)

    def add(self, token: int, source: str) -> None:
        """Count a token as a stop."""
        sources = self.sources.setdefault(token, [])
        if source not in sources:
            sources.append(source)

    def line(self, name: Callable[[int], str]) -> str:
        """Describe in one line which tokens end a completion, with their sources."""
        stops = [f"{name(token)} ({', '.join(sources)})" for token, sources in self.sources.items()]
        ends = name(self.end)
        if self.call_end != self.end:
            ends += f", tool calls with {name(self.call_end)}"
        line = f"completions end with {ends}; generation stops at {', '.join(stops)}"
        if self.spelled:
            line += (
                f". The chat template writes {self.spelled!r} after completions, which this "
                "tokenizer reads as text, not as one token: both are trained"
            )
        return line


def find_stops(tokenizer: Any, render: Render, render_call: Render | None) -> Stops:
    """Find the stops of a tokenizer and its template.

    `render` renders a conversation, `render_call` one with tool calls (None: the template supports
    none); both raise DataError where the template refuses.
    """
    eos = int(tokenizer.eos_token_id)
    stops = Stops(eos, eos)
    for token in generation_stops(Path(str(tokenizer.name_or_path))):
        stops.add(token, GENERATION)
    stops.add(eos, TOKENIZER)
    headers_end = _plain_end(stops, tokenizer, render)
    stops.call_end = stops.end
    if render_call is not None:
        _call_end(stops, tokenizer, render_call, headers_end)
    return stops


def generation_stops(model: Path) -> list[int]:
    """Read `eos_token_id` from a model's generation_config.json: one id, a list, or nothing."""
    file = model / GENERATION
    if not file.is_file():
        return []
    value = read_json(file).get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    return [token for token in ids if type(token) is int]


def _plain_end(stops: Stops, tokenizer: Any, render: Render) -> bool:
    """Find what ends a plain completion; return True if it is the next turn's header, as in GLM-4.

    Between turns and at the very end, templates may close a completion differently: its end is
    what both share. At the very end Phi-3 adds EOS, and gpt-oss writes another token, which counts.
    """
    asked, answer = Message(role="user", content=ASKED), Message(role="assistant", content=SAID)
    try:
        last = render([asked, answer]).rpartition(SAID)[2]
        between = render([asked, answer, Message(role="user", content=NEXT)])
        between = between.rpartition(SAID)[2].partition(NEXT)[0]
    except DataError:
        return False  # what the template accepts is reported once it sees the data
    for text, place in ((commonprefix([last, between]), -1), (last, -1), (between, 0)):
        tokens = special_tokens(tokenizer, text) or added_tokens(tokenizer, text)
        if tokens:
            stops.end = tokens[place]
            stops.add(stops.end, TEMPLATE)
            return place == 0
    stops.spelled = last.strip()
    return False


def _call_end(stops: Stops, tokenizer: Any, render: Render, headers_end: bool) -> None:
    """Find what ends a completion that calls tools, if no stop found so far does."""
    asked = Message(role="user", content=ASKED)
    called = Message(role="assistant", tool_calls=[example_call()])
    result = Message(role="tool", content=NEXT, name=CALLED, tool_call_id="call12345")
    try:
        last = render([asked, called]).rpartition(FOUND)[2]
        between = render([asked, called, result]).rpartition(FOUND)[2].partition(NEXT)[0]
    except DataError:
        return
    known_ends = [token for token in added_tokens(tokenizer, last) if token in stops.sources]
    if known_ends:
        stops.call_end = known_ends[0]
        return
    further = between[len(last) :] if headers_end and between.startswith(last) else ""
    tokens = added_tokens(tokenizer, further)[:1] if further else special_tokens(tokenizer, last)
    if tokens:
        stops.call_end = tokens[-1]
        stops.add(stops.call_end, TEMPLATE)


def example_call() -> dict[str, Any]:
    """Return a call whose name and argument can be found again in a rendered text."""
    function = {"name": CALLED, "arguments": {"place": FOUND}}
    return {"id": "call12345", "type": "function", "function": function}


def example_tool() -> dict[str, Any]:
    """Return the function that `example_call` calls."""
    place = {"type": "string", "description": "Where to look."}
    parameters = {"type": "object", "properties": {"place": place}, "required": ["place"]}
    function = {"name": CALLED, "description": "Looks for one.", "parameters": parameters}
    return {"type": "function", "function": function}


def added_tokens(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text that were added to the vocabulary as wholes.

    Gemma's vocabulary has a new line among them, which ends nothing.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder
    return [int(token) for token in ids if token in added and added[token].content.strip()]


def special_tokens(tokenizer: Any, text: str) -> list[int]:
    """Return those added tokens that stand for no text."""
    added = tokenizer.added_tokens_decoder
    named = set(tokenizer.all_special_ids)
    return [t for t in added_tokens(tokenizer, text) if t in named or added[t].special]
