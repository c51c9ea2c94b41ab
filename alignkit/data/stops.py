"""The tokens that end an answer: agreed upon between generation_config, tokenizer and template.

generation_config.json and the tokenizer name theirs. The template's is found by rendering: it is
what stands behind an answer, whatever it is called.
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
    """Stop tokens with who says so; `end` closes an answer, `call_end` one that calls tools.

    `spelled`: what the template writes behind an answer where no token of it is a stop.
    """

    end: int
    call_end: int
    spelled: str = ""
    said_by: dict[int, list[str]] = field(default_factory=dict)

    def add(self, token: int, who: str) -> None:
        """Count a token as a stop."""
        says = self.said_by.setdefault(token, [])
        if who not in says:
            says.append(who)

    def line(self, name: Callable[[int], str]) -> str:
        """Which tokens end an answer and who says so, for people."""
        told = [f"{name(token)} ({', '.join(who)})" for token, who in self.said_by.items()]
        ends = name(self.end)
        if self.call_end != self.end:
            ends += f", calls of tools with {name(self.call_end)}"
        line = f"answers end with {ends}; generation stops at {', '.join(told)}"
        if self.spelled:
            line += (
                f". The chat template writes {self.spelled!r} behind answers, which is text and no "
                "token to this tokenizer: both are trained"
            )
        return line


def find_stops(tokenizer: Any, render: Render, render_call: Render | None) -> Stops:
    """The stops of a tokenizer and its template.

    `render` makes the text of a conversation, `render_call` of one with calls (None: the template
    knows none); both raise DataError where the template refuses.
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
    """`eos_token_id` of a model's generation_config.json: one id, a list, or nothing."""
    file = model / GENERATION
    if not file.is_file():
        return []
    found = read_json(file).get("eos_token_id")
    listed = found if isinstance(found, list) else [found]
    return [token for token in listed if type(token) is int]


def _plain_end(stops: Stops, tokenizer: Any, render: Render) -> bool:
    """Find what ends a plain answer; True when it is the header of the next turn, as in GLM-4.

    Between turns and at the very end templates may close an answer differently: what both have is
    its end. Phi-3 adds EOS at the very end, gpt-oss writes another token there, which then counts.
    """
    asked, said = Message(role="user", content=ASKED), Message(role="assistant", content=SAID)
    try:
        last = render([asked, said]).rpartition(SAID)[2]
        between = render([asked, said, Message(role="user", content=NEXT)])
        between = between.rpartition(SAID)[2].partition(NEXT)[0]
    except DataError:
        return False  # what the template takes is told when it is given the data
    for text, place in ((commonprefix([last, between]), -1), (last, -1), (between, 0)):
        tokens = special_tokens(tokenizer, text) or added_tokens(tokenizer, text)
        if tokens:
            stops.end = tokens[place]
            stops.add(stops.end, TEMPLATE)
            return place == 0
    stops.spelled = last.strip()
    return False


def _call_end(stops: Stops, tokenizer: Any, render: Render, headers_end: bool) -> None:
    """Find what ends an answer that calls tools, where no stop known so far does."""
    asked = Message(role="user", content=ASKED)
    called = Message(role="assistant", tool_calls=[example_call()])
    result = Message(role="tool", content=NEXT, name=CALLED, tool_call_id="call12345")
    try:
        last = render([asked, called]).rpartition(FOUND)[2]
        between = render([asked, called, result]).rpartition(FOUND)[2].partition(NEXT)[0]
    except DataError:
        return
    known = [token for token in added_tokens(tokenizer, last) if token in stops.said_by]
    if known:
        stops.call_end = known[0]
        return
    further = between[len(last) :] if headers_end and between.startswith(last) else ""
    tokens = added_tokens(tokenizer, further)[:1] if further else special_tokens(tokenizer, last)
    if tokens:
        stops.call_end = tokens[-1]
        stops.add(stops.call_end, TEMPLATE)


def example_call() -> dict[str, Any]:
    """A call whose name and argument are found again in a rendered text."""
    function = {"name": CALLED, "arguments": {"place": FOUND}}
    return {"id": "call12345", "type": "function", "function": function}


def example_tool() -> dict[str, Any]:
    """The function that `example_call` calls."""
    place = {"type": "string", "description": "Where to look."}
    parameters = {"type": "object", "properties": {"place": place}, "required": ["place"]}
    function = {"name": CALLED, "description": "Looks for one.", "parameters": parameters}
    return {"type": "function", "function": function}


def added_tokens(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text that were added to the vocabulary as a whole.

    Gemma's vocabulary has a new line among them, which ends nothing.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder
    return [int(token) for token in ids if token in added and added[token].content.strip()]


def special_tokens(tokenizer: Any, text: str) -> list[int]:
    """Those of them that stand for no text."""
    added = tokenizer.added_tokens_decoder
    named = set(tokenizer.all_special_ids)
    return [t for t in added_tokens(tokenizer, text) if t in named or added[t].special]
