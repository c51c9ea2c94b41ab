"""From messages to token ids: the one rendering that every stage uses, template applied once.

A completion's ids are what the template adds after the prompt, tokenized on their own, cut after
the stop token. Prompt ids are therefore always a prefix of what is trained and what is sampled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from alignkit.data.records import Demonstration, Message
from alignkit.errors import DataError, ModelError

Turns = tuple[tuple[str, str], ...]
REMEMBERED = 1024  # texts and their ids; rows that share some lie beside each other


@dataclass(frozen=True)
class Tokens:
    """Token ids of a conversation and which of them are trained; equally long."""

    ids: list[int]
    trained: list[bool]


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
        self.stop_token_ids = _stop_token_ids(tokenizer)
        # A prompt is asked for with each of its completions, a completion with each of its rivals.
        self._render_turns = lru_cache(maxsize=REMEMBERED)(self._render_anew)
        self._tokenize = lru_cache(maxsize=REMEMBERED)(self._tokenize_anew)
        self._shared: dict[int, int] = {}

    @property
    def pad_token_id(self) -> int:
        """The id that fills padded rows; never read, whatever it is."""
        return int(self.tokenizer.pad_token_id)

    @property
    def end_token_id(self) -> int:
        """The stop token that this template closes an answer with."""
        asked, answer = Message(role="user", content="a"), Message(role="assistant", content="a")
        return self.completion_ids([asked], [answer])[-1]

    @property
    def template_sha256(self) -> str:
        """Identity of the chat template, stamped into every artifact."""
        return hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The prompt as the model reads it, up to where its answer begins."""
        return self._render(messages, add_generation_prompt=True)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the prompt, up to where the answer begins."""
        return list(self._tokenize(self.prompt_text(messages)))

    def completion_ids(self, prompt: Sequence[Message], completion: Sequence[Message]) -> list[int]:
        """Token ids the model has to produce after the prompt, ending in a stop token."""
        start = self.prompt_text(prompt)
        whole = self._render([*prompt, *completion], add_generation_prompt=False)
        if not whole.startswith(start):
            start = _common_start(start, whole, self._render(prompt, add_generation_prompt=False))
        return self._until_stop(self._tokenize(whole[len(start) :]))

    def encode_demonstration(self, demonstration: Demonstration, train_on: str) -> Tokens:
        """Ids of a whole conversation and the tokens to train.

        `completion`: every assistant turn up to its stop token, except those marked
        `train: false` and one that opens the conversation. `all`: every token. A plain text is
        trained whole, without the template.
        """
        messages = demonstration.messages
        if demonstration.plain:
            return self.encode_text(messages[0].content)
        if train_on == "all":
            ids = self._until_stop(self._tokenize(self._render(messages, False)))
            return Tokens(ids, [True] * len(ids))
        return self._encode_turns(messages)

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

    def _encode_turns(self, messages: Sequence[Message]) -> Tokens:
        ids: list[int] = []
        trained: list[bool] = []
        for end, message in enumerate(messages):
            if message.role != "assistant" or message.train is False or end == 0:
                continue  # an answer to nothing is context: no template renders an empty prompt
            prompt = self.prompt_ids(messages[:end])
            if prompt[: len(ids)] != ids:
                # The template renders an earlier turn differently later on (it may drop reasoning):
                # what came before is context then, not a target.
                ids, trained = [], []
            answer = self.completion_ids(messages[:end], [message])
            trained += [False] * (len(prompt) - len(ids)) + [True] * len(answer)
            ids = prompt + answer
        return Tokens(ids, trained)

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        turns = tuple((m.role, m.content) for m in messages)
        return self._render_turns(turns, add_generation_prompt)

    def _render_anew(self, turns: Turns, add_generation_prompt: bool) -> str:
        plain = [{"role": role, "content": content} for role, content in turns]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    plain, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except Exception as error:
            # Templates raise whatever they like; the class says nothing, the text does.
            roles = ", ".join(role for role, _ in turns)
            raise DataError(
                f"the chat template refuses these turns ({roles}): {error}",
                hint="check the roles and their order",
            ) from error

    def _tokenize_anew(self, text: str) -> tuple[int, ...]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        # One object for each id, however often it comes: a fifth of the memory of 100,000 rows.
        return tuple(map(self._shared.setdefault, ids, ids))

    def _until_stop(self, ids: Sequence[int]) -> list[int]:
        """Cut what the template adds after the last stop token; add EOS when there is none."""
        for end in range(len(ids), 0, -1):
            if ids[end - 1] in self.stop_token_ids:
                return list(ids[:end])
        return [*ids, int(self.tokenizer.eos_token_id)]


def _stop_token_ids(tokenizer: Any) -> frozenset[int]:
    """EOS, and the tokens that end a turn in well-known templates when the vocabulary has them."""
    stops = {int(tokenizer.eos_token_id)}
    template = str(tokenizer.chat_template)
    vocabulary = tokenizer.get_vocab()
    for token in ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<turn|>", "<|eot|>"):
        if token in vocabulary and token in template:
            stops.add(int(vocabulary[token]))
    return frozenset(stops)


def _common_start(prompt: str, whole: str, closed: str) -> str:
    """Where the answer begins when the generation prompt is not a prefix of the rendered whole.

    Templates that open the answer with text of their own (an empty thought, say) render the
    prompt without it once the answer is there: the prompt without a generation prompt is then
    the last point on which both agree.
    """
    if whole.startswith(closed):
        return closed
    raise DataError(
        "the chat template renders the prompt differently once an answer follows "
        f"(after {len(prompt)} characters)",
        hint="use a template that renders a prefix of the turns as a prefix of the text",
    )
