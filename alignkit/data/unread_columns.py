"""Columns that no reader read: text, scores and votes among them are told by name.

Identifiers, categories, dates and other short values are metadata and stay quiet. What a column
repeats of the record (the prompt once more beside the messages, say) is not lost and is quiet too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignkit.data.formats import Format
from alignkit.data.formats.beside import is_said
from alignkit.data.records import Record
from alignkit.data.rules import sides_of
from alignkit.files.problems import Finding


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


# Words of a column's name that promise text, and those that promise metadata.
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
# Where one verdict was read, another one beside it may say the contrary.
RIVALS = re.compile(r"(^|[^a-z])(safer|winner|better|preferred|verdict)($|[^a-z])")
UNDECIDED = ("prompt", "demonstration", "candidates")  # kinds in which a vote could be meant

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
class Column:
    """What was seen of one unread column."""

    promises: bool  # whether its name promises text
    texts: int = 0  # rows with text that the record does not hold
    prose: int = 0  # of these, rows that read like sentences
    long: int = 0  # and rows that are too long for metadata
    longest: int = 0
    numbers: int = 0
    seen: dict[str, tuple[bool, bool]] = field(default_factory=dict)  # text -> (prose, long)

    @property
    def settled(self) -> bool:
        """Whether it holds text for certain; further rows are counted only."""
        return self.prose >= ROWS_FOR_CATEGORIES and len(self.seen) == MOST_VALUES

    def add(self, texts: Sequence[str], cell: Any) -> None:
        """One row with these texts, none when the record holds all of them."""
        if not texts:
            return
        prose = any(map(_is_prose, texts))
        long = any(text.count(" ") >= WORDS_IN_METADATA - 1 for text in texts)
        self._count(prose, long)
        self.longest = max(self.longest, *map(len, texts))
        if len(self.seen) < MOST_VALUES:
            self.seen[cell if type(cell) is str else "\x1e".join(texts)] = prose, long

    def again(self, cell: str) -> None:
        """One row more with a text seen before, or one of a column that is settled."""
        self._count(*self.seen.get(cell, (True, self.long * 2 > self.texts)))

    def _count(self, prose: bool, long: bool) -> None:
        self.texts += 1
        self.prose += prose
        self.long += long


@dataclass
class Unread:
    """Counts the unread columns of a file, row by row."""

    format: Format
    columns: dict[str, Column] = field(default_factory=dict)

    def add(self, value: Mapping[str, Any], records: Sequence[Record]) -> None:
        """One row and the records read from it, which carry what nothing read in `extra`."""
        if self.format.name == "alignkit":  # its `extra` is a column of its own
            return
        said: list[str] | None = None
        for name, cell in self._cells(value, records).items():
            if cell is None or cell == "" or cell == [] or cell == {}:
                continue
            column = self.columns.get(name)
            if column is None:
                column = self.columns[name] = Column(_promises(name, TEXT))
            if type(cell) is str and (column.settled or cell in column.seen):
                column.again(cell)
            elif texts := list(_texts(cell)):
                if column.promises or any(map(_is_prose, texts)):
                    said = _said(records) if said is None else said
                    texts = [text for text in texts if not _repeats(text, said)]
                column.add(texts, cell)
            else:
                column.numbers += 1

    def _cells(self, value: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
        """The columns of a row that were not read."""
        carried = records[0].extra if records else {}
        if not carried and self.format.inside is None:
            return {}
        own = self.format.own(value)
        cells = {name: value[name] for name in carried if name in value and name not in own}
        return cells if self.format.inside is None else cells | _inside(value, self.format)

    def findings(self) -> Iterator[Finding]:
        """A warning for each column of text, scores or votes, in the order of the file."""
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
        """Whether a column of this name decides something that the format has not decided."""
        pattern = VOTES if self.format.kind in UNDECIDED else RIVALS
        return pattern.search(name.lower()) is not None


def _inside(value: Mapping[str, Any], form: Format) -> dict[str, Any]:
    """The columns inside an object of the row that were not read, by their dotted names."""
    held = value.get(form.inside or "")
    if not isinstance(held, dict):
        return {}
    own = form.own(value)
    dotted = {f"{form.inside}.{name}": cell for name, cell in held.items()}
    return {name: cell for name, cell in dotted.items() if name not in own}


def _texts(cell: Any, room: int = MOST_TEXTS) -> Iterator[str]:
    """The texts inside a value, those under names of metadata left out."""
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
    """Whether the name, or its last word (digits aside), is one of these."""
    parts = [part.lower().rstrip("0123456789") for part in _WORDS.split(name)]
    parts = [part for part in parts if part]
    return bool(parts) and (parts[-1] in words or "_".join(parts) in words)


def _is_text(name: str, column: Column) -> bool:
    if column.promises and not _promises(name, METADATA):
        return True
    if _promises(name, METADATA):
        return 2 * column.long > column.texts and 2 * len(column.seen) > min(
            column.texts, MOST_VALUES
        )
    few = column.texts >= ROWS_FOR_CATEGORIES and 4 * len(column.seen) <= column.texts
    return column.prose > 0 and not (few and column.longest <= SHORT)


def _said(records: Sequence[Record]) -> list[str]:
    messages = (turn for record in records for _, turns in sides_of(record) for turn in turns)
    return [text for turn in messages if (text := turn.content.strip())]


def _repeats(text: str, said: Sequence[str]) -> bool:
    """Whether the record holds the text, or the text is all of the record (a rendered chat)."""
    return any(is_said(text, own) for own in said) or (bool(said) and all(t in text for t in said))


def _advice(name: str, form: Format) -> str:
    if form.kind in UNDECIDED:
        return (
            f"name what it is (--map context={name}; of compared answers --map "
            f"chosen=COLUMN,rejected=COLUMN), or remove it"
        )
    return f"name what it is, e.g. --map context={name}, or remove it"
