"""Formats of whole conversations: TRL and OpenAI messages, ShareGPT, LLaMA-Factory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.data.formats.fields import (
    Fields,
    Format,
    Row,
    Turn,
    assistant,
    boolean,
    either,
    expected,
    is_number,
    keys,
    message_rows,
    messages_in,
    missing,
    not_text,
    only_text,
    openai_rows,
    optional_text,
    shared,
    shared_rows,
    sides_of,
    split_completion,
    split_sides,
    system_turn,
    text,
    text_or_rows,
    trained_rows,
    turns,
    untrained,
)
from alignkit.data.formats.template_keys import calls_as_openai, tools_of
from alignkit.data.records import Demonstration, Label, Message, Preference, Prompt
from alignkit.files.problems import RowError

# --- TRL ----------------------------------------------------------------------------------------


def read_messages(row: Row) -> Fields:
    """Read `messages` as a demonstration."""
    return {"messages": turns(row["messages"], "messages")}


def write_messages(record: Demonstration) -> Fields:
    """Write `messages`, with `train` on turns that state whether they are trained."""
    return {"messages": trained_rows(record.messages, "train", bool)}


def write_openai(record: Demonstration) -> Fields:
    """Write `messages`, with OpenAI's `weight` on turns that state whether they are trained."""
    return {"messages": openai_rows(record.messages)}


def read_text(row: Row) -> Fields:
    """Read bare text to imitate, whole and without a template."""
    return {"messages": [assistant(text(row, "text"))], "plain": True}


def write_text(record: Demonstration) -> Fields:
    """Write the record's only text."""
    return {"text": only_text(record.messages, "messages")}


def demonstration_of(prompt: list[Turn], completion: list[Turn]) -> Fields:
    """Build a demonstration whose earlier assistant turns are context, not targets."""
    return {"messages": [*map(untrained, prompt), *completion]}


def split_messages(record: Demonstration) -> tuple[list[Message], list[Message]]:
    """Split a demonstration into (prompt, completion), after the last user turn."""
    end = len(record.messages)
    while end and record.messages[end - 1].role in ("assistant", "tool"):
        end -= 1
    start = min(end, len(record.messages))
    return record.messages[:start], record.messages[start:]


def pair_format(name: str, prompt_key: str, completion_key: str, about: str) -> Format:
    """Build a format of demonstrations in two columns, each text or messages."""

    def read(row: Row) -> Fields:
        return demonstration_of(
            either(row[prompt_key], prompt_key, "user"),
            either(row[completion_key], completion_key, "assistant"),
        )

    def write(record: Demonstration) -> Fields:
        prompt, completion = split_messages(record)
        return _in_one_shape(
            {prompt_key: (prompt, "user"), completion_key: (completion, "assistant")}
        )

    wanted = keys(prompt_key, completion_key)
    return Format(
        name, "demonstration", wanted, read, write, sample=prompt_key, asks=prompt_key, about=about
    )


def _in_one_shape(sides: Mapping[str, tuple[Sequence[Message], str]]) -> Fields:
    """Write all sides as text if all can be, else all as messages: rows must not mix the two."""
    as_text = {key: text_or_rows(messages, role) for key, (messages, role) in sides.items()}
    if all(isinstance(value, str) for value in as_text.values()):
        return as_text
    return {key: message_rows(messages) for key, (messages, _) in sides.items()}


def read_preference(row: Row) -> Fields:
    """Read `chosen` and `rejected` with a `prompt`, or as conversations that begin alike."""
    fields: Fields = {
        name: row[name]
        for name in ("margin", "weight", "group", "tie")
        if row.get(name) is not None
    }
    chosen = either(row["chosen"], "chosen", "assistant")
    rejected = either(row["rejected"], "rejected", "assistant")
    if row.get("prompt") is not None:
        prompt = either(row["prompt"], "prompt", "user")
        if not (_is_whole(chosen) and _is_whole(rejected)):
            return fields | {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        if not is_text(row["prompt"]):
            chosen, rejected = _after(prompt, chosen), _after(prompt, rejected)
        return fields | split_sides(chosen, rejected)
    if is_text(row["chosen"]) or is_text(row["rejected"]):
        return fields | {"prompt": [], "chosen": chosen, "rejected": rejected}
    return fields | split_sides(chosen, rejected)


def is_text(value: object) -> bool:
    """Return whether a side is text, not messages that a table wrote as text."""
    return isinstance(value, str) and messages_in(value, "") is None


def _is_whole(side: Sequence[Turn]) -> bool:
    """Return whether a side is a chat that includes its prompt."""
    return len(side) > 1 and side[0]["role"] != "assistant" and side[-1]["role"] == "assistant"


def _after(prompt: list[Turn], side: list[Turn]) -> list[Turn]:
    """Return the whole chat: the prompt and the side, which may repeat the prompt."""
    return side if side[: len(prompt)] == prompt else [*prompt, *side]


def write_preference(record: Preference) -> Fields:
    """Write prompt, chosen and rejected; weight, group and margin where they are set."""
    sides: dict[str, tuple[Sequence[Message], str]] = {
        "prompt": (record.prompt, "user"),
        "chosen": (record.chosen, "assistant"),
        "rejected": (record.rejected, "assistant"),
    }
    if record.prompt_chosen is not None or record.prompt_rejected is not None:
        chosen, rejected = sides_of(record)
        row: Fields = {"chosen": message_rows(chosen), "rejected": message_rows(rejected)}
    else:
        if not record.prompt:
            del sides["prompt"]
        row = _in_one_shape(sides)
    if record.margin is not None:
        row["margin"] = record.margin
    if record.weight != 1.0:
        row["weight"] = record.weight
    if record.group is not None:
        row["group"] = record.group
    if record.tie:
        row["tie"] = True
    return row


def read_binarized(row: Row) -> Fields:
    """Read UltraFeedback binarized: both sides hold whole chats, the scores give the margin."""
    fields = split_sides(turns(row["chosen"], "chosen"), turns(row["rejected"], "rejected"))
    better, worse = row.get("score_chosen"), row.get("score_rejected")
    if is_number(better) and is_number(worse):
        fields["margin"] = float(better - worse)
    return fields


def write_binarized(record: Preference) -> Fields:
    """Write both sides as whole chats; the prompt is the first user text."""
    chosen, rejected = sides_of(record)
    asked = [message.content for message in record.prompt if message.role == "user"]
    row: Fields = {
        "prompt": asked[0] if asked else "",
        "chosen": message_rows(chosen),
        "rejected": message_rows(rejected),
        "messages": message_rows(chosen),
    }
    if "score_chosen" not in record.extra:
        row["score_chosen"], row["score_rejected"] = record.margin, 0.0
    return row


def read_label(row: Row) -> Fields:
    """Read a prompt, a completion and whether it is good."""
    prompt = [] if row.get("prompt") is None else either(row["prompt"], "prompt", "user")
    return {
        "prompt": prompt,
        "completion": either(row["completion"], "completion", "assistant"),
        "label": boolean(row, "label"),
    }


def write_label(record: Label) -> Fields:
    """Write `prompt`, `completion` and `label`."""
    sides: dict[str, tuple[Sequence[Message], str]] = {
        "prompt": (record.prompt, "user"),
        "completion": (record.completion, "assistant"),
    }
    if not record.prompt:
        del sides["prompt"]
    return {**_in_one_shape(sides), "label": record.label}


def read_labelled_text(row: Row) -> Fields:
    """Read text labeled good or bad, without a prompt."""
    return {
        "prompt": [],
        "completion": [assistant(text(row, "text"))],
        "label": boolean(row, "label"),
    }


def write_labelled_text(record: Label) -> Fields:
    """Write `text` and `label`, which cannot hold a prompt."""
    return {"text": only_text(record.completion, "completion"), "label": record.label}


def read_prompt(row: Row) -> Fields:
    """Read a prompt alone."""
    return {"prompt": either(row["prompt"], "prompt", "user")}


def write_prompt(record: Prompt) -> Fields:
    """Write `prompt` as text or messages."""
    return {"prompt": text_or_rows(record.prompt, "user")}


def read_turns(row: Row) -> Fields:
    """Read MT-bench and Arena-Hard: the first turn is the prompt; later turns are left out."""
    asked = row["turns"]
    if type(asked) is not list or not asked:
        raise expected(asked, "an array of texts", "turns")
    first = asked[0].get("content") if type(asked[0]) is dict else asked[0]  # Arena-Hard's
    if type(first) is not str:
        raise not_text(first, "turns[0]")
    return {"prompt": [{"role": "user", "content": first}]}


def write_turns(record: Prompt) -> Fields:
    """Write `turns` with the one prompt."""
    return {"turns": [only_text(record.prompt, "prompt")]}


# --- OpenAI preference fine-tuning --------------------------------------------------------------


def read_openai_preference(row: Row) -> Fields:
    """Read `input.messages`, `preferred_output` and `non_preferred_output`."""
    asked = row["input"]
    if type(asked) is not dict:
        raise expected(asked, "an object with messages", "input")
    if "messages" not in asked:
        raise missing(asked, keys("messages")).within("input")
    fields: Fields = {
        "prompt": turns(asked["messages"], "input.messages"),
        "chosen": turns(row["preferred_output"], "preferred_output"),
        "rejected": turns(row["non_preferred_output"], "non_preferred_output"),
    }
    rest = {key: value for key, value in asked.items() if key != "messages"}
    for key in ("tools", "functions"):
        if "tools" not in fields and (tools := tools_of(rest.get(key))):
            fields["tools"] = tools
            del rest[key]
    return fields | ({"extra": {"input": rest}} if rest else {})


def write_openai_preference(record: Preference) -> Fields:
    """Write OpenAI's three columns; the tools go inside `input`."""
    carried = record.extra.get("input")
    rest = carried if isinstance(carried, dict) else {}
    tools = {"tools": record.tools} if record.tools is not None else {}
    return {
        "input": {"messages": openai_rows(record.prompt), **tools, **rest},
        "preferred_output": openai_rows(record.chosen),
        "non_preferred_output": openai_rows(record.rejected),
    }


# --- ShareGPT -----------------------------------------------------------------------------------


def shared_turns(row: Row) -> list[Turn]:
    """Return the conversation of a ShareGPT row, its `system` column first."""
    value = row["conversations"]
    if type(value) is str:
        value = messages_in(value, "conversations") or value
    if type(value) is not list:
        raise expected(value, "an array of turns", "conversations")
    conversation = [shared(item, f"conversations[{i}]") for i, item in enumerate(value)]
    return system_turn(optional_text(row, "system")) + conversation


def read_sharegpt(row: Row) -> Fields:
    """Read `conversations` as a demonstration."""
    return {"messages": shared_turns(row)}


def write_sharegpt(record: Demonstration) -> Fields:
    """Write `conversations`."""
    return {"conversations": shared_rows(record.messages)}


def read_sharegpt_preference(row: Row) -> Fields:
    """Read the prompt from `conversations`, and two completions."""
    prompt = shared_turns(row)
    chosen, rejected = _shared_side(row, "chosen"), _shared_side(row, "rejected")
    if _is_whole(chosen) and _is_whole(rejected):
        return split_sides(_after(prompt, chosen), _after(prompt, rejected))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _shared_side(row: Row, key: str) -> list[Turn]:
    """Read a side of a ShareGPT preference: one turn, several, or the completion's text."""
    value = row[key]
    if type(value) is str:
        value = messages_in(value, key) or value
    if type(value) is str:
        return [assistant(value)]
    if type(value) is list:
        return [shared(item, f"{key}[{i}]") for i, item in enumerate(value)]
    return [shared(value, key)]


def write_sharegpt_preference(record: Preference) -> Fields:
    """Write `conversations`, `chosen` and `rejected`."""
    chosen, rejected = shared_rows(record.chosen), shared_rows(record.rejected)
    return {
        "conversations": shared_rows(record.prompt),
        "chosen": chosen[0] if len(chosen) == 1 else chosen,
        "rejected": rejected[0] if len(rejected) == 1 else rejected,
    }


def read_sharegpt_label(row: Row) -> Fields:
    """Read `conversations` whose last turn is labeled good or bad by `kto_tag`."""
    prompt, completion = split_completion(shared_turns(row), "conversations")
    return {"prompt": prompt, "completion": completion, "label": boolean(row, "kto_tag")}


def write_sharegpt_label(record: Label) -> Fields:
    """Write `conversations` and `kto_tag`."""
    conversation = shared_rows([*record.prompt, *record.completion])
    return {"conversations": conversation, "kto_tag": record.label}


# --- LLaMA-Factory ------------------------------------------------------------------------------


def read_messages_label(row: Row) -> Fields:
    """Read `messages` whose last turn is labeled good or bad."""
    prompt, completion = split_completion(turns(row["messages"], "messages"), "messages")
    return {"prompt": prompt, "completion": completion, "label": boolean(row, "label")}


def write_messages_label(record: Label) -> Fields:
    """Write `messages` and `label`."""
    return {
        "messages": message_rows([*record.prompt, *record.completion]),
        "label": record.label,
    }


def _parts(messages: Sequence[Message]) -> list[Turn]:
    """Write messages of LLaMA-Factory v1: typed parts, and loss_weight for what is trained."""
    rows = []
    for row, message in zip(message_rows(messages), messages, strict=True):
        row["content"] = [{"type": "text", "value": message.content}]
        if row.get("tool_calls"):
            row["tool_calls"] = calls_as_openai(row["tool_calls"])
        trained = message.role == "assistant" if message.train is None else message.train
        row.setdefault("loss_weight", float(trained))
        if message.train and message.role == "assistant":
            row["train"] = True  # explicit, not implied by the role
        rows.append(row)
    return rows


def _weighed(value: Any, key: str) -> list[Turn]:
    """Read v1 messages; drop a loss_weight that only repeats what the role implies."""
    if type(value) is list:
        value = [
            {name: inner for name, inner in item.items() if name != "loss_weight"}
            if isinstance(item, dict)
            and item.get("loss_weight") == float(item.get("role") == "assistant")
            else item
            for item in value
        ]
    return turns(value, key)


def read_v1(row: Row) -> Fields:
    """Read LLaMA-Factory v1 `messages` with parts."""
    return {"messages": _weighed(row["messages"], "messages")}


def write_v1(record: Demonstration) -> Fields:
    """Write `messages` with parts and loss weights."""
    return {"messages": _parts(record.messages)}


def read_v1_preference(row: Row) -> Fields:
    """Read `chosen_messages` and `rejected_messages`, two conversations that begin alike."""
    return split_sides(
        _weighed(row["chosen_messages"], "chosen_messages"),
        _weighed(row["rejected_messages"], "rejected_messages"),
    )


def write_v1_preference(record: Preference) -> Fields:
    """Write two whole conversations with parts."""
    chosen, rejected = sides_of(record)
    return {"chosen_messages": _parts(chosen), "rejected_messages": _parts(rejected)}


# --- HH-RLHF ------------------------------------------------------------------------------------

_TURN_START = re.compile(r"\n\n(Human|Assistant): ?")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
MARKS = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}


def is_transcript(value: object) -> bool:
    """Return whether a text is a transcript of Human and Assistant turns."""
    return isinstance(value, str) and value.startswith(("\n\nHuman:", "\n\nAssistant:"))


def transcript(value: str, key: str) -> list[Turn]:
    """Split a transcript into turns; only a marker after a blank line starts one."""
    pieces = _TURN_START.split(value)
    if pieces[0]:
        raise RowError(
            "transcript",
            f'"{key}" does not begin with "\\n\\nHuman:"',
            'write turns as "\\n\\nHuman: …\\n\\nAssistant: …"',
            field=key,
        )
    return [
        {"role": SPEAKERS[speaker], "content": content}
        for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def read_transcripts(row: Row) -> Fields:
    """Read two whole transcripts, split where the completion begins, never inside a turn."""
    return split_sides(
        transcript(text(row, "chosen"), "chosen"), transcript(text(row, "rejected"), "rejected")
    )


def write_transcript(messages: Sequence[Message]) -> str:
    """Write messages as one transcript; it cannot hold other roles."""
    for message in messages:
        if message.role not in MARKS:
            raise RowError(
                "role",
                f'a transcript cannot hold a "{message.role}" turn',
                "choose a format that holds messages",
            )
    return "".join(MARKS[message.role] + message.content for message in messages)


def write_transcripts(record: Preference) -> Fields:
    """Write `chosen` and `rejected` as whole transcripts."""
    chosen, rejected = sides_of(record)
    return {"chosen": write_transcript(chosen), "rejected": write_transcript(rejected)}


# --- the tables ---------------------------------------------------------------------------------


def _has_parts(row: Row) -> bool:
    value = row["messages"]
    return isinstance(value, list) and any(
        isinstance(item, dict) and ("loss_weight" in item or _typed_value(item.get("content")))
        for item in value
    )


def _typed_value(content: object) -> bool:
    return isinstance(content, list) and any(
        isinstance(part, dict) and "value" in part for part in content
    )


def _is_openai(row: Row) -> bool:
    value = row["messages"]
    return "parallel_tool_calls" in row or (
        isinstance(value, list) and any(isinstance(i, dict) and "weight" in i for i in value)
    )


def _both_transcripts(row: Row) -> bool:
    return "prompt" not in row and (is_transcript(row["chosen"]) or is_transcript(row["rejected"]))


def _is_binarized(row: Row) -> bool:
    return isinstance(row["chosen"], list) and "score_chosen" in row and "score_rejected" in row


CONVERSATIONS = [
    Format("hh-rlhf", "preference", keys("chosen", "rejected"), read_transcripts, write_transcripts,
           when=_both_transcripts, about="Human/Assistant transcripts"),
    Format("sharegpt-preference", "preference", keys("conversations", "chosen", "rejected"),
           read_sharegpt_preference, write_sharegpt_preference, also=keys("system"),
           asks="conversations",
           about="ShareGPT turns and two completions (LLaMA-Factory)"),
    Format("sharegpt-kto", "label", keys("conversations", "kto_tag"), read_sharegpt_label,
           write_sharegpt_label, also=keys("system"), asks="conversations",
           about="ShareGPT turns and kto_tag"),
    Format("sharegpt", "demonstration", keys("conversations"), read_sharegpt, write_sharegpt,
           also=keys("system"), asks="conversations", about="conversations of {from, value}"),
    Format("llamafactory-v1-preference", "preference", keys("chosen_messages", "rejected_messages"),
           read_v1_preference, write_v1_preference, about="LLaMA-Factory v1, two conversations"),
    Format("llamafactory-v1", "demonstration", keys("messages"), read_v1, write_v1,
           when=_has_parts, asks="messages", about="LLaMA-Factory v1: typed parts, loss_weight"),
    Format("openai-preference", "preference",
           keys("input", "preferred_output", "non_preferred_output"), read_openai_preference,
           write_openai_preference, places=keys("tools"), about="OpenAI preference fine-tuning"),
]  # fmt: skip

PLAIN = [
    Format("kto", "label", keys("completion", "label"), read_label, write_label,
           also=keys("prompt"), asks="prompt", sample="completion",
           about="TRL unpaired preference"),
    Format("messages-kto", "label", keys("messages", "label"), read_messages_label,
           write_messages_label, asks="messages",
           about="messages whose last turn is good or bad"),
    Format("openai-chat", "demonstration", keys("messages"), read_messages, write_openai,
           when=_is_openai, asks="messages",
           about="OpenAI fine-tuning: messages with weight and tools"),
    Format("ultrafeedback-binarized", "preference",
           keys("chosen", "rejected"), read_binarized, write_binarized,
           also=keys("prompt", "messages"), when=_is_binarized, about="two whole chats and scores"),
    Format("preference", "preference", keys("chosen", "rejected"), read_preference,
           write_preference, also=keys("prompt", "margin", "weight", "group", "tie"),
           asks="prompt", sample="chosen",
           about="TRL: [prompt,] chosen, rejected; text or messages"),
    Format("messages", "demonstration", keys("messages"), read_messages, write_messages,
           asks="messages", about="messages of {role, content} (TRL, OpenAI, Hugging Face)"),
    pair_format("prompt-completion", "prompt", "completion", "TRL: prompt and completion"),
    pair_format("prompt-response", "prompt", "response", "prompt and response"),
    pair_format("question-answer", "question", "answer", "question and answer"),
    pair_format("instruction-response", "instruction", "response", "instruction and response"),
    Format("labelled-text", "label", keys("text", "label"), read_labelled_text,
           write_labelled_text, about="text and 0/1, no prompt"),
    Format("text", "demonstration", keys("text"), read_text, write_text, about="bare text"),
    Format("mt-bench", "prompt", keys("turns"), read_turns, write_turns,
           when=lambda row: "question_id" in row or "uid" in row,
           about="MT-bench and Arena-Hard questions"),
    Format("prompt", "prompt", keys("prompt"), read_prompt, write_prompt, asks="prompt",
           sample="prompt", about="prompts alone"),
]  # fmt: skip
