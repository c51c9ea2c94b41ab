"""What a single well-formed record must hold to be worth training on, rule by rule.

A rule is a function from a record to findings. Errors keep a row out of training; warnings do not.
What takes more than one record to see (duplicates, contradictions, leaks) is in `check`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeGuard

from alignkit.data.formats.shape import TRAINED_BY
from alignkit.data.formats.template_keys import RESERVED, listed, unread
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
    """Everything the rules find in one record; `raw`, its JSON, only saves time."""
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
    """Whether a turn calls a tool or may be a list written as text; loops, for every row's sake."""
    for name in SIDES.get(record.kind, ()):
        for message in getattr(record, name):
            if message.content[:1] in "[ \n\t" or message.tool_calls:
                return True
    return record.kind not in SIDES


_ESCAPED = re.compile(rb"\\[ubf]")


def _is_plain(raw: bytes) -> bool:
    """No placeholder, no `<` that a template's mark may begin with, and nothing outside printable
    ASCII, tabs and line breaks in the JSON."""
    return (
        raw.isascii()
        and b"<" not in raw
        and b"\x7f" not in raw
        and b"{{" not in raw
        and (b"\\" not in raw or _ESCAPED.search(raw) is None)
    )


# Characters that show nothing: soft hyphen, zero-width and direction marks, fillers, Braille blank.
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff"
)
_VISIBLE = re.compile(rf"[^\s\x00-\x1f\x7f{INVISIBLE}]")
_UNSEEN_ENDS = re.compile(rf"\A[\s{INVISIBLE}]+|[\s{INVISIBLE}]+\Z")


def is_empty(messages: Sequence[Message]) -> bool:
    """Whether no message says or calls anything that can be seen."""
    if len(messages) == 1 and "!" <= messages[0].content[:1] <= "~":
        return False  # nearly always, and this runs several times for every row
    return not any([_VISIBLE.search(m.content) or m.tool_calls for m in messages])


def same_text(left: Sequence[Message], right: Sequence[Message]) -> bool:
    """Whether two sides say the same, what cannot be seen at the ends of turns aside."""
    if len(left) != len(right):
        return False
    for a, b in zip(left, right, strict=True):
        left_text, right_text = a.content.strip(), b.content.strip()
        if left_text != right_text and (
            (left_text.isascii() and right_text.isascii()) or _shown(a.content) != _shown(b.content)
        ):
            return False
        if a.role != b.role or any([getattr(a, n) != getattr(b, n) for n in _SAID_BESIDE]):
            return False
    return True


_SAID_BESIDE = ("tool_calls", "reasoning_content", "thinking")


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
            f"the prompt ends with a {last} turn, not with a user turn",
            "move the last turn to the completion",
            "prompt",
            "warning",
        )
    if len(messages) > 1 or messages[0].role != "user":
        yield from _role_order(messages, "prompt")


def _role_order(messages: Sequence[Message], field: str) -> Iterator[Finding]:
    """System first, then user and assistant in turn; tools speak after the assistant."""
    before: str | None = None
    for position, message in enumerate(messages):
        role: str = message.role
        if role == "system":
            wrong = "a system turn that is not the first" if position else ""
        elif before is None and role == "assistant":
            wrong = "begins with an assistant turn, which no user turn asked for"
        elif before in (None, "system") and role != "user":
            wrong = f"{'an' if role == 'assistant' else 'a'} {role} turn before any user turn"
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
    """An answer at the end that says something, and something to train."""
    if record.plain:
        if is_empty(record.messages):
            yield Finding("empty-side", "the text is empty", REMOVE.format("empty-side"), "text")
        return
    last = record.messages[-1]
    if last.role != "assistant":
        yield Finding(
            "ends-with-user",
            f"the conversation ends with a {last.role} turn: no answer",
            "add the answer, or remove the row",
            "messages",
        )
    elif is_empty([last]):
        yield Finding("empty-side", "the answer is empty", REMOVE.format("empty-side"), "messages")
    yield from _targets(record.messages)
    if len(record.messages) == 1 and last.role == "assistant":
        yield Finding(
            "no-prompt",
            "the answer has no prompt: some chat templates cannot show it alone",
            'add the question, or train it without a template: {"text": …}',
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
    """What the turns say about being trained: understood, of assistant turns, and not all no."""
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
            "every assistant turn is marked not to be trained: nothing is left to learn",
            "weigh a turn 1, or: alignkit data clean --drop no-target",
            "messages",
        )


def _unknown_weights(message: Message, field: str) -> Iterator[Finding]:
    for key in TRAINED_BY:
        value = message.extra.get(key)
        if value is not None:
            yield Finding(
                "turn-weight",
                f'"{key}" is {value!r:.40}: a turn is trained whole or not at all',
                "write 1 or 0, or: alignkit data clean --drop turn-weight",
                f"{field}.{key}",
            )


def _side(messages: Sequence[Message], field: str, level: Level = "error") -> Iterator[Finding]:
    """A side is one answer: every token of it is a target, and nobody else may speak in it."""
    others = [message.role for message in messages if message.role != "assistant"]
    if others:
        yield Finding(
            "side-turns",
            f"'{field}' holds a {others[0]} turn, whose words would be trained as the answer's",
            "keep one answer to one prompt, or: alignkit data clean --drop side-turns",
            field,
            level,
        )


def prompt_rules(record: Prompt) -> Iterator[Finding]:
    """A prompt that says something and waits for an answer."""
    yield from _prompt(record.prompt)


def preference_rules(record: Preference) -> Iterator[Finding]:
    """One prompt, two answers that say something and differ."""
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
            "chosen == rejected: identical answers carry no preference",
            REMOVE.format("identical"),
            "rejected",
        )


def _margin(record: Preference) -> Iterator[Finding]:
    """Scores that say the contrary of the sides, or nothing."""
    margin = record.margin
    if margin is None and not record.extra:
        return
    better, worse = scores_of(record)
    if better is not None and worse is not None:
        margin = better - worse
        shown = f"the rejected answer has score {worse:g}, the chosen one {better:g}"
    else:
        shown = f"margin {margin} is below zero: the rejected answer is the better one"
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
            f"both answers have score {better:g}: the scores give no preference",
            REMOVE.format("equal-scores"),
            "rejected",
            "warning",
        )


def scores_of(record: Preference) -> tuple[float | None, float | None]:
    """(chosen's score, rejected's score) by the columns that came with the sides."""
    for name, value in record.extra.items():
        if "chosen" in name and _SCORE.search(name.lower()):
            other = record.extra.get(name.replace("chosen", "rejected"))
            if _is_number(value) and _is_number(other):
                return float(value), float(other)
    return None, None


_SCORE = re.compile(r"scor|rating|reward|grade")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _candidate_rules(record: Candidates | Ranking) -> Iterator[Finding]:
    yield from _prompt(record.prompt)
    is_ranked = isinstance(record, Ranking)
    for position, candidate in enumerate(record.candidates):
        field = f"candidates[{position}]"
        # What nobody ranked yet is not trained on, and people may rank whole conversations.
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
    """At least two ranked candidates; equal texts must not have unequal ranks."""
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
                "identical answers with different ranks carry no preference",
                REMOVE.format("identical"),
                "ranks",
            )
            return


def label_rules(record: Label) -> Iterator[Finding]:
    """A completion that says something; a prompt is optional."""
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
    """What the character becomes when its UTF-8 is read as Windows-1252 (Latin-1 in its holes)."""
    return "".join(
        bytes([byte]).decode("latin-1" if byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else "cp1252")
        for byte in character.encode()
    )


_OFTEN_MISREAD = [*map(chr, range(0xA0, 0x100)), *"‘’“”–—…•€™", "\ufeff"]
_MISREAD_STARTS = sorted({_misread(character)[0] for character in _OFTEN_MISREAD})
_MOJIBAKE = re.compile("|".join(re.escape(_misread(character)) for character in _OFTEN_MISREAD))


def text_findings(field: str, text: str) -> Iterator[Finding]:
    """Placeholders, control characters, broken encodings."""
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
            f'text decoded wrongly, like {match[0]!r}, in "{field}"',
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
    """`{{name}}` is a gap somebody forgot to fill; with blanks inside it may well be code."""
    found = dict.fromkeys(_PLACEHOLDER.findall(text))
    tight = [match for match in found if " " not in match]
    names = " ".join(f"--fill {match.strip('{} ')}=TEXT" for match in tight or found)
    if found:
        many = "s" if len(found) > 1 else ""
        yield Finding(
            "placeholder",
            f'unfilled placeholder{many} {", ".join(found)} in "{field}"',
            f"alignkit data clean {names}",
            field,
            "error" if tight else "warning",
        )


# --- texts that were something else -------------------------------------------------------------


def _written_findings(field: str, message: Message, plain: bool) -> Iterator[Finding]:
    """Text with a chat template in it already, lists written as text, calls that are no JSON."""
    text = message.content
    if may_be_templated(text):
        yield from _templated(field, text, plain)
    if text[:1] == "[" and message.role in ("user", "assistant") and _is_list(text):
        yield Finding(
            "list-as-text",
            f'"{field}" is a list written as text ({text[:20]}…)',
            "read the column it belongs to: --format, --map; leave it if the text is meant",
            field,
            "warning",
        )
    for call in message.tool_calls or ():
        yield from _call_findings(field, call)


def _templated(field: str, text: str, plain: bool) -> Iterator[Finding]:
    """Marks of chat templates; a text that is trained as it is may end itself."""
    fix = "alignkit data clean --repair template"
    if mark := header_in(text):
        yield Finding(
            "templated",
            f'"{field}" went through a chat template already: it holds {mark!r}',
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
            f'"{field}" holds {mark!r}, which a tokenizer may read as a token of its own',
            "split the text there, or leave it if it is meant",
            field,
            "warning",
        )


def _is_list(text: str) -> bool:
    """Whether a text spells a list of texts or objects, as tables write columns of lists."""
    found = listed(text) or [None]
    return all(isinstance(item, str | dict) for item in found)


def _call_findings(field: str, call: dict[str, Any]) -> Iterator[Finding]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        yield Finding(
            "tool-call",
            "a tool call without a function's name, which templates ask for",
            'write {"type": "function", "function": {"name": …, "arguments": {…}}}',
            f"{field}.tool_calls",
            "warning",
        )
    elif isinstance(function.get("arguments"), str):
        yield Finding(
            "tool-call",
            f"the arguments of {function['name']!r:.40} are no JSON object",
            "write an object, or its JSON text",
            f"{field}.tool_calls",
            "warning",
        )


def _template_findings(record: Conversation) -> Iterator[Finding]:
    """Keys meant for the chat template that it cannot be given."""
    for key in unread(record):
        yield Finding(
            "template-key",
            f'"{key}" is not what a chat template reads, so it is left out',
            "tools and documents are arrays of objects, chat_template_kwargs is an object",
            key,
            "warning",
        )
    for name in sorted(RESERVED & (record.chat_template_kwargs or {}).keys()):
        yield Finding(
            "template-key",
            f'"chat_template_kwargs" sets {name!r}, which is no variable of a template',
            "give it as a column of its own, or leave it out",
            "chat_template_kwargs",
        )


def sides_of(record: Record) -> Iterator[tuple[str, Sequence[Message]]]:
    """(field, messages) of every conversation in a record."""
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
    """(field, message) of every message in a record; a single turn has the plain field's name."""
    for field, messages in sides_of(record):
        for position, message in enumerate(messages):
            yield (field if len(messages) == 1 else f"{field}[{position}]"), message


# Every kind of problem that a rule here can find.
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
