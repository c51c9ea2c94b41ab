"""Measure what template and tokenizer make of records: lengths, cuts, trained shares, EOS."""

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
# Kinds of problems that a template and its tokenizer find in a single record.
TOKEN_KINDS = ("template", "overlong", "no-target")


@dataclass
class TokenCounts:
    """Counts over the records of one file; `by_role` holds (trained, all) tokens of texts."""

    lengths: list[int] = field(default_factory=list)
    targets: int = 0
    targets_with_eos: int = 0
    trained: int = 0
    total: int = 0
    by_role: dict[str, list[int]] = field(default_factory=dict)


@dataclass
class TokenInspector:
    """Renders and tokenizes every record as training would, and reports what does not fit."""

    encoder: Encoder
    max_length: int
    train_on: str = "completion"
    seen: TokenCounts = field(default_factory=TokenCounts)

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
        """Load the inspector for a model's name, directory or run; loads only the tokenizer.

        `chat_template` is a file used instead of the model's own, or of the run's.
        """
        from alignkit.data.chat import Encoder
        from alignkit.model.files import find_model
        from alignkit.model.run_template import template_for
        from alignkit.model.template_check import check_templates, templates_of
        from alignkit.model.tokenizer_check import checked_tokenizer

        files = find_model(model)  # report a wrong name before slow imports
        template = template_for(files, chat_template)
        check_templates(files.path, template)
        tokenizer = checked_tokenizer(files)
        if template is not None:
            ((tokenizer.chat_template, _),) = templates_of(files.path, template)
        return cls(Encoder(tokenizer), max_length, train_on)

    def inspect(self, record: Record) -> Iterator[Finding]:
        """Yield template errors, rows over the limit, and rows that keep no target.

        Raises ModelError for a template that exceeds the limits of time and memory.
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
            self._count_roles(record.messages)
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
            before = len(self.encoder.prompt_ids(prompt, context=context)) if prompt else 0
            if before >= self.max_length:
                yield self._no_room(before, "prompt")
            for name, side in sides:
                ids = self.encoder.completion_ids(prompt, side, context=context)
                self.seen.targets += 1
                self.seen.targets_with_eos += bool(ids) and ids[-1] in self.encoder.stop_token_ids
                self.seen.trained += len(ids)
                self.seen.total += before + len(ids)
                yield from self._fit(before + len(ids), len(ids), name, before)

    def _count(self, ids: list[int], trained: list[bool]) -> None:
        """Count trained tokens, and targets, which are runs of trained tokens."""
        self.seen.trained += sum(trained)
        self.seen.total += len(ids)
        for position, is_trained in enumerate(trained):
            if is_trained and (position + 1 == len(ids) or not trained[position + 1]):
                self.seen.targets += 1
                self.seen.targets_with_eos += ids[position] in self.encoder.stop_token_ids

    def _count_roles(self, messages: Iterable[Message]) -> None:
        """Count tokens per role, and those of turns that are trained."""
        for message in messages:
            size = len(self.encoder.tokenizer(message.content, add_special_tokens=False).input_ids)
            counts = self.seen.by_role.setdefault(message.role, [0, 0])
            is_target = self.train_on == "all" or (
                message.role == "assistant" and message.train is not False
            )
            counts[0] += size * is_target
            counts[1] += size

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
            "no room for a completion is left",
            "raise max_length, or shorten the prompt",
            name,
        )

    def overall(self) -> Iterator[Finding]:
        """Report lengths, the share of trained tokens, and the share of targets with EOS."""
        if self.seen.lengths:
            ordered = sorted(self.seen.lengths)
            middle, high = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
            over = sum(length > self.max_length for length in ordered)
            yield Finding(
                "tokens",
                f"tokens per row: median {middle:,}, 99 % under {high:,}, most "
                f"{ordered[-1]:,}; {over:,} of {len(ordered):,} over "
                f"{self.max_length:,}",
                "",
                None,
                "note",
            )
        if self.seen.total:
            yield from self._trained_share()
        self.seen = TokenCounts()
        yield from self._template_findings()

    def _template_findings(self) -> Iterator[Finding]:
        """Report how completions end, their oddities, and what the template never reads."""
        yield Finding("stops", self.encoder.stops_line(), "", None, "note")
        for line in self.encoder.remarks.lines():
            yield Finding("template", line, "", None, "warning")
        self.encoder.remarks.clear()
        for name, message in self.unread.findings():
            fix = "use a chat template that reads it, or remove it"
            yield Finding("unread-key", message, fix, name, "warning")
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
                "" if ends == 1 else "completions may never end: check the template",
                None,
                "note" if ends == 1 else "warning",
            )


def _first(trained: list[bool]) -> int:
    """Return the number of tokens before the first trained one."""
    return trained.index(True) if True in trained else len(trained)


def _sides(record: Record) -> tuple[list[Message], list[tuple[str, list[Message]]]]:
    """Return (prompt, [(field, completion)]) of a record with completions."""
    if isinstance(record, Preference):
        return record.prompt, [("chosen", record.chosen), ("rejected", record.rejected)]
    if isinstance(record, Label):
        return record.prompt, [("completion", record.completion)]
    if isinstance(record, Candidates | Ranking):
        return record.prompt, [(f"candidates.{c.cid}", c.completion) for c in record.candidates]
    return [], []
