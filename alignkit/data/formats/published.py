"""Published preference sets with quirks of their own: signed strengths, marked turns."""

from __future__ import annotations

import re
from typing import Any

from alignkit.data.formats.compared import labelled_pair
from alignkit.data.formats.feedback import by_sign, read_columns, read_of_columns
from alignkit.data.formats.fields import (
    PAIR_RANKS,
    Fields,
    Format,
    Row,
    Turn,
    as_number,
    assistant,
    either,
    expected,
    is_number,
    keys,
    message_rows,
    only_candidate,
    only_text,
    ranking,
    sides_of,
    split_sides,
    text,
    text_or_rows,
    turns,
    two_candidates,
    two_ranks,
    user,
)
from alignkit.data.records import Candidates, Preference, Ranking
from alignkit.files.problems import RowError

_STEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def steer_turns(prompt: str) -> list[Turn]:
    """Split a prompt of HelpSteer at its marks `<extra_id_1>User` and `<extra_id_1>Assistant`.

    The first turn may lack its mark; it is the user's. A text without marks is one user turn.
    """
    pieces = ["User", *_STEER_TURN.split(prompt)]
    parts = list(zip(pieces[0::2], pieces[1::2], strict=True))
    if len(parts) > 1 and not parts[0][1].strip():
        parts = parts[1:]
    if parts[-1] == ("Assistant", ""):
        parts = parts[:-1]  # where the completion would begin
    return [(user if speaker == "User" else assistant)(text) for speaker, text in parts]


def signed_pair(name: str, question: str, sides: tuple[str, str], strength: str, about: str) -> Any:
    """Build a format of two completions and a strength from -3 (first much better) to 3."""

    def read(row: Row) -> Fields:
        given = row[question]
        prompt = steer_turns(given) if isinstance(given, str) else turns(given, question)
        order = PAIR_RANKS[by_sign(row, strength)]
        number = as_number(row[strength])
        extra = {} if number is None else {"extra": {strength: row[strength]}}
        return ranking(prompt, [text(row, side) for side in sides], order) | extra

    def write(record: Ranking) -> Fields:
        first, second, order = two_candidates(record, name)
        given = record.extra.get(strength)
        number: Any = {"first": -1, "second": 1, "tie": 0, "none": None}[order]
        if is_number(given) and number is not None and (given > 0) - (given < 0) == number:
            number = given
        prompt = text_or_rows(record.prompt, "user")
        return {question: prompt, sides[0]: first, sides[1]: second, strength: number}

    wanted = keys(question, *sides, strength)
    return Format(name, "ranking", wanted, read, write, asks=question, about=about)


def write_kaggle(record: Ranking) -> Fields:
    """Write prompt, response_a and response_b as lists of turns, and three winner columns."""
    left, right = record.candidates[0], record.candidates[-1]
    order = two_ranks(record, "lmsys-kaggle")
    sides = [[*record.prompt, *left.messages], [*record.prompt, *right.messages]]
    for side in sides:
        roles = [message.role for message in side]
        if roles != ["user", "assistant"] * (len(side) // 2):
            raise RowError(
                "shape", "lmsys-kaggle holds user and assistant turns", "choose another format"
            )
    asked, other = ([m.content for m in side if m.role == "user"] for side in sides)
    if asked != other:
        raise RowError("shape", "the two sides have different prompts", "choose another format")
    row: Fields = {"model_a": left.model, "model_b": right.model, "prompt": asked}
    for name, side in zip(("response_a", "response_b"), sides, strict=True):
        row[name] = [message.content for message in side if message.role == "assistant"]
    marks = {"winner_model_a": "first", "winner_model_b": "second", "winner_tie": "tie"}
    return row | {name: int(order == meant) for name, meant in marks.items()}


ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def read_helpsteer(row: Row) -> Fields:
    """Read a completion with five attributes from 0 to 4; helpfulness is its score."""
    for name in ATTRIBUTES:
        if row.get(name) is not None and as_number(row[name]) is None:
            raise expected(row[name], "a number", name)
    candidate = {"cid": "c0", "messages": [assistant(text(row, "response"))],
                 "score": as_number(row["helpfulness"])}  # fmt: skip
    return {"prompt": steer_turns(text(row, "prompt")), "candidates": [candidate]}


def write_helpsteer(record: Candidates) -> Fields:
    """Write prompt, response and helpfulness."""
    candidate = only_candidate(record)
    return {
        "prompt": only_text(record.prompt, "prompt"),
        "response": only_text(candidate.messages, candidate.cid),
        "helpfulness": candidate.score,
    }


def read_swift_chats(row: Row) -> Fields:
    """Read two whole chats that begin alike."""
    return split_sides(
        turns(row["messages"], "messages"), turns(row["rejected_messages"], "rejected_messages")
    )


def write_swift_chats(record: Preference) -> Fields:
    """Write messages and rejected_messages."""
    chosen, rejected = sides_of(record)
    return {"messages": message_rows(chosen), "rejected_messages": message_rows(rejected)}


def three_texts(name: str, question: str, chosen: str, rejected: str, about: str) -> Format:
    """Build a format of a prompt and two sides in columns of these names, text or messages."""
    sides = {question: "user", chosen: "assistant", rejected: "assistant"}

    def read(row: Row) -> Fields:
        prompt, better, worse = (either(row[key], key, role) for key, role in sides.items())
        return {"prompt": prompt, "chosen": better, "rejected": worse}

    def write(record: Preference) -> Fields:
        parts = (record.prompt, record.chosen, record.rejected)
        return {
            key: text_or_rows(part, role)
            for (key, role), part in zip(sides.items(), parts, strict=True)
        }

    return Format(name, "preference", frozenset(sides), read, write, asks=question, about=about)


FORMATS = [
    labelled_pair("safe-rlhf", ("response_0", "response_1"), "prompt", "better_response_id",
                  {0: "first", 1: "second"}, "PKU-SafeRLHF, by the more helpful response"),
    signed_pair("helpsteer2-preference", "prompt", ("response_1", "response_2"),
                "preference_strength", "HelpSteer2 preferences, strength -3 to 3"),
    signed_pair("helpsteer3", "context", ("response1", "response2"), "overall_preference",
                "HelpSteer3 preferences, strength -3 to 3"),
    Format("helpsteer", "candidates", keys("prompt", "response", *ATTRIBUTES), read_helpsteer,
           write_helpsteer, asks="prompt", about="HelpSteer, HelpSteer2: one graded response"),
    Format("lmsys-kaggle", "ranking",
           keys("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b",
                "winner_tie"),
           read_columns, write_kaggle, reads=read_of_columns, asks="prompt",
           about="LMSYS on Kaggle: lists of turns, one column per verdict"),
    three_texts("stack-exchange", "question", "response_j", "response_k",
                "Stack Exchange pairs: response_j is the better"),
    Format("swift-chats", "preference", keys("messages", "rejected_messages"),
           read_swift_chats, write_swift_chats, asks="messages",
           about="ms-swift: messages and rejected_messages"),
]  # fmt: skip
