"""Define the record kinds that every file becomes, and the source of `data_schemas/*.schema.json`.

A record's `kind` states what it holds. Unknown keys of its row are kept in `extra`, its origin in
`source`. Types are strict: `"1"` is not a number and `1` is not a boolean.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from alignkit.files.write import json_line

Role = Literal["system", "user", "assistant", "tool"]
Rank = Annotated[int, Field(ge=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())


class Message(_Strict):
    """One turn of a conversation; `train` tells whether its tokens are a target (null: by role).

    Everything but `train` and `extra` reaches the chat template under its own name.
    """

    role: Role
    content: str = ""
    train: bool | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    thinking: str | None = None
    extra: dict[str, Any] = Field(default_factory=dict)

    @field_validator("tool_calls", mode="after")
    @classmethod
    def _arguments_as_objects(
        cls, calls: list[dict[str, Any]] | None
    ) -> list[dict[str, Any]] | None:
        return calls and [_with_arguments(call) for call in calls]

    @model_serializer(mode="wrap")
    def _only_what_is_set(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {
            key: value
            for key, value in dump(self).items()
            if key in ("role", "content") or not (value is None or value == {})
        }


Messages = list[Message]


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """Return the call with its arguments as an object.

    OpenAI writes them as JSON text, but templates write what they receive as JSON: text would
    reach the model in quotes, with every quote of its own escaped.
    """
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}", parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return call
    if not isinstance(arguments, dict):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class Source(_Strict):
    """Where a record came from: the format's name, the file and the 0-based row."""

    format: str
    file: str
    row: Count


class Record(_Strict):
    """Fields that all kinds share."""

    v: Literal[1] = 1
    kind: str
    id: str = ""
    source: Source | None = None
    extra: dict[str, Any] = Field(default_factory=dict)


TEMPLATE_KEYS = ("tools", "documents", "chat_template_kwargs")


class Conversation(Record):
    """A record with a conversation, and what its chat template receives besides the messages.

    `tools` are JSON schemas of functions, `documents` texts to answer from, and
    `chat_template_kwargs` further variables of the template (such as `enable_thinking`).
    """

    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_serializer(mode="wrap")
    def _without_empty_template_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {
            key: value
            for key, value in dump(self).items()
            if value is not None or key not in TEMPLATE_KEYS
        }


def template_keys(record: Record) -> dict[str, Any]:
    """Return what the chat template receives besides messages, for a record made from this one."""
    if not isinstance(record, Conversation):
        return {}
    values = {key: getattr(record, key) for key in TEMPLATE_KEYS}
    return {key: value for key, value in values.items() if value is not None}


class Demonstration(Conversation):
    """A conversation to imitate, or, where `plain`, one text to continue without any template."""

    kind: Literal["demonstration"] = "demonstration"
    messages: Annotated[Messages, Field(min_length=1)]
    plain: bool = False

    @model_validator(mode="after")
    def _one_text(self) -> Demonstration:
        if self.plain and [message.role for message in self.messages] != ["assistant"]:
            raise ValueError("a plain text must be one assistant turn")
        return self

    @model_serializer(mode="wrap")
    def _without_empty_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        usual: dict[str, Any] = dict.fromkeys(TEMPLATE_KEYS) | {"plain": False}
        return {
            key: value
            for key, value in dump(self).items()
            if key not in usual or value != usual[key]
        }


class Prompt(Conversation):
    """A conversation that ends before the next assistant turn."""

    kind: Literal["prompt"] = "prompt"
    prompt: Annotated[Messages, Field(min_length=1)]


class Candidate(_Strict):
    """One completion of a prompt, named by `cid` within its record."""

    cid: str
    messages: Messages
    model: str | None = None
    gen: dict[str, Any] | None = None
    score: Number | None = None

    @property
    def completion(self) -> Messages:
        """Return the messages, the last one marked `stopped: false` if it was cut off.

        A completion cut off at the token limit has no end to learn.
        """
        cut_off = self.gen is not None and (
            self.gen.get("stopped") is False or self.gen.get("finish_reason") == "length"
        )
        if not cut_off or not self.messages:
            return self.messages
        last = self.messages[-1]
        marked = last.model_copy(update={"extra": {**last.extra, "stopped": False}})
        return [*self.messages[:-1], marked]


def _distinct(candidates: list[Candidate]) -> set[str]:
    cids = {candidate.cid for candidate in candidates}
    if len(cids) != len(candidates):
        raise ValueError("two candidates have the same cid")
    return cids


def _check_ranks(ranks: dict[str, int] | None, cids: set[str]) -> None:
    unknown = sorted(set(ranks or {}) - cids)
    if unknown:
        raise ValueError(f"ranks name {unknown[0]!r}, which is not a candidate")


class Candidates(Conversation):
    """A prompt and completions nobody has ranked yet; `gold` is the expected ranks, if known."""

    kind: Literal["candidates"] = "candidates"
    prompt: Messages
    candidates: Annotated[list[Candidate], Field(min_length=1)]
    gold: dict[str, Rank] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Candidates:
        _check_ranks(self.gold, _distinct(self.candidates))
        return self


class Ranking(Conversation):
    """A prompt and ranked completions: 1 is best, equal is a tie, missing is unranked."""

    kind: Literal["ranking"] = "ranking"
    item: str = ""
    prompt: Messages
    candidates: Annotated[list[Candidate], Field(min_length=2)]
    ranks: dict[str, Rank]
    annotator: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Ranking:
        _check_ranks(self.ranks, _distinct(self.candidates))
        return self


class Preference(Conversation):
    """Two completions of a prompt, one preferred (`tie`: neither).

    `group` names the ranking it was cut from; the weights of a group sum to one. `prompt_chosen`
    and `prompt_rejected` are set only if the two sides were written for different prompts.
    """

    kind: Literal["preference"] = "preference"
    prompt: Messages
    chosen: Messages
    rejected: Messages
    tie: bool = False
    margin: Number | None = None
    weight: Weight = 1.0
    group: str | None = None
    prompt_chosen: Messages | None = None
    prompt_rejected: Messages | None = None


class Label(Conversation):
    """A single completion that somebody labeled good or bad."""

    kind: Literal["label"] = "label"
    prompt: Messages
    completion: Messages
    label: bool


class Event(Record):
    """One action of an annotator, as the log records it."""

    kind: Literal["event"] = "event"
    ts: str
    session: str = ""
    annotator: str
    item: str
    item_sha256: str | None = None
    shown: list[str] = Field(default_factory=list)
    seed: int | None = None
    action: Literal["rank", "pair", "skip", "flag", "undo"]
    ranks: dict[str, Rank] | None = None
    all_bad: bool = False
    strength: int | None = None
    comment: str = ""
    reason: str | None = None
    active_ms: Count | None = None
    wall_ms: Count | None = None
    ui: str | None = None
    repeat_of: str | None = None
    gold: bool = False
    supersedes: str | None = None
    prev: str | None = None


class Judgement(Record):
    """A judge's verdict on two models, in terms of `a` and `b`, not of the order shown."""

    kind: Literal["judgement"] = "judgement"
    prompt_id: str
    a: str
    b: str
    first: Literal["a", "b"] | None = None
    verdict: Literal["a", "b", "tie"] | None = None
    score: Share | None = None
    judge: str = ""
    prompt: Messages | str | None = None
    output_a: str | None = None
    output_b: str | None = None
    len_a: Count | None = None
    len_b: Count | None = None
    error: str | None = None


# A new kind is one class above and one entry here.
KINDS: dict[str, type[Record]] = {
    "demonstration": Demonstration,
    "prompt": Prompt,
    "candidates": Candidates,
    "ranking": Ranking,
    "preference": Preference,
    "label": Label,
    "event": Event,
    "judgement": Judgement,
}


def to_json(record: Record) -> bytes:
    """Return the record as one line of JSON, with its newline."""
    return json_line(record.model_dump())


def json_schema(kind: str) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of one kind, the content of `KIND.schema.json`."""
    schema = KINDS[kind].model_json_schema(mode="validation")
    # In code the class implies `kind`, so it has a default; a row in a file must state it.
    schema["required"] = ["kind", *schema.get("required", [])]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
