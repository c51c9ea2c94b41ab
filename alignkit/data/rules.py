"""Check rule by rule that a single well-formed record is worth training on.

A rule maps a record to findings. Errors keep a row out of training; warnings do not. Checks that
need more than one record (duplicates, contradictions, leaks) are in `checks`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from alignkit.data.formats.fields import TRAINED_BY, is_number
from alignkit.data.formats.literals import json_list
from alignkit.data.formats.template_keys import RESERVED, unread
from alignkit.data.records import (
    Candidates,
    Conversation,
    Demonstration,
    Label,
    Message,
    Preference,
    Prompt,
    Ranking,
    Record,
)
from alignkit.data.templated import end_of, header_in, mark_inside, may_be_templated
from alignkit.files.problems import Finding, Level

Rule = Callable[[Any], Iterator[Finding]]

REMOVE = "remove the row, or: alignkit data clean --drop {}"


def findings(record: Record, raw: bytes | None = None) -> Iterator[Finding]:
    """Yield all findings of one record; `raw`, its JSON, only saves time."""
    for rule in RULES.get(record.kind, ()):
        yield from rule(record)
    if isinstance(record, Conversation) and (record.extra or record.chat_template_kwargs):
        yield from _template_findings(record)
    if raw is None or not _is_plain(raw) or _calls_or_lists(record):
        whole = isinstance(record, Demonstration) and record.plain
        for field, message in messages_of(record):
            yield from text_findings(field, message.content)
            yield from _written_findings(field, message, whole)


SIDES = {
    "demonstration": ("messages",),
    "prompt": ("prompt",),
    "preference": ("prompt", "chosen", "rejected"),
    "label": ("prompt", "completion"),
}


def _calls_or_lists(record: Record) -> bool:
    """Return whether a turn calls a tool or may be a list as text; a loop, as it runs per row."""
    for name in SIDES.get(record.kind, ()):
        for message in getattr(record, name):
            if message.content[:1] in "[ \n\t" or message.tool_calls:
                return True
    return record.kind not in SIDES


_ESCAPED = re.compile(rb"\\[ubf]")


def _is_plain(raw: bytes) -> bool:
    """Return whether the JSON is plain: only printable ASCII, tabs and line breaks.

    Also no placeholder, and no `<` that may begin a template's mark.
    """
    return (
        raw.isascii()
        and b"<" not in raw
        and b"\x7f" not in raw
        and b"{{" not in raw
        and (b"\\" not in raw or _ESCAPED.search(raw) is None)
    )


# Invisible characters: soft hyphen, zero-width and direction marks, fillers, Braille blank.
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff"
)
_VISIBLE = re.compile(rf"[^\s\x00-\x1f\x7f{INVISIBLE}]")
_UNSEEN_ENDS = re.compile(rf"\A[\s{INVISIBLE}]+|[\s{INVISIBLE}]+\Z")


def is_empty(messages: Sequence[Message]) -> bool:
    """Return whether no message has visible text or a tool call."""
    if len(messages) == 1 and "!" <= messages[0].content[:1] <= "~":
        return False  # nearly always, and this runs several times per row
    return not any([_VISIBLE.search(m.content) or m.tool_calls for m in messages])


def same_text(left: Sequence[Message], right: Sequence[Message]) -> bool:
    """Return whether two sides say the same, ignoring invisible ends of turns."""
    if len(left) != len(right):
        return False
    for a, b in zip(left, right, strict=True):
        left_text, right_text = a.content.strip(), b.content.strip()
        if left_text != right_text and (
            (left_text.isascii() and right_text.isascii()) or _shown(a.content) != _shown(b.content)
        ):
            return False
        if a.role != b.role or any([getattr(a, n) != getattr(b, n) for n in _BESIDES_CONTENT]):
            return False
    return True


_BESIDES_CONTENT = ("tool_calls", "reasoning_content", "thinking")


def _shown(text: str) -> str:
    return _UNSEEN_ENDS.sub("", text)


# --- prompts and roles --------------------------------------------------------------------------


def _prompt(messages: Sequence[Message], *, needed: bool = True) -> Iterator[Finding]:
    if not messages:
        if needed:
            yield Finding(
                "no-prompt", "no prompt", "add a prompt, or name it: --map prompt=KEY", "prompt"
            )
        return
    if is_empty(messages):
        yield Finding("empty-prompt", '"prompt" is empty', REMOVE.format("empty-prompt"), "prompt")
        return
    if messages[-1].role not in ("user", "tool"):
        last = messages[-1].role
        yield Finding(
            "prompt-end",
            f"the prompt ends with {_turn(last)}, not a user turn",
            "move the last turn to the completion",
            "prompt",
            "warning",
        )
    if len(messages) > 1 or messages[0].role != "user":
        yield from _role_order(messages, "prompt")


def _turn(role: str) -> str:
    return f"{'an' if role == 'assistant' else 'a'} {role} turn"


def _role_order(messages: Sequence[Message], field: str) -> Iterator[Finding]:
    """Require system first, then user and assistant alternating; tools after the assistant."""
    before: str | None = None
    for position, message in enumerate(messages):
        role: str = message.role
        if role == "system":
            wrong = "a system turn that is not the first" if position else ""
        elif before is None and role == "assistant":
            wrong = "begins with an assistant turn, before any user turn"
        elif before in (None, "system") and role != "user":
            wrong = f"{_turn(role)} before any user turn"
        elif role == before and role in ("user", "assistant"):
            wrong = f"two {role} turns in a row"
        elif role == "tool" and before == "user":
            wrong = "a tool turn after a user turn"
        else:
            wrong = ""
        before = role
        if wrong:
            yield Finding(
                "role-order",
                f'"{field}[{position}]": {wrong}',
                "merge or reorder turns",
                f"{field}[{position}]",
                "warning",
            )
            return


# --- kinds --------------------------------------------------------------------------------------


def demonstration_rules(record: Demonstration) -> Iterator[Finding]:
    """Require a visible completion at the end, and something to train."""
    if record.plain:
        if is_empty(record.messages):
            yield Finding("empty-side", "the text is empty", REMOVE.format("empty-side"), "text")
        return
    last = record.messages[-1]
    if last.role != "assistant":
        yield Finding(
            "ends-with-user",
            f"the conversation ends with a {last.role} turn: no completion",
            "add the completion, or remove the row",
            "messages",
        )
    elif is_empty([last]):
        yield Finding(
            "empty-side", "the completion is empty", REMOVE.format("empty-side"), "messages"
        )
    yield from _targets(record.messages)
    if len(record.messages) == 1 and last.role == "assistant":
        yield Finding(
            "no-prompt",
            "the completion has no prompt: some chat templates cannot render it alone",
            'add the prompt, or train it without a template: {"text": …}',
            "messages",
            "warning",
        )
    elif len(record.messages) > 1:
        if is_empty(record.messages[:-1]):
            yield Finding(
                "empty-prompt", '"prompt" is empty', REMOVE.format("empty-prompt"), "messages"
            )
        yield from _role_order(record.messages, "messages")


def _targets(messages: Sequence[Message]) -> Iterator[Finding]:
    """Require training marks to be understood, on assistant turns, and not all negative."""
    answers = refused = 0
    for position, message in enumerate(messages):
        if message.role == "assistant":
            answers += 1
            refused += message.train is False
            if message.extra and not TRAINED_BY.keys().isdisjoint(message.extra):
                yield from _unknown_weights(message, f"messages[{position}]")
        elif message.train:
            yield Finding(
                "turn-weight",
                f"a {message.role} turn is marked to be trained; only assistant turns are",
                "mark assistant turns, or train on every token: --train-on all",
                f"messages[{position}]",
                "warning",
            )
    if answers and answers == refused:
        yield Finding(
            "no-target",
            "every assistant turn is marked not to be trained: nothing to learn remains",
            "give a turn weight 1, or: alignkit data clean --drop no-target",
            "messages",
        )


def _unknown_weights(message: Message, field: str) -> Iterator[Finding]:
    for key in TRAINED_BY:
        value = message.extra.get(key)
        if value is not None:
            yield Finding(
                "turn-weight",
                f'"{key}" is {value!r:.40}: a turn is trained wholly or not at all',
                "write 1 or 0, or: alignkit data clean --drop turn-weight",
                f"{field}.{key}",
            )


def _side(messages: Sequence[Message], field: str, level: Level = "error") -> Iterator[Finding]:
    """Require a side to be one completion: every token of it is a target, so no other role."""
    others = [message.role for message in messages if message.role != "assistant"]
    if others:
        yield Finding(
            "side-turns",
            f"'{field}' holds a {others[0]} turn, which would be trained as part of the completion",
            "keep one completion per prompt, or: alignkit data clean --drop side-turns",
            field,
            level,
        )


def prompt_rules(record: Prompt) -> Iterator[Finding]:
    """Require a visible prompt that ends before the completion."""
    yield from _prompt(record.prompt)


def preference_rules(record: Preference) -> Iterator[Finding]:
    """Require one prompt and two visible completions that differ."""
    yield from _prompt(record.prompt)
    if record.prompt_chosen is not None or record.prompt_rejected is not None:
        for before, side in (
            (record.prompt_chosen, "chosen"),
            (record.prompt_rejected, "rejected"),
        ):
            whole = [*(record.prompt if before is None else before), *getattr(record, side)]
            yield from _role_order(whole, side)
        yield Finding(
            "prompts-differ",
            "chosen and rejected answer different prompts",
            REMOVE.format("prompts-differ"),
            "prompt",
        )
    yield from _margin(record)
    empty = []
    if is_empty(record.chosen):
        empty.append("chosen")
    if is_empty(record.rejected):
        empty.append("rejected")
    if len(record.chosen) != 1 or record.chosen[0].role != "assistant":
        yield from _side(record.chosen, "chosen")
    if len(record.rejected) != 1 or record.rejected[0].role != "assistant":
        yield from _side(record.rejected, "rejected")
    for side in empty:
        yield Finding("empty-side", f"'{side}' is empty", REMOVE.format("empty-side"), side)
    if not empty and not record.tie and same_text(record.chosen, record.rejected):
        yield Finding(
            "identical",
            "chosen == rejected: identical completions carry no preference",
            REMOVE.format("identical"),
            "rejected",
        )


def _margin(record: Preference) -> Iterator[Finding]:
    """Report scores that contradict the sides, or carry no preference."""
    margin = record.margin
    if margin is None and not record.extra:
        return
    better, worse = scores_of(record)
    if better is not None and worse is not None:
        margin = better - worse
        shown = f"the rejected completion has score {worse:g}, the chosen one {better:g}"
    else:
        shown = f"margin {margin} is below zero: the rejected completion is the better one"
    if margin is None or record.tie:
        return
    if margin < 0:
        yield Finding(
            "negative-margin",
            shown,
            "alignkit data clean --repair swap-negative, or --drop negative-margin",
            "rejected",
        )
    elif margin == 0 and better is not None:
        yield Finding(
            "equal-scores",
            f"both completions have score {better:g}: the scores give no preference",
            REMOVE.format("equal-scores"),
            "rejected",
            "warning",
        )


def scores_of(record: Preference) -> tuple[float | None, float | None]:
    """Return (chosen's score, rejected's score) from the columns that came with the sides."""
    for name, value in record.extra.items():
        if "chosen" in name and _SCORE.search(name.lower()):
            other = record.extra.get(name.replace("chosen", "rejected"))
            if is_number(value) and is_number(other):
                return float(value), float(other)
    return None, None


_SCORE = re.compile(r"scor|rating|reward|grade")


def _candidate_rules(record: Candidates | Ranking) -> Iterator[Finding]:
    yield from _prompt(record.prompt)
    is_ranked = isinstance(record, Ranking)
    for position, candidate in enumerate(record.candidates):
        field = f"candidates[{position}]"
        # Unranked candidates are not trained on, and people may rank whole conversations.
        yield from _side(candidate.messages, field, "error" if is_ranked else "warning")
        if is_empty(candidate.messages):
            yield Finding(
                "empty-side",
                f"candidate '{candidate.cid}' is empty",
                REMOVE.format("empty-side"),
                field,
                "warning",
            )


def ranking_rules(record: Ranking) -> Iterator[Finding]:
    """Require at least two ranked candidates, and equal ranks for equal texts."""
    yield from _candidate_rules(record)
    if len(record.ranks) < 2:
        yield Finding(
            "unranked",
            f"{len(record.ranks)} of {len(record.candidates)} ranked",
            "rank at least two candidates",
            "ranks",
            "warning",
        )
    seen: dict[str, int] = {}
    for candidate in record.candidates:
        if candidate.cid not in record.ranks:
            continue
        text = "\x1e".join(message.content.strip() for message in candidate.messages)
        rank = seen.setdefault(text, record.ranks[candidate.cid])
        if rank != record.ranks[candidate.cid]:
            yield Finding(
                "identical",
                "identical completions with different ranks carry no preference",
                REMOVE.format("identical"),
                "ranks",
            )
            return


def label_rules(record: Label) -> Iterator[Finding]:
    """Require a visible completion; a prompt is optional."""
    yield from _prompt(record.prompt, needed=False)
    yield from _side(record.completion, "completion")
    if is_empty(record.completion):
        yield Finding(
            "empty-side", "'completion' is empty", REMOVE.format("empty-side"), "completion"
        )


# --- texts --------------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(r"\{\{\s?[A-Za-z_][\w.-]{0,60}\s?\}\}")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")


def _misread(character: str) -> str:
    """Return what the character becomes if its UTF-8 is read as Windows-1252 (or Latin-1)."""
    return "".join(
        bytes([byte]).decode("latin-1" if byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else "cp1252")
        for byte in character.encode()
    )


_OFTEN_MISREAD = [*map(chr, range(0xA0, 0x100)), *"‘’“”–—…•€™", "\ufeff"]
_MISREAD_STARTS = sorted({_misread(character)[0] for character in _OFTEN_MISREAD})
_MOJIBAKE = re.compile("|".join(re.escape(_misread(character)) for character in _OFTEN_MISREAD))


def text_findings(field: str, text: str) -> Iterator[Finding]:
    """Find placeholders, control characters and broken encodings."""
    if "{{" in text:
        yield from _placeholders(field, text)
    if "\x00" in text:
        yield Finding(
            "nul", f'NUL character in "{field}"', "alignkit data clean --repair control", field
        )
    elif match := _CONTROL.search(text):
        yield Finding(
            "control",
            f'control character U+{ord(match[0]):04X} in "{field}"',
            "alignkit data clean --repair control",
            field,
            "warning",
        )
    if text.isascii():
        return
    suspicious = any(start in text for start in _MISREAD_STARTS)
    if suspicious and (match := _MOJIBAKE.search(text)):
        yield Finding(
            "mojibake",
            f'wrongly decoded text, such as {match[0]!r}, in "{field}"',
            "read the source as UTF-8",
            field,
            "warning",
        )
    if "\ufffd" in text:
        yield Finding(
            "mojibake",
            f'replacement character U+FFFD in "{field}"',
            "restore the text from its source",
            field,
            "warning",
        )
    if "\ufeff" in text:
        yield Finding(
            "bom",
            f'byte order mark U+FEFF inside "{field}"',
            "alignkit data clean --repair control",
            field,
            "warning",
        )


def _placeholders(field: str, text: str) -> Iterator[Finding]:
    """Find `{{name}}`, a gap left unfilled; with blanks inside it may well be code."""
    names = dict.fromkeys(_PLACEHOLDER.findall(text))
    tight = [name for name in names if " " not in name]
    fills = " ".join(f"--fill {name.strip('{} ')}=TEXT" for name in tight or names)
    if names:
        many = "s" if len(names) > 1 else ""
        yield Finding(
            "placeholder",
            f'unfilled placeholder{many} {", ".join(names)} in "{field}"',
            f"alignkit data clean {fills}",
            field,
            "error" if tight else "warning",
        )


# --- texts that were something else -------------------------------------------------------------


def _written_findings(field: str, message: Message, plain: bool) -> Iterator[Finding]:
    """Find text that already went through a template, lists as text, and calls not in JSON."""
    text = message.content
    if may_be_templated(text):
        yield from _templated(field, text, plain)
    if text[:1] == "[" and message.role in ("user", "assistant") and _is_list(text):
        yield Finding(
            "list-as-text",
            f'"{field}" is a list written as text ({text[:20]}…)',
            "read the column it belongs to: --format, --map; keep it if the text is intended",
            field,
            "warning",
        )
    for call in message.tool_calls or ():
        yield from _call_findings(field, call)


def _templated(field: str, text: str, plain: bool) -> Iterator[Finding]:
    """Find marks of chat templates; in a text trained without one, an end mark is allowed."""
    fix = "alignkit data clean --repair template"
    if mark := header_in(text):
        yield Finding(
            "templated",
            f'"{field}" already went through a chat template: it contains {mark!r}',
            f"{fix} --to messages" if plain else fix,
            field,
        )
    elif not plain and (mark := end_of(text)):
        yield Finding(
            "templated",
            f'"{field}" has {mark!r} at its {"end" if text.rstrip().endswith(mark) else "start"}, '
            "which the chat template writes itself",
            fix,
            field,
        )
    elif mark := mark_inside(text):
        yield Finding(
            "template-mark",
            f'"{field}" contains {mark!r}, which a tokenizer may read as a special token',
            "split the text there, or keep it if it is intended",
            field,
            "warning",
        )


def _is_list(text: str) -> bool:
    """Return whether a text is a list of texts or objects, as tables write columns of lists."""
    return all(isinstance(item, str | dict) for item in json_list(text) or [None])


def _call_findings(field: str, call: dict[str, Any]) -> Iterator[Finding]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        yield Finding(
            "tool-call",
            "a tool call without a function name, which templates require",
            'write {"type": "function", "function": {"name": …, "arguments": {…}}}',
            f"{field}.tool_calls",
            "warning",
        )
    elif isinstance(function.get("arguments"), str):
        yield Finding(
            "tool-call",
            f"the arguments of {function['name']!r:.40} are not a JSON object",
            "write an object, or its JSON text",
            f"{field}.tool_calls",
            "warning",
        )


def _template_findings(record: Conversation) -> Iterator[Finding]:
    """Find keys meant for the chat template that it cannot receive."""
    for key in unread(record):
        yield Finding(
            "template-key",
            f'"{key}" is not in a form that chat templates read, so it is dropped',
            "tools and documents are arrays of objects, chat_template_kwargs is an object",
            key,
            "warning",
        )
    for name in sorted(RESERVED & (record.chat_template_kwargs or {}).keys()):
        yield Finding(
            "template-key",
            f'"chat_template_kwargs" sets {name!r}, which is not a template variable',
            "make it a column of its own, or remove it",
            "chat_template_kwargs",
        )


def sides_of(record: Record) -> Iterator[tuple[str, Sequence[Message]]]:
    """Yield (field, messages) of every conversation in a record."""
    if isinstance(record, Demonstration):
        yield "messages", record.messages
    elif isinstance(record, Prompt):
        yield "prompt", record.prompt
    elif isinstance(record, Preference):
        yield from (
            ("prompt", record.prompt),
            ("chosen", record.chosen),
            ("rejected", record.rejected),
        )
    elif isinstance(record, Label):
        yield from (("prompt", record.prompt), ("completion", record.completion))
    elif isinstance(record, Candidates | Ranking):
        yield "prompt", record.prompt
        for position, candidate in enumerate(record.candidates):
            yield f"candidates[{position}].messages", candidate.messages


def messages_of(record: Record) -> Iterator[tuple[str, Message]]:
    """Yield (field, message) of every message; a single turn is named by its field alone."""
    for field, messages in sides_of(record):
        for position, message in enumerate(messages):
            yield (field if len(messages) == 1 else f"{field}[{position}]"), message


# Every kind of problem that these rules can report.
RULE_KINDS = (
    "bom", "control", "empty-prompt", "empty-side", "ends-with-user", "equal-scores", "identical",
    "list-as-text", "mojibake", "negative-margin", "no-prompt", "no-target", "nul", "placeholder",
    "prompt-end", "prompts-differ", "role-order", "side-turns", "template-key", "template-mark",
    "templated", "tool-call", "turn-weight", "unranked",
)  # fmt: skip

RULES: dict[str, tuple[Rule, ...]] = {
    "demonstration": (demonstration_rules,),
    "prompt": (prompt_rules,),
    "preference": (preference_rules,),
    "candidates": (_candidate_rules,),
    "ranking": (ranking_rules,),
    "label": (label_rules,),
}
