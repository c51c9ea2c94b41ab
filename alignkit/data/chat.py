"""Turn messages into token ids: the one rendering that every stage uses, template applied once.

The prompt's ids are those that sampling starts from. Prompt ids followed by completion ids are the
ids of the whole text, cut after the first stop token.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property, lru_cache
from os.path import commonprefix
from typing import Any

from alignkit.data.records import Demonstration, Message, Preference, Ranking, Record
from alignkit.data.stops import Stops, example_call, example_tool, find_stops
from alignkit.data.template_input import (
    CALL_FORMS,
    NOTHING,
    Forms,
    TemplateContext,
    as_given,
)
from alignkit.errors import DataError, ModelError
from alignkit.model.rendering import RENDERER, TemplateRefusal, job

REMEMBERED = 1024  # texts kept with their ids; rows that share some are close together
SHOWN = 60  # characters of a text that an error quotes
MARK = "\ue000"  # from Unicode's private use area: no template writes it
OPENED = re.compile(r"\s*<(?P<name>[\w|:]+)>\s*")
OPENED_AND_CLOSED = re.compile(r"\s*<(?P<name>[\w|:]+)>\s*</(?P=name)>\s*")
Texts = tuple[str, ...]  # messages in the form the template receives, each as JSON


@dataclass(frozen=True)
class Tokens:
    """Token ids of a conversation and a flag per token: is it trained?"""

    ids: list[int]
    trained: list[bool]


@dataclass
class Remarks:
    """Counts what was odd about the completions encoded."""

    empty_thoughts: int = 0
    torn: int = 0

    def clear(self) -> None:
        """Reset the counts."""
        self.empty_thoughts = self.torn = 0

    def lines(self) -> list[str]:
        """Return one line per oddity worth reporting."""
        lines = []
        if self.empty_thoughts:
            lines.append(
                f"{self.empty_thoughts} completions have no thought, but the chat template's "
                "prompt opens one: they are trained with an empty one. Add reasoning_content, or "
                "set chat_template_kwargs: {enable_thinking: false} if the template supports it"
            )
        if self.torn:
            lines.append(
                f"{self.torn} completions begin inside a token of the whole text: their ids "
                "follow those of the prompt, as in sampling, and differ from the whole text's"
            )
        return lines


class Encoder:
    """Maps messages to token ids with a tokenizer and its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.chat_template is None:
            raise ModelError(
                "the tokenizer has no chat template",
                where=str(tokenizer.name_or_path),
                hint="add chat_template: FILE.jinja to the recipe's backbone, or --chat-template",
            )
        self.tokenizer = tokenizer
        # A run fixes the date that its template sees, so that later prompts match its training.
        self.template_date: date | None = getattr(tokenizer, "template_date", None)
        self.remarks = Remarks()
        self._rendered: dict[tuple[Texts, str, bool], str] = {}
        self._tokenize = lru_cache(maxsize=REMEMBERED)(self._tokenize_anew)
        self._shared: dict[int, int] = {}

    @property
    def pad_token_id(self) -> int:
        """Return the id that fills padded rows; its value never matters."""
        return int(self.tokenizer.pad_token_id)

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Return every token that ends a completion."""
        return frozenset(self.stops.sources)

    @property
    def end_token_id(self) -> int:
        """Return the stop token with which this template closes a completion."""
        return self.stops.end

    @property
    def template_sha256(self) -> str:
        """Return the identity of the chat template, recorded in every artifact."""
        return hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()

    @cached_property
    def stops(self) -> Stops:
        """Return the stop tokens, their sources, and which of them close a completion."""
        calls = self._call_forms
        return find_stops(
            self.tokenizer,
            lambda turns: self._texts([(turns, False)], NOTHING)[0],
            None if calls is None else lambda turns: self._texts([(turns, False)], PROBED)[0],
        )

    def stops_line(self) -> str:
        """Describe in one line how completions end."""
        names = self.tokenizer.convert_ids_to_tokens
        return self.stops.line(lambda token: str(names(token)))

    def prompt_text(
        self, messages: Sequence[Message], *, context: TemplateContext = NOTHING
    ) -> str:
        """Return the prompt as the model reads it, up to where the completion begins."""
        if not messages:
            return self._opening(context)
        return self._texts([(messages, True)], context)[0]

    def prompt_ids(
        self, messages: Sequence[Message], *, context: TemplateContext = NOTHING
    ) -> list[int]:
        """Return the prompt's token ids, up to where the completion begins."""
        return list(self._tokenize(self.prompt_text(messages, context=context)))

    def completion_ids(
        self,
        prompt: Sequence[Message],
        completion: Sequence[Message],
        *,
        context: TemplateContext = NOTHING,
    ) -> list[int]:
        """Return the token ids to produce after the prompt, ending in a stop token.

        A completion cut off at the token limit (`stopped: false`) gets no stop token. Raises
        DataError where no such ids exist: the template renders the prompt differently once a
        completion follows, or writes nothing of the completion.
        """
        last = completion[-1] if completion else None
        if last is None or last.role != "assistant":
            raise DataError(
                "a completion does not end in an assistant turn",
                hint="Fix: end it with what the model is to say",
            )
        self._check_calls(last)
        start, answer = self._answer(prompt, completion, context)
        ids = self._after(start, answer)
        begins = 0
        if len(completion) > 1:
            before, _ = self._answer([*prompt, *completion[:-1]], [last], context)
            common = commonprefix([start + answer, before])[len(start) :]
            begins = len(self._tokenize(common))
        return self._until_stop(ids, begins, last)

    def encode_demonstration(self, demonstration: Demonstration, train_on: str) -> list[Tokens]:
        """Encode a conversation with the tokens to train, in as many rows as necessary.

        `completion` trains every assistant turn up to its stop token, except those marked
        `train: false`; `all` trains every token. Each completion follows the prompt that sampling
        would see. Templates that later render earlier turns differently (by dropping thoughts,
        say) need one row per completion, others a single row. Plain text is trained whole,
        without the template.
        """
        messages, context = demonstration.messages, TemplateContext.of(demonstration)
        if demonstration.plain:
            return [self.encode_text(messages[0].content)]
        if train_on != "all":
            return self._encode_turns(messages, context)
        if messages[-1].role == "assistant":
            prompt, last = messages[:-1], messages[-1:]
            ids = self.prompt_ids(prompt, context=context)
            ids += self.completion_ids(prompt, last, context=context)
        else:
            ids = list(self._tokenize(self._texts([(messages, False)], context)[0]))
            stops = [at for at, token in enumerate(ids) if token in self.stop_token_ids]
            ids = ids[: stops[-1] + 1] if stops else [*ids, self.stops.end]
        return [Tokens(ids, [True] * len(ids))]

    def prepare(self, records: Sequence[Record]) -> None:
        """Render in one batch what encoding these records will need, which makes encoding fast.

        A template's refusal is reported later, when the record itself is encoded.
        """
        asked: dict[TemplateContext, list[tuple[Sequence[Message], bool]]] = {}
        for record in records:
            try:
                wanted = asked.setdefault(TemplateContext.of(record), [])
            except DataError:
                continue
            for prompt, answer in _questions(record):
                wanted += [(prompt, True), ([*prompt, *answer], False)]
        for context, wanted in asked.items():
            try:
                self._texts(wanted[: REMEMBERED // 2], context)
            except (DataError, ModelError):
                continue

    def encode_text(self, text: str) -> Tokens:
        """Encode plain text without a template: all trained but the start token, EOS appended."""
        eos, start = int(self.tokenizer.eos_token_id), self.tokenizer.bos_token_id
        text_ids = list(self.tokenizer(text)["input_ids"])
        if text_ids[-1:] != [eos]:
            text_ids.append(eos)
        ids = list(map(self._shared.setdefault, text_ids, text_ids))
        return Tokens(ids, [position > 0 or ids[0] != start for position in range(len(ids))])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a completion without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    # --- conversations -------------------------------------------------------------------------

    def _encode_turns(self, messages: Sequence[Message], context: TemplateContext) -> list[Tokens]:
        rows: list[Tokens] = []
        for end in _trained_turns(messages):
            prompt = self.prompt_ids(messages[:end], context=context)
            completion = self.completion_ids(messages[:end], [messages[end]], context=context)
            earlier = rows[-1].ids if rows else []
            if rows and prompt[: len(earlier)] == earlier:
                before = rows.pop().trained
            else:
                earlier, before = [], []
            context_only = [False] * (len(prompt) - len(earlier))
            rows.append(
                Tokens(prompt + completion, before + context_only + [True] * len(completion))
            )
        return rows

    def _opening(self, context: TemplateContext) -> str:
        """Return the text before the first turn of a conversation that the assistant begins.

        Templates that inspect the first message reject an empty conversation; the prompt is then
        what they write before a completion.
        """
        try:
            return self._texts([([], True)], context)[0]
        except DataError:
            completion = [Message(role="assistant", content=MARK)]
            text, mark, _ = self._texts([(completion, False)], context)[0].partition(MARK)
            if not mark:
                raise
            return str(text)

    def _answer(
        self, prompt: Sequence[Message], completion: Sequence[Message], context: TemplateContext
    ) -> tuple[str, str]:
        """Return the text of the prompt and the text that has to follow it."""
        whole_turns = [*prompt, *completion]
        if prompt:
            start, whole = self._texts([(prompt, True), (whole_turns, False)], context)
        else:
            start, whole = self._opening(context), self._texts([(whole_turns, False)], context)[0]
        if whole.startswith(start):
            return start, whole[len(start) :]
        return start, self._after_own_text(start, whole, prompt, completion[0], context)

    def _after_own_text(
        self,
        start: str,
        whole: str,
        prompt: Sequence[Message],
        answer: Message,
        context: TemplateContext,
    ) -> str:
        """Return the completion's text if the prompt ends in text that its rendering leaves out.

        Prompts of thinking models open a thought (`<think>`), or write an empty one to prevent
        thinking. Sampling continues from there, so training must too. `own` is that text: what
        the prompt has beyond the header of a plain completion.
        """
        mark = Message(role="assistant", content=MARK)
        plain = self._texts([([*prompt, mark], False)], context)[0]
        header = commonprefix([start, plain])
        own = start[len(header) :]
        rest = whole[len(header) :]
        if not own or not whole.startswith(header):
            raise _differs(start, whole)
        begun = rest.lstrip().startswith(own.strip().partition(">")[0]) and bool(own.strip())
        if not begun and (not own.strip() or OPENED_AND_CLOSED.fullmatch(own)):
            return rest
        opened = OPENED.fullmatch(own)
        if opened is None or f"</{opened['name']}>" not in self._template:
            raise _differs(start, whole)
        if begun:
            return rest.lstrip().removeprefix(own.strip())
        return self._with_thought(own, f"</{opened['name']}>", rest, answer)

    def _with_thought(self, own: str, close: str, rest: str, answer: Message) -> str:
        """Return the thought that the prompt opens, which the template drops, then the answer."""
        thought = answer.reasoning_content or answer.thinking
        if thought:
            return f"{thought.strip(chr(10))}\n{close}\n\n{rest.lstrip(chr(10))}"
        inside, closed, _ = answer.content.rpartition(close)
        if closed:
            # Kept to the letter: the model may have sampled these very tokens after this prompt.
            inside = inside.removeprefix(own).removeprefix(own.strip())
            return f"{inside}{close}{rest}"
        self.remarks.empty_thoughts += 1
        return f"\n{close}\n\n{rest}"

    # --- rendering -----------------------------------------------------------------------------

    def _texts(
        self, wanted: Sequence[tuple[Sequence[Message], bool]], context: TemplateContext
    ) -> list[str]:
        """Render conversations, each with or without the header of a completion at its end."""
        forms = self._forms
        if any(message.tool_calls for turns, _ in wanted for message in turns):
            forms = self._call_forms or forms
        keys = [
            (tuple(as_given(message, forms) for message in turns), context.variables, prompts)
            for turns, prompts in wanted
        ]
        missing = [key for key in dict.fromkeys(keys) if key not in self._rendered]
        if missing:
            variables = context.within(self._usual)
            jobs = [job(given, variables, add_generation_prompt=prompts)
                    for given, _, prompts in missing]  # fmt: skip
            try:
                texts = RENDERER.render(self._template, jobs, self.template_date)
            except TemplateRefusal as error:
                raise _refused(error, wanted) from error
            self._remember(dict(zip(missing, texts, strict=True)), keys)
        return [self._rendered[key] for key in keys]

    def _remember(
        self,
        texts: dict[tuple[Texts, str, bool], str],
        needed: Sequence[tuple[Texts, str, bool]],
    ) -> None:
        """Keep rendered texts: a prompt is needed per completion, a completion per comparison."""
        if len(self._rendered) + len(texts) > REMEMBERED:
            self._rendered = {key: self._rendered[key] for key in needed if key in self._rendered}
        self._rendered |= texts

    @cached_property
    def _template(self) -> str:
        """Return the template's text; if there are several, the one for plain conversations."""
        return str(self.tokenizer.get_chat_template())

    @cached_property
    def _usual(self) -> str:
        """Return the tokenizer's own variables, such as `bos_token`, as JSON."""
        named = self.tokenizer.special_tokens_map.items()
        return json.dumps({name: _plain(value) for name, value in named})

    @cached_property
    def _forms(self) -> Forms:
        """Find out whether the template takes contents as texts, or only as lists of parts."""
        turns = [Message(role="user", content="Quokka?"),
                 Message(role="assistant", content="Wombat.")]  # fmt: skip
        for forms in (Forms(), Forms(parts=True)):
            text = self._tried(turns, forms, NOTHING)
            if text is not None and all(turn.content in text for turn in turns):
                return forms
        return Forms()

    @cached_property
    def _call_forms(self) -> Forms | None:
        """Find the form in which the template writes tool calls; None if it writes none."""
        call = example_call()
        turns = [Message(role="user", content="Quokka?"),
                 Message(role="assistant", tool_calls=[call])]  # fmt: skip
        name, (value,) = call["function"]["name"], call["function"]["arguments"].values()
        for arguments, silent in CALL_FORMS:
            forms = replace(self._forms, arguments=arguments, silent=silent)  # type: ignore[arg-type]
            text = self._tried(turns, forms, PROBED)
            if text is not None and name in text.partition("Quokka?")[2] and value in text:
                return forms
        return None

    def _tried(
        self, turns: Sequence[Message], forms: Forms, context: TemplateContext
    ) -> str | None:
        given = [as_given(turn, forms) for turn in turns]
        wanted = job(given, context.within(self._usual), add_generation_prompt=False)
        try:
            return RENDERER.render(self._template, [wanted])[0]
        except TemplateRefusal:
            return None

    def _check_calls(self, answer: Message) -> None:
        """Refuse a completion of tool calls only if the template writes no calls."""
        if answer.tool_calls and not answer.content.strip() and self._call_forms is None:
            raise DataError(
                "the completion only calls a tool, and the chat template does not write tool_calls",
                hint="Fix: use a model or a chat_template that supports tools, or write the call "
                "into the content",
            )

    # --- tokens --------------------------------------------------------------------------------

    def _tokenize_anew(self, text: str) -> tuple[int, ...]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        # One object per id, however often it occurs: a fifth of the memory of 100,000 rows.
        return tuple(map(self._shared.setdefault, ids, ids))

    def _after(self, start: str, answer: str) -> list[int]:
        """Return the completion's ids: the whole text's, split after the prompt's.

        Tokenized alone, the completion would begin differently: SentencePiece adds a space there.
        """
        before, whole = self._tokenize(start), self._tokenize(start + answer)
        if whole[: len(before)] == before:
            return list(whole[len(before) :])
        self.remarks.torn += 1
        for ids in self._torn(start, answer, whole):
            if self._same_text([*before, *ids], whole):
                return ids
        raise DataError(
            "no tokens of the completion follow those of the prompt: "
            f"…{start[-SHOWN:]!r} and {answer[:SHOWN]!r} share one",
            hint="Fix: use a chat template that ends its prompt in a special token or a new line",
        )

    def _torn(self, start: str, answer: str, whole: Sequence[int]) -> list[list[int]]:
        """Return ways to encode a completion whose start shares a token with the prompt's end.

        Sampling continues from the prompt's own tokens, so the shared token cannot occur. The
        rest of the whole text's tokens stay; if that split is unknown, the completion is encoded
        alone.
        """
        ways = []
        if self.tokenizer.is_fast:
            offsets = self.tokenizer(
                start + answer, add_special_tokens=False, return_offsets_mapping=True
            )["offset_mapping"]
            first = next(
                (at for at, (begin, _) in enumerate(offsets) if begin > len(start)), len(offsets)
            )
            border = offsets[first][0] if first < len(offsets) else len(start + answer)
            gap = (start + answer)[len(start) : border]
            ways.append([*self._tokenize(gap), *whole[first:]])
        ways.append(list(self._tokenize(answer)))
        # Encoded after a token that merges with nothing, SentencePiece adds no space of its own.
        for anchor in (self.tokenizer.eos_token, "\n"):
            anchored = self._tokenize(f"{anchor}{answer}")
            ways.append(list(anchored[len(self._tokenize(anchor)) :]))
        return ways

    def _same_text(self, ids: Sequence[int], others: Sequence[int]) -> bool:
        texts = [
            self.tokenizer.decode(
                list(each), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            for each in (ids, others)
        ]
        return bool(texts[0] == texts[1])

    def _until_stop(self, ids: list[int], begins: int, last: Message) -> list[int]:
        """Cut after the first stop token of the last turn, as sampling does; add one if absent."""
        stops = self.stop_token_ids
        at = next((at for at in range(begins, len(ids)) if ids[at] in stops), None)
        is_cut_off = last.extra.get("stopped") is False
        if at is None:
            end = self.stops.call_end if last.tool_calls else self.stops.end
            return ids if is_cut_off else [*ids, end]
        rest = self.decode(ids[at + 1 :])
        if rest:
            name = self.tokenizer.convert_ids_to_tokens(ids[at])
            raise DataError(
                f"the completion contains {name}, which ends it: {rest[:SHOWN]!r} comes after",
                hint="Fix: remove the token from the text; the chat template writes it itself",
            )
        return ids[:at] if is_cut_off else ids[: at + 1]


def _trained_turns(messages: Sequence[Message]) -> list[int]:
    """Return the positions of the assistant turns to train."""
    return [
        at
        for at, message in enumerate(messages)
        if message.role == "assistant" and message.train is not False
    ]


def _questions(record: Record) -> Iterator[tuple[Sequence[Message], Sequence[Message]]]:
    """Yield each prompt of a record with one completion of it."""
    if isinstance(record, Demonstration):
        for end in _trained_turns(record.messages):
            if end:
                yield record.messages[:end], [record.messages[end]]
    elif isinstance(record, Preference):
        yield from ((record.prompt, side) for side in (record.chosen, record.rejected))
    elif isinstance(record, Ranking):
        yield from ((record.prompt, c.messages) for c in record.candidates if c.cid in record.ranks)


PROBED = TemplateContext(json.dumps({"tools": [example_tool()]}))


def _plain(value: Any) -> Any:
    """Convert special tokens to texts, lists of them to lists."""
    return [str(each) for each in value] if isinstance(value, list) else str(value)


def _refused(error: TemplateRefusal, wanted: Sequence[tuple[Sequence[Message], bool]]) -> DataError:
    # Templates raise any exception: its class tells nothing, only its text does.
    roles = ", ".join(message.role for message in max((turns for turns, _ in wanted), key=len))
    return DataError(
        f"the chat template refuses these turns ({roles}): {error.message}",
        hint="check the roles and their order",
    )


def _differs(prompt: str, whole: str) -> DataError:
    """Explain with both texts why the prompt is not a prefix of the conversation."""
    at = len(commonprefix([prompt, whole]))
    first = max(0, at - SHOWN)
    return DataError(
        "the chat template renders the prompt differently once a completion follows (after "
        f"{at} characters): sampling would see …{prompt[first : at + SHOWN]!r}, the whole "
        f"conversation is …{whole[first : at + SHOWN]!r}",
        hint="use a template that renders a prefix of the turns as a prefix of the text; if only "
        "the thought differs, chat_template_kwargs (such as enable_thinking) may settle it",
    )
