"""Find the columns that hold the compared completions, and the completion that a verdict names.

Compared completions are in columns that differ only in their last part: `response_0`, `response_1`;
`answer1`, `answer2`; `output_a`, `output_b`. A verdict is understood only if it names one of these
columns, by its last part or in full. Nothing is guessed from the order of columns.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.data.formats.fields import Row, as_number, expected
from alignkit.files.problems import RowError

_NUMBERED = re.compile(r"(?P<stem>.*?[^\d])(?P<joint>)(?P<part>\d{1,2})", re.DOTALL)
_LETTERED = re.compile(r"(?P<stem>.*[^_\-. ])(?P<joint>[_\-. ])(?P<part>[A-Za-z])", re.DOTALL)
_SIDED = re.compile(r"(?P<stem>.*?)(?P<joint>[_\-. ]?)(?P<part>left|right|first|second)", re.I)
_ALONE = re.compile(r"(?P<stem>)(?P<joint>)(?P<part>[A-Ha-h])")
_JOINTS = "_-. "

# How columns are numbered: from the start of one of these sequences, without gaps.
SEQUENCES = (
    [str(i) for i in range(26)],
    [str(i) for i in range(1, 27)],
    [f"{i:02d}" for i in range(1, 27)],
    list("abcdefghijklmnopqrstuvwxyz"),
    ["left", "right"],
    ["first", "second"],
)

# Names of completions, the surest first; other series are not completions by their name.
ANSWERS = (
    "response", "answer", "completion", "output", "reply", "generation", "candidate", "summary",
    "assistant", "conversation", "option", "choice", "sample", "text", "result", "translation",
    "story", "side", "chat", "message", "model_response", "model_output", "generated_text",
)  # fmt: skip
# Names of facts about completions.
FACTS = re.compile(
    r"model|source|id|name|author|engine|provider|generator|policy|score|rating|rank|reward|winner"
    r"|label|annotator|tokens?|length|time|date|url|sha\w*|is|safe|category|level|feedback|critique"
    r"|rationale|reason|reasoning|explanation|comment|system"
)


@dataclass(frozen=True)
class Series:
    """Columns that differ only in their last part: the shared stem, and last part -> column."""

    stem: str
    columns: Mapping[str, str]

    @property
    def parts(self) -> list[str]:
        """Return the last parts in their order, in lower case."""
        return list(self.columns)

    @property
    def names(self) -> list[str]:
        """Return the columns in their order."""
        return list(self.columns.values())

    @property
    def names_completions(self) -> bool:
        """Return whether its name is a usual one for completions."""
        return _plain(self.stem) in _STEMS

    @property
    def may_name_completions(self) -> bool:
        """Return whether its name does not rule completions out."""
        words = re.split(r"[_\-. ]+|(?<=[a-z])(?=[A-Z])", self.stem)
        return not any(FACTS.fullmatch(word.lower()) for word in words if word)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


_STEMS = {form: rank for rank, name in enumerate(ANSWERS)
                 for form in (_plain(name), _plain(name) + "s")}  # fmt: skip


def series_of(names: Iterable[str]) -> list[Series]:
    """Return every series among these columns, in the order of their first column."""
    groups: dict[tuple[str, int], dict[str, str]] = {}
    for name in names:
        for shape, pattern in enumerate((_NUMBERED, _LETTERED, _SIDED, _ALONE)):
            match = pattern.fullmatch(name)
            if match:
                stem = match["stem"].rstrip(_JOINTS)
                groups.setdefault((stem.lower(), shape), {})[match["part"].lower()] = name
                break
    result = []
    for (stem, _), columns in groups.items():
        for sequence in SEQUENCES:
            if sequence[0] in columns and set(columns) == set(sequence[: len(columns)]):
                ordered = {part: columns[part] for part in sequence[: len(columns)]}
                if len(ordered) > 1:
                    result.append(Series(stem, ordered))
                break
    return result


def completion_series(names: Collection[str]) -> Series | None:
    """Return the one series that holds the compared completions; None if there is none or several.

    A usual name for completions decides; without one, the only series that may hold them.
    """
    all_series = series_of(names)
    usual = [series for series in all_series if series.names_completions]
    if usual:
        return min(usual, key=lambda series: _STEMS[_plain(series.stem)])
    possible = [series for series in all_series if series.may_name_completions]
    return possible[0] if len(possible) == 1 else None


PROMPT_KEYS = ("prompt", "instruction", "question", "input", "context", "text")


def prompt_among(fields: Mapping[str, Any], taken: Sequence[str], where: str) -> str:
    """Return the key of the prompt: a well-known name, else the only text that is no candidate."""
    rest = [key for key in fields if key not in taken and isinstance(fields[key], str)]
    usual = [key for key in PROMPT_KEYS if key in rest]
    if usual or len(rest) == 1:
        return (usual or rest)[0]
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
    """Return the position of the completion that a verdict names, -1 for a tie, None for none.

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
    """Strip the word before the part: `modela`, `responseb`, `assistant1`."""
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
    """Rank the winner 1 and the others 2; all 1 for a tie, all unranked without a verdict."""
    if winner is None:
        return [None] * count
    return [1 if winner in (position, -1) else 2 for position in range(count)]


def numbers_in(row: Row, names: Sequence[str]) -> list[float | None]:
    """Return the scores in these columns, None where there is none."""
    numbers = []
    for name in names:
        number = as_number(row[name])
        if number is None and row[name] not in (None, ""):
            raise expected(row[name], "a number", name)
        numbers.append(number)
    return numbers
