"""Report columns that no reader read: by name, if they hold text, scores or votes.

Identifiers, categories, dates and other short values are metadata and are not reported. Neither is
a column that repeats the record, such as the prompt next to the messages: nothing is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignkit.data.formats import Format
from alignkit.data.formats.prompt_columns import contains_text
from alignkit.data.records import Record
from alignkit.data.rules import sides_of
from alignkit.files.problems import Finding


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


# Words in a column's name that suggest text, and those that suggest metadata.
TEXT = _words(
    """
    answer answers article background body candidates choices chosen comment comments
    completion completions content context contexts cot criticism critique description
    dialog dialogue document documents elaboration explanation feedback generation
    generations highlights hint history input inputs instruction instructions justification
    knowledge note notes options output outputs passage passages prompt query question
    questions rationale reasoning reference references rejected replies reply response
    responses rubric samples solution statement summary system target targets text texts
    thinking thought thoughts trajectory translation user utterance
    """
)
METADATA = _words(
    """
    agent annotator annotators author category categories checksum class config created
    creator dataset date datetime difficulty domain emojis file filename format generator
    hash id ids idx index key kind lang language level license locale meta metadata model
    models name origin path policy provider role row session sha sha1 sha256 md5 source
    sources split state status style subject subset tag tags task tasks time timestamp
    tokens topic topics tool tools tstamp type updated url urls user uuid uid version worker
    year images image videos audios labels label
    """
)
VOTES = re.compile(
    r"(^|[^a-z])(votes?|upvotes?|downvotes?|likes?|dislikes?|scores?|ratings?|ranks?|rankings?"
    r"|rewards?|grades?|winner|preferences?|preferred|better|best|choice|chosen|selected|verdicts?"
    r"|safer?|helpful(ness)?|harmless(ness)?|correct(ness)?|accept(ed)?|thumbs?|label|labels|stars)"
    r"($|[^a-z])"
)
# If one verdict was read, another one in the same row may contradict it.
RIVALS = re.compile(r"(^|[^a-z])(safer|winner|better|preferred|verdict)($|[^a-z])")
UNDECIDED = ("prompt", "demonstration", "candidates")  # kinds in which a vote may be intended

MOST_VALUES = 64  # distinct values of a column that are remembered
MOST_TEXTS = 32  # texts looked at inside one nested value
WORDS_OF_PROSE = 3
WORDS_IN_METADATA = 8
SHORT = 60
ROWS_FOR_CATEGORIES = 8

_WORDS = re.compile(r"[-_.\s/:]+|(?<=[a-z])(?=[A-Z])")
_ENDS_A_SENTENCE = re.compile(r"[^\W\d_][.!?…。！？]['\")\]]?$")
# Scripts that write words without blanks between them.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff]{6}")


@dataclass(slots=True)
class UnreadColumn:
    """What is known about one unread column."""

    promises: bool  # whether its name suggests text
    texts: int = 0  # rows with text that the record does not hold
    prose: int = 0  # of these, rows that read like sentences
    long: int = 0  # of these, rows too long for metadata
    longest: int = 0
    numbers: int = 0
    seen: dict[str, tuple[bool, bool]] = field(default_factory=dict)  # text -> (prose, long)

    @property
    def settled(self) -> bool:
        """Return whether it certainly holds text; further rows are only counted."""
        return self.prose >= ROWS_FOR_CATEGORIES and len(self.seen) == MOST_VALUES

    def add(self, texts: Sequence[str], cell: Any) -> None:
        """Add one row with these texts, none if the record holds all of them."""
        if not texts:
            return
        prose = any(map(_is_prose, texts))
        long = any(text.count(" ") >= WORDS_IN_METADATA - 1 for text in texts)
        self._count(prose, long)
        self.longest = max(self.longest, *map(len, texts))
        if len(self.seen) < MOST_VALUES:
            self.seen[cell if type(cell) is str else "\x1e".join(texts)] = prose, long

    def again(self, cell: str) -> None:
        """Add a row with a text seen before, or a row of a settled column."""
        self._count(*self.seen.get(cell, (True, self.long * 2 > self.texts)))

    def _count(self, prose: bool, long: bool) -> None:
        self.texts += 1
        self.prose += prose
        self.long += long


@dataclass
class UnreadColumns:
    """Counts the unread columns of a file, row by row."""

    format: Format
    columns: dict[str, UnreadColumn] = field(default_factory=dict)

    def add(self, value: Mapping[str, Any], records: Sequence[Record]) -> None:
        """Add one row and its records, whose `extra` holds what nothing read."""
        if self.format.name == "alignkit":  # its `extra` is a column of its own
            return
        own: list[str] | None = None
        for name, cell in self._cells(value, records).items():
            if cell is None or cell == "" or cell == [] or cell == {}:
                continue
            column = self.columns.get(name)
            if column is None:
                column = self.columns[name] = UnreadColumn(_promises(name, TEXT))
            if type(cell) is str and (column.settled or cell in column.seen):
                column.again(cell)
            elif texts := list(_texts(cell)):
                if column.promises or any(map(_is_prose, texts)):
                    own = _record_texts(records) if own is None else own
                    texts = [text for text in texts if not _repeats(text, own)]
                column.add(texts, cell)
            else:
                column.numbers += 1

    def _cells(self, value: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
        """Return the columns of a row that were not read."""
        carried = records[0].extra if records else {}
        if not carried and self.format.inside is None:
            return {}
        own = self.format.own(value)
        cells = {name: value[name] for name in carried if name in value and name not in own}
        return cells if self.format.inside is None else cells | _inside(value, self.format)

    def findings(self) -> Iterator[Finding]:
        """Yield one warning per column of text, scores or votes, in the order of the file."""
        for name, column in self.columns.items():
            what, rows = "", column.texts
            if column.texts and _is_text(name, column):
                what = "text"
            elif column.numbers + column.texts and self._may_vote(name):
                what, rows = "scores or votes", column.numbers + column.texts
            if what:
                yield Finding(
                    "unread-column",
                    f'column "{name}" holds {what} in {rows:,} row{"s" * (rows != 1)} and is not '
                    f"read as {self.format.name}",
                    _advice(name, self.format),
                    name,
                    "warning",
                )

    def _may_vote(self, name: str) -> bool:
        """Return whether a column of this name decides something that the format has not."""
        pattern = VOTES if self.format.kind in UNDECIDED else RIVALS
        return pattern.search(name.lower()) is not None


def _inside(value: Mapping[str, Any], form: Format) -> dict[str, Any]:
    """Return the unread columns inside an object of the row, by their dotted names."""
    held = value.get(form.inside or "")
    if not isinstance(held, dict):
        return {}
    own = form.own(value)
    dotted = {f"{form.inside}.{name}": cell for name, cell in held.items()}
    return {name: cell for name, cell in dotted.items() if name not in own}


def _texts(cell: Any, room: int = MOST_TEXTS) -> Iterator[str]:
    """Yield the texts inside a value, except those under names of metadata."""
    if isinstance(cell, str):
        if cell.strip():
            yield cell.strip()
    elif isinstance(cell, list):
        for item in cell[:room]:
            yield from _texts(item, room)
    elif isinstance(cell, dict):
        for name, item in list(cell.items())[:room]:
            if not (isinstance(name, str) and _promises(name, METADATA)):
                yield from _texts(item, room)


def _is_prose(text: str) -> bool:
    return (
        text.count(" ") >= WORDS_OF_PROSE - 1
        or "\n" in text
        or _ENDS_A_SENTENCE.search(text) is not None
        or (not text.isascii() and _UNSPACED.search(text) is not None)
    )


def _promises(name: str, words: frozenset[str]) -> bool:
    """Return whether the name, or its last word without digits, is one of these words."""
    parts = [part.lower().rstrip("0123456789") for part in _WORDS.split(name)]
    parts = [part for part in parts if part]
    return bool(parts) and (parts[-1] in words or "_".join(parts) in words)


def _is_text(name: str, column: UnreadColumn) -> bool:
    if column.promises and not _promises(name, METADATA):
        return True
    if _promises(name, METADATA):
        return 2 * column.long > column.texts and 2 * len(column.seen) > min(
            column.texts, MOST_VALUES
        )
    few = column.texts >= ROWS_FOR_CATEGORIES and 4 * len(column.seen) <= column.texts
    return column.prose > 0 and not (few and column.longest <= SHORT)


def _record_texts(records: Sequence[Record]) -> list[str]:
    messages = (turn for record in records for _, turns in sides_of(record) for turn in turns)
    return [text for turn in messages if (text := turn.content.strip())]


def _repeats(text: str, own: Sequence[str]) -> bool:
    """Return whether the record holds the text, or the text all of the record (a rendered chat)."""
    return any(contains_text(each, text) for each in own) or (
        bool(own) and all(each in text for each in own)
    )


def _advice(name: str, form: Format) -> str:
    if form.kind in UNDECIDED:
        return (
            f"name its meaning (--map context={name}; for compared completions --map "
            f"chosen=COLUMN,rejected=COLUMN), or remove it"
        )
    return f"name its meaning, e.g. --map context={name}, or remove it"
