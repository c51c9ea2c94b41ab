"""Report keys of the data that a chat template never reads: they are not trained either.

Encoding a record with and without a key shows whether the template reads it.
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

MOST_TRIED = 20  # records tried before a key counts as never read
OFTEN_DROPPED = ("system", "tool")  # roles whose turns some templates drop
Without = Callable[[list[Message]], list[Message]]


class UnreadKeys:
    """Collects the keys and turns of a file that leave the tokens unchanged."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.reset()

    def reset(self) -> None:
        """Reset for the next file."""
        self.read: set[str] = set()
        self.tried: Counter[str] = Counter()
        self.files: dict[str, str] = {}

    def look(self, record: Record) -> None:
        """Try each key of the record that no earlier record has shown to be read."""
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
        """Return one line per key that was never read; reset for the next file."""
        lines = [f"{self.files[name]}: {message}" if name in self.files else message
                 for name, message in self.findings()]  # fmt: skip
        self.reset()
        return lines

    def findings(self) -> list[tuple[str, str]]:
        """Return the name of each key or role that was never read, with a message."""
        return [
            (name, f"the chat template never reads {name}: it is in no prompt and no completion")
            for name in self.tried
            if name not in self.read
        ]

    def _changes(
        self, record: Record, turns: list[Message], without: Without, given: TemplateContext
    ) -> bool:
        try:
            with_it = self._ids(turns, TemplateContext.of(record))
        except DataError:
            return True  # reported where the record is encoded
        try:
            return with_it != self._ids(without(turns), given)
        except DataError:
            return True  # the template needs it, so it reads it

    def _ids(self, turns: list[Message], context: TemplateContext) -> list[list[int]]:
        """Return the ids of a conversation: with its last completion, or of its prompt alone."""
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
    """Yield the names of what a record gives the template, with a way to remove each."""
    same = TemplateContext.of(record)
    messages = [message for turns in conversations for message in turns]
    for key in MESSAGE_KEYS:
        if any(getattr(message, key) is not None for message in messages):
            yield key, lambda turns, key=key: [_less(turn, key) for turn in turns], same  # type: ignore[misc]
    for role in OFTEN_DROPPED:
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
    """Return the message without a key; a thought has two names, of which one would do."""
    thoughts = ("reasoning_content", "thinking")
    names = thoughts if key in thoughts else (key,)
    return message.model_copy(update=dict.fromkeys(names))


def _conversations(record: Record) -> Iterator[list[Message]]:
    """Yield every conversation of a record; a demonstration once per assistant turn."""
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
