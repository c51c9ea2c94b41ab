"""What a chat template and tokenizer make of records: lengths, cuts, trained shares, EOS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alignkit.data.records import (
    Candidates,
    Demonstration,
    Label,
    Message,
    Preference,
    Prompt,
    Ranking,
    Record,
)
from alignkit.data.template_input import TemplateContext
from alignkit.errors import DataError
from alignkit.files.problems import Finding

if TYPE_CHECKING:
    from alignkit.data.chat import Encoder

FEW_TRAINED = 0.01
# Kinds of problems that one record shows to a template and its tokenizer.
TOKEN_KINDS = ("template", "overlong", "no-target")


@dataclass
class Seen:
    """Counts over the records of one file; `by_role` holds (trained, all) tokens of texts."""

    lengths: list[int] = field(default_factory=list)
    targets: int = 0
    targets_with_eos: int = 0
    trained: int = 0
    total: int = 0
    by_role: dict[str, list[int]] = field(default_factory=dict)


@dataclass
class TokenInspector:
    """Renders and tokenizes every record as training would, and says what does not fit."""

    encoder: Encoder
    max_length: int
    train_on: str = "completion"
    seen: Seen = field(default_factory=Seen)

    def __post_init__(self) -> None:
        from alignkit.data.checks.unread_keys import UnreadKeys

        self.unread = UnreadKeys(self.encoder)

    @classmethod
    def load(
        cls,
        model: str,
        *,
        max_length: int,
        train_on: str = "completion",
        chat_template: str | None = None,
    ) -> TokenInspector:
        """The inspector for a model's name, directory or run; only its tokenizer is loaded.

        `chat_template`: a file used in place of the model's own, or of the run's.
        """
        from alignkit.data.chat import Encoder
        from alignkit.model.files import find_model
        from alignkit.model.run_template import template_for
        from alignkit.model.template_check import check_templates, templates_of
        from alignkit.model.tokenizer_check import checked_tokenizer

        files = find_model(model)  # a wrong name is told before seconds go into imports
        template = template_for(files, chat_template)
        check_templates(files.path, template)
        tokenizer = checked_tokenizer(files)
        if template is not None:
            ((tokenizer.chat_template, _),) = templates_of(files.path, template)
        return cls(Encoder(tokenizer), max_length, train_on)

    def inspect(self, record: Record) -> Iterator[Finding]:
        """Template errors, rows over the limit, rows that keep no target.

        Raises ModelError for a template that goes beyond the limits of time and memory.
        """
        try:
            yield from self._measure(record)
        except DataError as error:
            fix = (error.hint or "check the roles").removeprefix("Fix: ")
            yield Finding("template", error.message, fix, "messages")
        else:
            self.unread.look(record)

    def _measure(self, record: Record) -> Iterator[Finding]:
        if isinstance(record, Demonstration):
            encoded = self.encoder.encode_demonstration(record, self.train_on)
            self._count_said(record.messages)
            for tokens in encoded:
                self._count(tokens.ids, tokens.trained)
                yield from self._fit(
                    len(tokens.ids), sum(tokens.trained), "messages", _first(tokens.trained)
                )
            if not encoded:
                yield from self._fit(0, 0, "messages", 0)
        elif isinstance(record, Prompt):
            context = TemplateContext.of(record)
            self.seen.lengths.append(len(self.encoder.prompt_ids(record.prompt, context=context)))
        else:
            prompt, sides = _sides(record)
            context = TemplateContext.of(record)
            asked = len(self.encoder.prompt_ids(prompt, context=context)) if prompt else 0
            if asked >= self.max_length:
                yield self._no_room(asked, "prompt")
            for name, side in sides:
                ids = self.encoder.completion_ids(prompt, side, context=context)
                self.seen.targets += 1
                self.seen.targets_with_eos += bool(ids) and ids[-1] in self.encoder.stop_token_ids
                self.seen.trained += len(ids)
                self.seen.total += asked + len(ids)
                yield from self._fit(asked + len(ids), len(ids), name, asked)

    def _count(self, ids: list[int], trained: list[bool]) -> None:
        """Trained tokens in all; a target is a run of trained tokens."""
        self.seen.trained += sum(trained)
        self.seen.total += len(ids)
        for position, is_trained in enumerate(trained):
            if is_trained and (position + 1 == len(ids) or not trained[position + 1]):
                self.seen.targets += 1
                self.seen.targets_with_eos += ids[position] in self.encoder.stop_token_ids

    def _count_said(self, messages: Iterable[Message]) -> None:
        """Tokens that each role said, and those of turns that are trained."""
        for message in messages:
            said = len(self.encoder.tokenizer(message.content, add_special_tokens=False).input_ids)
            counts = self.seen.by_role.setdefault(message.role, [0, 0])
            is_target = self.train_on == "all" or (
                message.role == "assistant" and message.train is not False
            )
            counts[0] += said * is_target
            counts[1] += said

    def _fit(self, length: int, targets: int, name: str, before: int) -> Iterator[Finding]:
        self.seen.lengths.append(length)
        if targets == 0:
            yield Finding(
                "no-target",
                "no token of this row is trained",
                "mark an assistant turn as trained, or remove the row",
                name,
            )
        elif before >= self.max_length and name == "messages":
            yield self._no_room(before, name)
        elif before < self.max_length < length:
            cut = length - self.max_length
            yield Finding(
                "overlong",
                f"{length:,} tokens, {cut:,} over max_length {self.max_length:,}",
                "see on_overlong: drop or truncate_prompt",
                name,
                "warning",
            )

    def _no_room(self, prompt: int, name: str) -> Finding:
        return Finding(
            "overlong",
            f"the prompt is {prompt:,} tokens, the limit {self.max_length:,}: "
            "no answer token is left",
            "raise max_length, or shorten the prompt",
            name,
        )

    def overall(self) -> Iterator[Finding]:
        """The lengths, the share of trained tokens and of targets that end in EOS."""
        if self.seen.lengths:
            ordered = sorted(self.seen.lengths)
            middle, high = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
            over = sum(length > self.max_length for length in ordered)
            yield Finding(
                "tokens",
                f"tokens a row: median {middle:,}, 99 % under {high:,}, most "
                f"{ordered[-1]:,}; {over:,} of {len(ordered):,} over "
                f"{self.max_length:,}",
                "",
                None,
                "note",
            )
        if self.seen.total:
            yield from self._trained_share()
        self.seen = Seen()
        yield from self._of_the_template()

    def _of_the_template(self) -> Iterator[Finding]:
        """How answers end, what was odd about them, and what the template never reads."""
        yield Finding("stops", self.encoder.stops_line(), "", None, "note")
        for line in self.encoder.remarks.lines():
            yield Finding("template", line, "", None, "warning")
        self.encoder.remarks.clear()
        for name, told in self.unread.findings():
            fix = "use a chat template that reads it, or leave it out"
            yield Finding("unread-key", told, fix, name, "warning")
        self.unread.reset()

    def _trained_share(self) -> Iterator[Finding]:
        share = self.seen.trained / self.seen.total
        roles = ", ".join(
            f"{role} {t / max(n, 1):.0%}" for role, (t, n) in sorted(self.seen.by_role.items())
        )
        low = share < FEW_TRAINED
        yield Finding(
            "trained-share",
            f"{share:.1%} of the tokens are trained{f' ({roles})' if roles else ''}",
            "check the roles: only assistant turns are trained" if low else "",
            None,
            "error" if not self.seen.trained else "warning" if low else "note",
        )
        if self.seen.targets:
            ends = self.seen.targets_with_eos / self.seen.targets
            yield Finding(
                "eos-share",
                f"{ends:.1%} of {self.seen.targets:,} targets end in a stop token",
                "" if ends == 1 else "answers may never end: check the template",
                None,
                "note" if ends == 1 else "warning",
            )


def _first(trained: list[bool]) -> int:
    """How many tokens stand before the first trained one."""
    return trained.index(True) if True in trained else len(trained)


def _sides(record: Record) -> tuple[list[Message], list[tuple[str, list[Message]]]]:
    """(prompt, [(field, completion)]) of a record with completions."""
    if isinstance(record, Preference):
        return record.prompt, [("chosen", record.chosen), ("rejected", record.rejected)]
    if isinstance(record, Label):
        return record.prompt, [("completion", record.completion)]
    if isinstance(record, Candidates | Ranking):
        return record.prompt, [(f"candidates.{c.cid}", c.completion) for c in record.candidates]
    return [], []
