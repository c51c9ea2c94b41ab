"""Keys of the data that a chat template never reads: told, since what is not read is not trained.

Whether a key is read shows by encoding a record with and without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from alignkit.data.chat import Encoder
from alignkit.data.records import (
    TEMPLATE_KEYS,
    Candidates,
    Demonstration,
    Message,
    Preference,
    Prompt,
    Ranking,
    Record,
)
from alignkit.data.template_input import MESSAGE_KEYS, TemplateContext
from alignkit.errors import DataError

MOST_TRIED = 20  # records with a key that are looked at before it counts as never read
SELDOM_ALONE = ("system", "tool")  # roles whose turns some templates leave out
Without = Callable[[list[Message]], list[Message]]


class UnreadKeys:
    """Collects the keys and turns of a file that leave the tokens as they are."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.reset()

    def reset(self) -> None:
        """Start anew, for the next file."""
        self.read: set[str] = set()
        self.tried: Counter[str] = Counter()
        self.files: dict[str, str] = {}

    def look(self, record: Record) -> None:
        """Try each key of the record that no record so far has shown to be read."""
        conversations = list(_conversations(record))
        if not conversations:
            return
        for name, without, given in _keys(record, conversations):
            if name in self.read or self.tried[name] >= MOST_TRIED:
                continue
            self.tried[name] += 1
            if record.source is not None:
                self.files.setdefault(name, record.source.file)
            if any(self._changes(record, turns, without, given) for turns in conversations):
                self.read.add(name)

    def lines(self) -> list[str]:
        """What was never read, one line each; starts anew for the next file."""
        found = [f"{self.files[name]}: {told}" if name in self.files else told
                 for name, told in self.findings()]  # fmt: skip
        self.reset()
        return found

    def findings(self) -> list[tuple[str, str]]:
        """The name of each key or role that was never read, and a sentence about it."""
        return [
            (name, f"the chat template never reads {name}: it is in no prompt and no answer")
            for name in self.tried
            if name not in self.read
        ]

    def _changes(
        self, record: Record, turns: list[Message], without: Without, given: TemplateContext
    ) -> bool:
        try:
            with_it = self._ids(turns, TemplateContext.of(record))
        except DataError:
            return True  # told where the record is encoded
        try:
            return with_it != self._ids(without(turns), given)
        except DataError:
            return True  # the template misses it, so it reads it

    def _ids(self, turns: list[Message], context: TemplateContext) -> list[list[int]]:
        """The ids of the conversation: with its last answer, or what an answer would follow."""
        if turns and turns[-1].role == "assistant":
            prompt, last = turns[:-1], turns[-1:]
            return [
                self.encoder.prompt_ids(prompt, context=context),
                self.encoder.completion_ids(prompt, last, context=context),
            ]
        return [self.encoder.prompt_ids(turns, context=context)]


def _keys(
    record: Record, conversations: list[list[Message]]
) -> Iterator[tuple[str, Without, TemplateContext]]:
    """Names of what a record gives the template, and how to leave each out."""
    same = TemplateContext.of(record)
    messages = [message for turns in conversations for message in turns]
    for key in MESSAGE_KEYS:
        if any(getattr(message, key) is not None for message in messages):
            yield key, lambda turns, key=key: [_less(turn, key) for turn in turns], same  # type: ignore[misc]
    for role in SELDOM_ALONE:
        if any(message.role == role for message in messages):
            yield (
                f"turns of role {role}",
                lambda turns, role=role: [turn for turn in turns if turn.role != role],  # type: ignore[misc]
                same,
            )
    for name, less in _without_variables(record):
        yield name, lambda turns: turns, TemplateContext.of(less)


def _without_variables(record: Record) -> Iterator[tuple[str, Record]]:
    for name in TEMPLATE_KEYS[:2]:
        if getattr(record, name, None):
            yield name, record.model_copy(update={name: None})
    further: dict[str, Any] = getattr(record, "chat_template_kwargs", None) or {}
    for name in further:
        rest = {key: value for key, value in further.items() if key != name}
        yield (
            f"chat_template_kwargs.{name}",
            record.model_copy(update={"chat_template_kwargs": rest}),
        )


def _less(message: Message, key: str) -> Message:
    """The message without a key. A thought goes by two names, of which one would do."""
    thoughts = ("reasoning_content", "thinking")
    names = thoughts if key in thoughts else (key,)
    return message.model_copy(update=dict.fromkeys(names))


def _conversations(record: Record) -> Iterator[list[Message]]:
    """Every conversation that a record holds; a demonstration once for each of its answers."""
    if isinstance(record, Demonstration):
        ends = [at for at, turn in enumerate(record.messages) if turn.role == "assistant"]
        if not getattr(record, "plain", False):
            yield from (record.messages[: end + 1] for end in ends)
    elif isinstance(record, Prompt):
        yield record.prompt
    elif isinstance(record, Preference):
        yield from ([*record.prompt, *side] for side in (record.chosen, record.rejected))
    elif isinstance(record, Candidates | Ranking):
        yield from ([*record.prompt, *c.messages] for c in record.candidates)
