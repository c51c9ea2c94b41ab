"""Which columns hold the answers that were compared, and which answer a verdict names.

Compared answers stand in columns that differ in their last part alone: `response_0`, `response_1`;
`answer1`, `answer2`; `output_a`, `output_b`. A verdict is understood only when it names one of
these columns, by its last part or in full. Nothing is guessed from an order of columns.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.data.formats.shape import Row, as_number, expected
from alignkit.files.problems import RowError

_NUMBERED = re.compile(r"(?P<stem>.*?[^\d])(?P<joint>)(?P<part>\d{1,2})", re.DOTALL)
_LETTERED = re.compile(r"(?P<stem>.*[^_\-. ])(?P<joint>[_\-. ])(?P<part>[A-Za-z])", re.DOTALL)
_SIDED = re.compile(r"(?P<stem>.*?)(?P<joint>[_\-. ]?)(?P<part>left|right|first|second)", re.I)
_ALONE = re.compile(r"(?P<stem>)(?P<joint>)(?P<part>[A-Ha-h])")
_JOINTS = "_-. "

# How series of columns are numbered; they begin at the start of one of these and leave no gap.
SEQUENCES = (
    [str(i) for i in range(26)],
    [str(i) for i in range(1, 27)],
    [f"{i:02d}" for i in range(1, 27)],
    list("abcdefghijklmnopqrstuvwxyz"),
    ["left", "right"],
    ["first", "second"],
)

# What answers are called, the surest name first; other series are not answers by their name.
ANSWERS = (
    "response", "answer", "completion", "output", "reply", "generation", "candidate", "summary",
    "assistant", "conversation", "option", "choice", "sample", "text", "result", "translation",
    "story", "side", "chat", "message", "model_response", "model_output", "generated_text",
)  # fmt: skip
# What is told of answers and is none.
NO_ANSWERS = re.compile(
    r"model|source|id|name|author|engine|provider|generator|policy|score|rating|rank|reward|winner"
    r"|label|annotator|tokens?|length|time|date|url|sha\w*|is|safe|category|level|feedback|critique"
    r"|rationale|reason|reasoning|explanation|comment|system"
)


@dataclass(frozen=True)
class Series:
    """Columns that differ in their last part: its stem and last part -> column."""

    stem: str
    columns: Mapping[str, str]

    @property
    def parts(self) -> list[str]:
        """The last parts in their order, in lower case."""
        return list(self.columns)

    @property
    def names(self) -> list[str]:
        """The columns in their order."""
        return list(self.columns.values())

    @property
    def holds_answers(self) -> bool:
        """Whether its name is one that answers go by."""
        return _plain(self.stem) in _ANSWER_STEMS

    @property
    def may_hold_answers(self) -> bool:
        """Whether its name says nothing else."""
        words = re.split(r"[_\-. ]+|(?<=[a-z])(?=[A-Z])", self.stem)
        return not any(NO_ANSWERS.fullmatch(word.lower()) for word in words if word)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


_ANSWER_STEMS = {form: rank for rank, name in enumerate(ANSWERS)
                 for form in (_plain(name), _plain(name) + "s")}  # fmt: skip


def series_of(names: Iterable[str]) -> list[Series]:
    """Every series among these columns, in the order of their first column."""
    found: dict[tuple[str, int], dict[str, str]] = {}
    for name in names:
        for shape, pattern in enumerate((_NUMBERED, _LETTERED, _SIDED, _ALONE)):
            match = pattern.fullmatch(name)
            if match:
                stem = match["stem"].rstrip(_JOINTS)
                found.setdefault((stem.lower(), shape), {})[match["part"].lower()] = name
                break
    result = []
    for (stem, _), columns in found.items():
        for sequence in SEQUENCES:
            if sequence[0] in columns and set(columns) == set(sequence[: len(columns)]):
                ordered = {part: columns[part] for part in sequence[: len(columns)]}
                if len(ordered) > 1:
                    result.append(Series(stem, ordered))
                break
    return result


def answers_in(names: Collection[str]) -> Series | None:
    """The one series that holds the compared answers; null when none does, or it is not clear.

    A name that answers go by decides; without one a single series that is not told of answers.
    """
    all_series = series_of(names)
    known = [series for series in all_series if series.holds_answers]
    if known:
        known.sort(key=lambda series: _ANSWER_STEMS[_plain(series.stem)])
        return known[0]
    possible = [series for series in all_series if series.may_hold_answers]
    return possible[0] if len(possible) == 1 else None


PROMPT_KEYS = ("prompt", "instruction", "question", "input", "context", "text")


def prompt_among(fields: Mapping[str, Any], taken: Sequence[str], where: str) -> str:
    """The key that holds the prompt: a well-known name, else the one text that is no candidate."""
    rest = [key for key in fields if key not in taken and isinstance(fields[key], str)]
    known = [key for key in PROMPT_KEYS if key in rest]
    if known or len(rest) == 1:
        return (known or rest)[0]
    inside = f"{where}." if where else ""
    raise RowError(
        "missing-key",
        f"no prompt{f' in {chr(34)}{where}{chr(34)}' if where else ''}. Found: {', '.join(fields)}",
        f"name it with --map, e.g. --map {inside}prompt={inside}COLUMN",
        field=where or None,
    )


# --- verdicts -----------------------------------------------------------------------------------


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


TIES = _words(
    """
    tie tied draw equal equals same equallygood bothgood bothbad tiebothbad neither both
    none nopreference similar abouttie equallybad aboutthesame aboutequal undecided
    """
)
FIRST, SECOND = ("first", "left"), ("second", "right")
_GAME = re.compile(r"\[{0,2}\s*(\w{1,9})\s*([<>]{1,2}|=)\s*(\w{1,9})\s*\]{0,2}")
_OF_A_SIDE = re.compile(
    r"^(the)?(model|response|answer|assistant|output|completion|candidate|option|text|side|chat|bot"
    r"|chatbot|summary|reply|system|winner|choice|conversation|agent)+|(is)?(better|wins?|best)$"
)


def named_side(value: Any, series: Series, key: str) -> int | None:
    """The position of the answer that a verdict names, -1 for a tie, null for no verdict.

    Raises RowError for a verdict that names no side, such as 0 or 1 of `response_a`, `response_b`.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str) and (game := _GAME.fullmatch(value.strip())):
        return _game(game, series, key)
    word = _word(value)
    for position, (part, name) in enumerate(series.columns.items()):
        if word in (part, _letters_and_digits(name)) or _bare(word) == part:
            return position
    if _bare(word) in FIRST or word in FIRST:
        return 0
    if len(series.columns) == 2 and (_bare(word) in SECOND or word in SECOND):
        return 1
    if word in TIES or _bare(word) in TIES or (word == "0" and series.parts[0] == "1"):
        return -1
    raise _no_side(value, series, key)


def _game(game: re.Match[str], series: Series, key: str) -> int:
    left, sign, right = game[1].lower(), game[2], game[3].lower()
    parts = series.parts
    if left not in parts or right not in parts or left == right:
        raise _no_side(game[0], series, key)
    if sign == "=":
        return -1
    return parts.index(left if ">" in sign else right)


def _word(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _letters_and_digits(value) if not isinstance(value, bool) else ""


def _letters_and_digits(value: Any) -> str:
    return re.sub(r"[\W_]+", "", str(value).lower())


def _bare(word: str) -> str:
    """`modela`, `responseb`, `assistant1` without the word before."""
    before = None
    while word != before:
        before, word = word, _OF_A_SIDE.sub("", word)
    return word


def _no_side(value: Any, series: Series, key: str) -> RowError:
    parts = " or ".join(series.parts)
    return RowError(
        "verdict",
        f'"{key}" is {value!r:.40}, which names none of {", ".join(series.names)}',
        f'write {parts}, or "tie"; or name the sides: --map chosen=COLUMN,rejected=COLUMN',
        field=key,
    )


def ranks_of_winner(winner: int | None, count: int) -> list[int | None]:
    """Rank 1 for the winner and 2 for the others; all 1 for a tie, none without a verdict."""
    if winner is None:
        return [None] * count
    return [1 if winner in (position, -1) else 2 for position in range(count)]


def numbers_in(row: Row, names: Sequence[str]) -> list[float | None]:
    """The scores in these columns, null where there is none."""
    found = []
    for name in names:
        number = as_number(row[name])
        if number is None and row[name] not in (None, ""):
            raise expected(row[name], "a number", name)
        found.append(number)
    return found
