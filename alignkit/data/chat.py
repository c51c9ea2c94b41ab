"""From messages to token ids: the one rendering that every stage uses, template applied once.

The prompt's ids are those that sampling starts from. A completion's ids are what has to follow
them: prompt ids + completion ids are the ids of the whole text, cut after the first stop token.
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

REMEMBERED = 1024  # texts and their ids; rows that share some lie beside each other
SHOWN = 60  # characters of a text that an error shows
MARK = "\ue000"  # of Unicode's private use: begins no text of a template
OPENED = re.compile(r"\s*<(?P<name>[\w|:]+)>\s*")
OPENED_AND_CLOSED = re.compile(r"\s*<(?P<name>[\w|:]+)>\s*</(?P=name)>\s*")
Texts = tuple[str, ...]  # messages as the template is given them, each as JSON


@dataclass(frozen=True)
class Tokens:
    """Token ids of a conversation and which of them are trained; equally long."""

    ids: list[int]
    trained: list[bool]


@dataclass
class Remarks:
    """What was odd about completions that were encoded, counted."""

    empty_thoughts: int = 0
    torn: int = 0

    def clear(self) -> None:
        """Count anew."""
        self.empty_thoughts = self.torn = 0

    def lines(self) -> list[str]:
        """One line for each thing that a person should know."""
        found = []
        if self.empty_thoughts:
            found.append(
                f"{self.empty_thoughts} answers have no thought, but the chat template's prompt "
                "opens one: they are trained with an empty one. Give reasoning_content, or set "
                "chat_template_kwargs: {enable_thinking: false} where the template knows it"
            )
        if self.torn:
            found.append(
                f"{self.torn} answers begin within a token of the whole text: their ids follow "
                "those of the prompt, as in sampling, and differ from the whole text's"
            )
        return found


class Encoder:
    """A tokenizer with its chat template, as functions from messages to ids."""

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.chat_template is None:
            raise ModelError(
                "the tokenizer has no chat template",
                where=str(tokenizer.name_or_path),
                hint="add chat_template: FILE.jinja to the recipe's backbone, or --chat-template",
            )
        self.tokenizer = tokenizer
        # A run's own: what is asked of it later is told the day that it was trained with.
        self.template_date: date | None = getattr(tokenizer, "template_date", None)
        self.remarks = Remarks()
        self._rendered: dict[tuple[Texts, str, bool], str] = {}
        self._tokenize = lru_cache(maxsize=REMEMBERED)(self._tokenize_anew)
        self._shared: dict[int, int] = {}

    @property
    def pad_token_id(self) -> int:
        """The id that fills padded rows; never read, whatever it is."""
        return int(self.tokenizer.pad_token_id)

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Every token that ends an answer."""
        return frozenset(self.stops.said_by)

    @property
    def end_token_id(self) -> int:
        """The stop token that this template closes an answer with."""
        return self.stops.end

    @property
    def template_sha256(self) -> str:
        """Identity of the chat template, stamped into every artifact."""
        return hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()

    @cached_property
    def stops(self) -> Stops:
        """The stop tokens, who says so, and which of them end answers."""
        calls = self._call_forms
        return find_stops(
            self.tokenizer,
            lambda turns: self._texts([(turns, False)], NOTHING)[0],
            None if calls is None else lambda turns: self._texts([(turns, False)], PROBED)[0],
        )

    def stops_line(self) -> str:
        """How answers end, for people."""
        names = self.tokenizer.convert_ids_to_tokens
        return self.stops.line(lambda token: str(names(token)))

    def prompt_text(
        self, messages: Sequence[Message], *, context: TemplateContext = NOTHING
    ) -> str:
        """The prompt as the model reads it, up to where its answer begins."""
        if not messages:
            return self._opening(context)
        return self._texts([(messages, True)], context)[0]

    def prompt_ids(
        self, messages: Sequence[Message], *, context: TemplateContext = NOTHING
    ) -> list[int]:
        """Token ids of the prompt, up to where the answer begins."""
        return list(self._tokenize(self.prompt_text(messages, context=context)))

    def completion_ids(
        self,
        prompt: Sequence[Message],
        completion: Sequence[Message],
        *,
        context: TemplateContext = NOTHING,
    ) -> list[int]:
        """Token ids the model has to produce after the prompt, ending in a stop token.

        A completion that was cut at the token limit (`stopped: false`) has no end, so it gets no
        stop token. Raises DataError where no such ids exist: the template renders the prompt
        differently once an answer follows, or writes nothing of it.
        """
        last = completion[-1] if completion else None
        if last is None or last.role != "assistant":
            raise DataError(
                "a completion does not end in an assistant's turn",
                hint="Fix: end it with what the model has to say",
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
        """Ids of a conversation and the tokens to train, in as many rows as it takes.

        `completion`: every assistant turn up to its stop token, except those marked
        `train: false`. `all`: every token. Each answer follows the prompt that sampling would see:
        templates that render earlier turns differently later on (they drop thoughts, say) need a
        row of its own for each answer, others one for all. A plain text is trained whole, without
        the template.
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
        """Render what these records will be asked for in one go; the next questions are then fast.

        What a template refuses or cannot do is told where the record itself is encoded.
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
        """Ids of a text without a template: all trained, EOS at the end, no start token trained."""
        eos, start = int(self.tokenizer.eos_token_id), self.tokenizer.bos_token_id
        found = list(self.tokenizer(text)["input_ids"])
        if found[-1:] != [eos]:
            found.append(eos)
        ids = list(map(self._shared.setdefault, found, found))
        return Tokens(ids, [position > 0 or ids[0] != start for position in range(len(ids))])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    # --- conversations -------------------------------------------------------------------------

    def _encode_turns(self, messages: Sequence[Message], context: TemplateContext) -> list[Tokens]:
        rows: list[Tokens] = []
        for end in _trained_turns(messages):
            prompt = self.prompt_ids(messages[:end], context=context)
            answer = self.completion_ids(messages[:end], [messages[end]], context=context)
            seen = rows[-1].ids if rows else []
            if rows and prompt[: len(seen)] == seen:
                before = rows.pop().trained
            else:
                seen, before = [], []
            context_only = [False] * (len(prompt) - len(seen))
            rows.append(Tokens(prompt + answer, before + context_only + [True] * len(answer)))
        return rows

    def _opening(self, context: TemplateContext) -> str:
        """The text before the first turn of a conversation that the assistant begins.

        Templates that look at the first message know no empty conversation; what they write before
        an answer is then the prompt.
        """
        try:
            return self._texts([([], True)], context)[0]
        except DataError:
            answer = [Message(role="assistant", content=MARK)]
            text, found, _ = self._texts([(answer, False)], context)[0].partition(MARK)
            if not found:
                raise
            return str(text)

    def _answer(
        self, prompt: Sequence[Message], completion: Sequence[Message], context: TemplateContext
    ) -> tuple[str, str]:
        """The text of the prompt and the text that has to follow it."""
        whole_turns = [*prompt, *completion]
        if prompt:
            start, whole = self._texts([(prompt, True), (whole_turns, False)], context)
        else:
            start, whole = self._opening(context), self._texts([(whole_turns, False)], context)[0]
        if whole.startswith(start):
            return start, whole[len(start) :]
        return start, self._behind_own_text(start, whole, prompt, completion[0], context)

    def _behind_own_text(
        self,
        start: str,
        whole: str,
        prompt: Sequence[Message],
        answer: Message,
        context: TemplateContext,
    ) -> str:
        """The answer's text where the prompt ends in text that the answer's rendering leaves out.

        Prompts of thinking models open a thought (`<think>`), or an empty one where they should
        not think. Sampling goes on from there, so training has to. `own` is that text: what the
        prompt has beyond the header of a plain answer.
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
        """The thought that the prompt opens, which the template drops, and the answer behind it."""
        thought = answer.reasoning_content or answer.thinking
        if thought:
            return f"{thought.strip(chr(10))}\n{close}\n\n{rest.lstrip(chr(10))}"
        inside, found, _ = answer.content.rpartition(close)
        if found:
            # Kept to the letter: these may be the tokens that this very prompt was answered with.
            inside = inside.removeprefix(own).removeprefix(own.strip())
            return f"{inside}{close}{rest}"
        self.remarks.empty_thoughts += 1
        return f"\n{close}\n\n{rest}"

    # --- rendering -----------------------------------------------------------------------------

    def _texts(
        self, wanted: Sequence[tuple[Sequence[Message], bool]], context: TemplateContext
    ) -> list[str]:
        """The texts of conversations, each with the answer's header behind it or without."""
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
        """A prompt is asked for with each of its completions, a completion with its rivals."""
        if len(self._rendered) + len(texts) > REMEMBERED:
            self._rendered = {key: self._rendered[key] for key in needed if key in self._rendered}
        self._rendered |= texts

    @cached_property
    def _template(self) -> str:
        """The text of the template; of several, the one for plain conversations."""
        return str(self.tokenizer.get_chat_template())

    @cached_property
    def _usual(self) -> str:
        """The tokenizer's own variables (`bos_token`, say), as transformers gives them; JSON."""
        named = self.tokenizer.special_tokens_map.items()
        return json.dumps({name: _plain(value) for name, value in named})

    @cached_property
    def _forms(self) -> Forms:
        """Whether the template writes contents that are texts, or only lists of parts."""
        turns = [Message(role="user", content="Quokka?"),
                 Message(role="assistant", content="Wombat.")]  # fmt: skip
        for forms in (Forms(), Forms(parts=True)):
            text = self._tried(turns, forms, NOTHING)
            if text is not None and all(turn.content in text for turn in turns):
                return forms
        return Forms()

    @cached_property
    def _call_forms(self) -> Forms | None:
        """The forms in which the template writes calls of tools; None when it writes none."""
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
        """An answer that only calls is nothing to a template that writes no calls."""
        if answer.tool_calls and not answer.content.strip() and self._call_forms is None:
            raise DataError(
                "the answer only calls a tool, and the chat template does not write tool_calls",
                hint="Fix: use a model or a chat_template that knows tools, or write the call "
                "into the content",
            )

    # --- tokens --------------------------------------------------------------------------------

    def _tokenize_anew(self, text: str) -> tuple[int, ...]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        # One object for each id, however often it comes: a fifth of the memory of 100,000 rows.
        return tuple(map(self._shared.setdefault, ids, ids))

    def _after(self, start: str, answer: str) -> list[int]:
        """Ids of the answer behind those of the prompt: the whole text's, split at the prompt.

        An answer tokenized on its own would begin differently: SentencePiece puts a space there.
        """
        before, whole = self._tokenize(start), self._tokenize(start + answer)
        if whole[: len(before)] == before:
            return list(whole[len(before) :])
        self.remarks.torn += 1
        for ids in self._torn(start, answer, whole):
            if self._same_text([*before, *ids], whole):
                return ids
        raise DataError(
            "no tokens of the answer follow those of the prompt: "
            f"…{start[-SHOWN:]!r} and {answer[:SHOWN]!r} share one",
            hint="Fix: use a chat template that ends its prompt in a special token or a new line",
        )

    def _torn(self, start: str, answer: str, whole: Sequence[int]) -> list[list[int]]:
        """Ways to write an answer whose first characters share a token with the prompt's last.

        Sampling has the prompt's own tokens before it, so the shared token cannot come. The rest
        of the whole text's tokens stay; where that is unknown, the answer's own are taken.
        """
        found = []
        if self.tokenizer.is_fast:
            offsets = self.tokenizer(
                start + answer, add_special_tokens=False, return_offsets_mapping=True
            )["offset_mapping"]
            first = next(
                (at for at, (begin, _) in enumerate(offsets) if begin > len(start)), len(offsets)
            )
            border = offsets[first][0] if first < len(offsets) else len(start + answer)
            gap = (start + answer)[len(start) : border]
            found.append([*self._tokenize(gap), *whole[first:]])
        found.append(list(self._tokenize(answer)))
        # Behind a token that joins nothing, where SentencePiece puts no space of its own.
        for anchor in (self.tokenizer.eos_token, "\n"):
            behind = self._tokenize(f"{anchor}{answer}")
            found.append(list(behind[len(self._tokenize(anchor)) :]))
        return found

    def _same_text(self, ids: Sequence[int], others: Sequence[int]) -> bool:
        texts = [
            self.tokenizer.decode(
                list(each), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            for each in (ids, others)
        ]
        return bool(texts[0] == texts[1])

    def _until_stop(self, ids: list[int], begins: int, last: Message) -> list[int]:
        """Cut behind the first stop token of the last turn, as sampling does; add one if none."""
        stops = self.stop_token_ids
        at = next((at for at in range(begins, len(ids)) if ids[at] in stops), None)
        is_cut_off = last.extra.get("stopped") is False
        if at is None:
            end = self.stops.call_end if last.tool_calls else self.stops.end
            return ids if is_cut_off else [*ids, end]
        behind = self.decode(ids[at + 1 :])
        if behind:
            name = self.tokenizer.convert_ids_to_tokens(ids[at])
            raise DataError(
                f"the answer holds {name}, which ends it: {behind[:SHOWN]!r} comes after",
                hint="Fix: take the token out of the text; the chat template writes it itself",
            )
        return ids[:at] if is_cut_off else ids[: at + 1]


def _trained_turns(messages: Sequence[Message]) -> list[int]:
    """Where the answers stand that are trained."""
    return [
        at
        for at, message in enumerate(messages)
        if message.role == "assistant" and message.train is not False
    ]


def _questions(record: Record) -> Iterator[tuple[Sequence[Message], Sequence[Message]]]:
    """Each prompt of a record with an answer of it."""
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
    """Special tokens as texts, lists of them as lists."""
    return [str(each) for each in value] if isinstance(value, list) else str(value)


def _refused(error: TemplateRefusal, wanted: Sequence[tuple[Sequence[Message], bool]]) -> DataError:
    # Templates raise whatever they like; the class says nothing, the text does.
    roles = ", ".join(message.role for message in max((turns for turns, _ in wanted), key=len))
    return DataError(
        f"the chat template refuses these turns ({roles}): {error.message}",
        hint="check the roles and their order",
    )


def _differs(prompt: str, whole: str) -> DataError:
    """Neither a prefix nor a prefix with known text behind it: both texts are shown."""
    at = len(commonprefix([prompt, whole]))
    first = max(0, at - SHOWN)
    return DataError(
        "the chat template renders the prompt differently once an answer follows (after "
        f"{at} characters): sampling would see …{prompt[first : at + SHOWN]!r}, the whole "
        f"conversation is …{whole[first : at + SHOWN]!r}",
        hint="use a template that renders a prefix of the turns as a prefix of the text; where "
        "only the thought differs, chat_template_kwargs (enable_thinking, say) may decide it",
    )
