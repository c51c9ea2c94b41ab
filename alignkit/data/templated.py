"""Find texts that already went through a chat template, and split them into turns again.

A template is applied to every row, so marks inside a text are trained as text, or end a completion
twice. Only the marks of published templates of well-known models are recognized.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

Turn = dict[str, Any]

ROLE = r"(?:system|developer|user|assistant|model|tool|ipython|observation)"
# What opens a turn and names its speaker, by model family.
HEADERS = (
    rf"<\|im_start\|>\s*({ROLE})(?:<\|im_sep\|>|\s*\n|\s*$)",  # ChatML, Phi-4
    rf"<\|(?:start_header_id|header_start)\|>\s*({ROLE})\s*<\|(?:end_header_id|header_end)\|>",
    rf"<\|start_of_role\|>({ROLE})<\|end_of_role\|>",  # Granite
    rf"<(?:start_of_turn>|\|turn>)({ROLE})(?:\n|\s*$)",  # Gemma
    r"<\|(system|user|assistant|observation)\|>",  # Zephyr, Phi-3, GLM
    r"<｜(User|Assistant|System)｜>",  # DeepSeek
    r"<\|START_OF_TURN_TOKEN\|><\|(SYSTEM|USER|CHATBOT)_TOKEN\|>",  # Command
    rf"<\|start\|>({ROLE})(?:<\|channel\|>\w+)?<\|message\|>",  # Harmony
)
HEADER = re.compile("|".join(HEADERS))
INSTRUCTION = re.compile(r"\[INST\]|\[/INST\]")
SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
SPEAKERS = {
    "developer": "system", "model": "assistant", "ipython": "tool", "observation": "tool",
    "chatbot": "assistant",
}  # fmt: skip

STARTS = r"(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<｜begin▁of▁sentence｜>|<BOS_TOKEN>)"
ENDS = (
    r"(?:</s>|<eos>|<\|im_end\|>|<\|endoftext\|>|<\|end_of_text\|>|<\|eot_id\|>|<\|eom_id\|>"
    r"|<\|eot\|>|<\|end\|>|<\|return\|>|<end_of_turn>|<turn\|>|<｜end▁of▁sentence｜>"
    r"|<\|END_OF_TURN_TOKEN\|>)"
)
START = re.compile(rf"\s*{STARTS}")
END = re.compile(rf"\s*{ENDS}\s*\Z")
LAST = re.compile(rf"\s*(?:{ENDS}|{STARTS})\s*\Z")
INNER = re.compile(
    rf"<bos>|<\|begin_of_text\|>|{ENDS}|<\|im_start\|>|<start_of_turn>|\[/INST\]|{HEADER.pattern}"
)

# A text without any of these holds no mark.
PARTS = ("<|", "|>", "s>", "[INST]", "[/INST]", "_of_turn>", "_TOKEN>", "｜")


def may_be_templated(text: str) -> bool:
    """Return whether a text holds parts of marks: a quick look before a thorough one."""
    return ("<" in text or "[" in text) and any([part in text for part in PARTS])


def header_in(text: str) -> str | None:
    """Return the first mark that opens a turn, if marks structure the text; else None.

    A mark that is only mentioned inside a text opens nothing.
    """
    match = HEADER.search(text)
    if match is None:
        match = _instruction(text)
        return match[0].strip() if match else None
    rest = HEADER.search(text, match.end())
    before = text[: match.start()]
    opens = rest or not bare(before) or not text[match.end() :].strip()
    return match[0].strip() if opens else None


def _instruction(text: str) -> re.Match[str] | None:
    """Match [INST] at the beginning of a text, after an optional start token."""
    start = START.match(text)
    return re.compile(r"\s*\[INST\]").match(text, start.end() if start else 0)


def end_of(text: str) -> str | None:
    """Return a mark that ends the text, as a model would, or starts it; else None."""
    if match := END.search(text, max(0, len(text) - 64)):
        mark = match[0].strip()
        return None if mark == "</s>" and _is_struck_out(text) else mark
    match = START.match(text)
    return match[0].strip() if match and match[0].strip() != "<s>" else None


def _is_struck_out(text: str) -> bool:
    """Return whether `</s>` is HTML: it closes an <s> further inside."""
    return text.rfind("<s>") > 0


def mark_inside(text: str) -> str | None:
    """Return a mark anywhere else; `</s>` may be HTML and does not count."""
    marks = (match[0] for match in INNER.finditer(text))
    return next((mark for mark in marks if mark != "</s>"), None)


# --- splitting into turns -----------------------------------------------------------------------


def turns_in(text: str) -> list[Turn] | None:
    """Split a templated text into its turns, without marks; None if that is ambiguous.

    The last one may be an empty assistant turn: where a completion was to begin.
    """
    if _instruction(text):
        return _whole(_instructed(text))
    headers = list(HEADER.finditer(text))
    if not headers:
        return None
    before = bare(text[: headers[0].start()])
    turns = [("system", before)] if before else []
    stops = [*(header.start() for header in headers[1:]), len(text)]
    for header, stop in zip(headers, stops, strict=True):
        spoken = next(role for role in header.groups() if role).lower()
        turns.append((SPEAKERS.get(spoken, spoken), bare(text[header.end() : stop])))
    return _whole(turns)


def _instructed(text: str) -> list[tuple[str, str]]:
    """Split the format of Llama 2 and Mistral: [INST] prompt [/INST] completion."""
    turns: list[tuple[str, str]] = []
    pieces = INSTRUCTION.split(text)
    for position, piece in enumerate(pieces[1:]):
        question = position % 2 == 0
        if question and (system := SYSTEM.match(piece)):
            turns.append(("system", system[1].strip()))
            piece = piece[system.end() :]
        turns.append(("user" if question else "assistant", bare(piece)))
    return turns


def _whole(turns: Sequence[tuple[str, str]]) -> list[Turn] | None:
    """Return the turns, if none holds a mark and only a completion yet to be written is empty.

    Two assistant turns in a row are parts of one, such as a thought, that only its template joins.
    """
    for position, (role, content) in enumerate(turns):
        if position and role == "assistant" == turns[position - 1][0]:
            return None
        waiting = role == "assistant" and position == len(turns) - 1
        if (not content and not waiting) or mark_inside(content) or "</s>" in content:
            return None
    return [{"role": role, "content": content} for role, content in turns]


def bare(text: str) -> str:
    """Strip marks and white space from both ends of a text."""
    text = text.strip()
    while match := START.match(text):
        text = text[match.end() :].lstrip()
    while match := LAST.search(text, max(0, len(text) - 64)):
        text = text[: match.start()].rstrip()
    return text


SIDES = ("chosen", "rejected", "completion")


def untemplated(record: dict[str, Any]) -> dict[str, Any]:
    """Split a record's templated texts into turns; return the same record if none had marks."""
    new = dict(record)
    for key in ("messages", "prompt", *SIDES, "prompt_chosen", "prompt_rejected"):
        if record.get(key):
            new[key] = mended(record[key], answers=key == "messages" or key in SIDES)
    for key in SIDES:
        if key in new:
            new[key] = _after(new["prompt"], new[key])
    if "candidates" in record:
        sides = ((c, mended(c["messages"], answers=True)) for c in record["candidates"])
        new["candidates"] = [{**c, "messages": _after(new["prompt"], side)} for c, side in sides]
    if record.get("plain") and len(new["messages"]) > 1:
        new["plain"] = False
    return record if new == record else new


def _after(prompt: list[Turn], side: list[Turn]) -> list[Turn]:
    """Return a side without the prompt it repeats."""
    own = [(turn["role"], turn["content"]) for turn in side]
    asked = [(turn["role"], turn["content"]) for turn in prompt]
    return side[len(asked) :] if own[: len(asked)] == asked else side


def mended(messages: Sequence[Turn], *, answers: bool) -> list[Turn]:
    """Split templated messages into their turns; keep what is ambiguous.

    `answers` tells whether these messages are trained, so that an assistant turn found in them is
    too; in a prompt it is context.
    """
    result: list[Turn] = []
    for message in messages:
        text = message["content"]
        if header_in(text) is None:
            result.append({**message, "content": bare(text)} if end_of(text) else message)
            continue
        turns = turns_in(text)
        if turns is None:
            result.append(message)
            continue
        asked = message["role"] != "assistant" or not answers
        for turn in turns:
            if turn["role"] == "assistant" and asked:
                turn["train"] = False
        result += turns if not asked or turns[-1]["content"] else turns[:-1]
    return result
