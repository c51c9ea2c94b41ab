"""Parse YAML into plain values, and record the line and column of every key and value.

A small, strict YAML 1.2: numbers as people write them (`1e-4` is a number, `no` is text), no tags,
no aliases, no merge keys, every key once, limits on size and depth. It builds only on PyYAML's
scanner and parser; the constructor, which can create objects, is never used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yaml.error import MarkedYAMLError
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.scanner import Scanner

from alignkit.errors import AlignkitError, ErrorList, RecipeError

MAX_BYTES = 1 << 18
MAX_DEPTH = 32
MAX_NODES = 10_000
MAX_DIGITS = 40
MAX_PROBLEMS = 20

KeyPath = tuple[str | int, ...]
Node = ScalarEvent | SequenceStartEvent | MappingStartEvent
Value = Any  # str | int | float | bool | None | list[Value] | dict[str, Value]


@dataclass
class Document:
    """Plain values, with the `file:line:column` of each by its path of keys."""

    file: str
    value: Value = None
    keys: dict[KeyPath, str] = field(default_factory=dict)
    values: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[AlignkitError] = field(default_factory=list)

    def where(self, path: KeyPath, *, key: bool = False) -> str:
        """Return the place of the value (or key) at this path, else of the nearest parent."""
        for length in range(len(path), -1, -1):
            places = self.keys if key and length == len(path) else self.values
            if path[:length] in places:
                return places[path[:length]]
        return self.file

    def problem(
        self, path: KeyPath, message: str, *, hint: str | None = None, key: bool = False
    ) -> None:
        """Note a problem at this path; the caller raises them together."""
        self.problems.append(RecipeError(message, where=self.where(path, key=key), hint=hint))

    def assign(self, path: KeyPath, value: Value, where: str) -> None:
        """Set a value at a path of mapping keys, as if it had been written there."""
        holder = self.value
        for depth, key in enumerate(path[:-1], start=1):
            child = _entry(holder, key, where)
            if child is None:
                child = holder[key] = {}
                self.values.setdefault(path[:depth], where)
            holder = child
        _entry(holder, path[-1], where)
        holder[path[-1]] = value
        for places in (self.keys, self.values):
            for inner in [inner for inner in places if inner[: len(path)] == path]:
                del places[inner]
            places[path] = where


def read_yaml(path: Path) -> Document:
    """Read a YAML file; a RecipeError names the place of what cannot be read."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise RecipeError(f"{path} is a directory", hint="Name a YAML file in it") from None
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}", hint=_nearest(path)) from None
    if len(content) > MAX_BYTES:
        raise RecipeError("larger than 256 KiB: this is not a recipe", where=str(path))
    return parse_yaml(_decoded(content, str(path)), file=str(path))


def parse_yaml(text: str, *, file: str) -> Document:
    """Parse YAML text. Problems that still yield a value go to `.problems`; others are raised."""
    document = Document(file)
    try:
        document.value = _Builder(_Events(text), document).document()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _syntax_error(error.problem or str(error), text, file, mark) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        raise RecipeError(
            f"character U+{_code_point(error.character):04X} is not allowed in YAML",
            where=f"{file}:{line}:{column}",
            hint="Remove it",
        ) from None
    return document


def scalar(text: str) -> str | int | float | bool | None:
    """Return the value of an unquoted scalar by YAML 1.2's core schema."""
    for pattern, convert in SCALARS:
        if pattern.fullmatch(text):
            return convert(text)
    return text


def raise_problems(document: Document) -> None:
    """Raise all problems noted so far, in the order of their places in the file."""
    problems = sorted(document.problems, key=_place_order)
    if len(problems) > MAX_PROBLEMS:
        more = len(problems) - MAX_PROBLEMS
        problems[MAX_PROBLEMS:] = [RecipeError(f"{more:,} more problems", where=document.file)]
    if problems:
        raise ErrorList(problems)


def shortened(text: str, limit: int = 60) -> str:
    """Quote a text for a message: printable, and never longer than the limit."""
    shown = repr(text if len(text) <= limit else f"{text[: limit - 1]}…")
    return shown if shown.isprintable() else ascii(text[:limit])


class _Events(Reader, Scanner, Parser):
    """PyYAML's event stream, without anything that builds objects."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)

    def __iter__(self) -> Iterator[Event]:
        while True:
            try:
                if not self.check_event():
                    return
                event: Event = self.get_event()  # type: ignore[no-untyped-call]
            except (ValueError, OverflowError):
                # PyYAML passes a `\U…` escape to chr() unchecked.
                raise MarkedYAMLError(
                    problem="escape of a character that does not exist",
                    problem_mark=self.get_mark(),
                ) from None
            yield event


class _Builder:
    """Turns events into plain values; notes problems and continues where possible."""

    def __init__(self, events: _Events, document: Document) -> None:
        self.events = iter(events)
        self.out = document
        self.nodes = 0

    def document(self) -> Value:
        value: Value = None
        documents = 0
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self.note(event, "a second document", "Keep one, and remove the line ---")
                    return value
                value = self.value(next(self.events), ())
        return value

    def value(self, event: Event, path: KeyPath) -> Value:
        self.out.values[path] = self.place(event)
        self.count(event, path)
        if isinstance(event, AliasEvent):
            name = _inside(event.anchor or "")
            self.note(event, f"aliases are not allowed (*{name})", "Write the value out")
            return None
        if not isinstance(event, Node):
            raise AssertionError(f"{event} cannot start a value")
        self.refuse_extras(event)
        if isinstance(event, ScalarEvent):
            return self.scalar(event)
        if isinstance(event, SequenceStartEvent):
            return self.sequence(path)
        return self.mapping(path)

    def sequence(self, path: KeyPath) -> list[Value]:
        items: list[Value] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            items.append(self.value(event, (*path, len(items))))
        return items

    def mapping(self, path: KeyPath) -> dict[str, Value]:
        entries: dict[str, Value] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            key = self.key(event, path)
            if key in entries:
                first = self.out.keys[(*path, key)].removeprefix(f"{self.out.file}:")
                self.note(
                    event, f"key {shortened(key)} is set twice; first at {first}", "Remove one"
                )
                self.value(next(self.events), (*path, key, "(again)"))
                continue
            self.out.keys[(*path, key)] = self.place(event)
            entries[key] = self.value(next(self.events), (*path, key))
        return entries

    def key(self, event: Event, path: KeyPath) -> str:
        self.count(event, path)
        if not isinstance(event, ScalarEvent):
            self.note(event, "a key must be a word", "Put text containing { or [ in quotes")
            if not isinstance(event, AliasEvent):
                self.value(event, (*path, "(key)"))
            return f"(key {self.nodes})"
        self.refuse_extras(event)
        if event.value == "<<" and event.implicit[0]:
            self.note(event, "merge keys are not allowed", "Write the values out")
        return self.checked_text(event)

    def scalar(self, event: ScalarEvent) -> str | int | float | bool | None:
        if not event.implicit[0] or event.style is not None:
            return self.checked_text(event)
        try:
            return scalar(event.value)
        except ValueError as error:
            self.note(event, str(error), None)
            return None

    def checked_text(self, event: ScalarEvent) -> str:
        if any(0xD800 <= ord(character) <= 0xDFFF for character in event.value):
            self.note(event, "half of a surrogate pair is not text", "Remove the \\u escape")
            return "�"
        text: str = event.value
        return text

    def refuse_extras(self, event: Node) -> None:
        tag = event.tag
        if tag is not None and tag != "!":
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            self.note(event, f"tag {_inside(shown)} is not allowed", "Write the plain value")
        if event.anchor is not None:
            self.note(event, f"anchors are not allowed (&{_inside(event.anchor)})", "Remove it")

    def count(self, event: Event, path: KeyPath) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise RecipeError(
                f"more than {MAX_NODES:,} values: this is not a recipe", where=self.place(event)
            )
        if len(path) > MAX_DEPTH:
            raise RecipeError(f"nested deeper than {MAX_DEPTH}", where=self.place(event))

    def note(self, event: Event, message: str, hint: str | None) -> None:
        self.out.problems.append(RecipeError(message, where=self.place(event), hint=hint))

    def place(self, event: Event) -> str:
        return _place(self.out.file, event.start_mark)


def _entry(holder: Value, key: str | int, where: str) -> Value:
    """Return the entry of a mapping (or, by number, a list) under a key; None if it is absent."""
    if isinstance(holder, dict) and isinstance(key, str):
        return holder.get(key)
    if isinstance(holder, list) and isinstance(key, int) and key < len(holder):
        return holder[key]
    raise RecipeError(f"there is no mapping to set {shortened(str(key))} in", where=where)


def _inside(text: str) -> str:
    return shortened(text)[1:-1]


def _place(file: str, mark: Any) -> str:
    return f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file


def _place_order(error: AlignkitError) -> tuple[str, int, int]:
    file, _, rest = (error.where or "").partition(":")
    numbers = [int(part) for part in rest.split(":") if part.isdigit()]
    line, column = (numbers + [0, 0])[:2]
    return file, line, column


def _syntax_error(problem: str, text: str, file: str, mark: Any) -> RecipeError:
    where = _place(file, mark)
    if mark is not None:
        line = text.split("\n")[mark.line] if mark.line <= text.count("\n") else ""
        tab = line[: len(line) - len(line.lstrip())].find("\t")
        if tab >= 0:
            return RecipeError(
                f"tab at column {tab + 1}",
                where=f"{file}:{mark.line + 1}:{tab + 1}",
                hint="Indent with two spaces",
            )
    for part, message, hint in SYNTAX:
        if part in problem:
            return RecipeError(message, where=where, hint=hint)
    return RecipeError(f"not YAML: {problem}", where=where)


def _decoded(content: bytes, file: str) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise RecipeError("looks like UTF-16", where=file, hint="Save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        raise RecipeError(
            f"byte 0x{content[error.start]:02x} is not UTF-8",
            where=f"{file}:{line}:{column}",
            hint="Save it as UTF-8",
        ) from None


def _nearest(path: Path) -> str | None:
    """Suggest `Did you mean x.yaml?` if the directory has a file of a similar name."""
    from difflib import get_close_matches

    if not path.parent.is_dir():
        return None
    names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    close = get_close_matches(path.name, names, n=1)
    return f"Did you mean {path.parent / close[0]}?" if close else None


def _code_point(character: Any) -> int:
    return character if isinstance(character, int) else ord(character)


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


SCALARS: list[tuple[re.Pattern[str], Callable[[str], str | int | float | bool | None]]] = [
    (re.compile(r"|~|null|Null|NULL"), lambda _: None),
    (re.compile(r"true|True|TRUE"), lambda _: True),
    (re.compile(r"false|False|FALSE"), lambda _: False),
    (re.compile(r"[-+]?[0-9]+"), _integer),
    (re.compile(r"0o[0-7]{1,40}"), lambda text: int(text[2:], 8)),
    (re.compile(r"0x[0-9a-fA-F]{1,40}"), lambda text: int(text[2:], 16)),
    (re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(?:inf|Inf|INF)"), lambda text: float(text.replace(".", ""))),
    (re.compile(r"\.(?:nan|NaN|NAN)"), lambda _: float("nan")),
]

# Part of PyYAML's message, our message, and what to do.
SYNTAX: list[tuple[str, str, str | None]] = [
    (
        "mapping values are not allowed here",
        "a second ':' on one line, or wrong indentation",
        "Put text that contains ': ' in quotes",
    ),
    ("found undefined alias", "aliases are not allowed", "Write the value out"),
    (
        "expected <block end>",
        "indentation does not match the lines above",
        "Indent everything in one list or mapping equally",
    ),
    ("could not find expected ':'", "a key without ':'", "Write key: value"),
    ("found unexpected end of stream", "a quote is never closed", "Add the closing quote"),
    ("expected ',' or ']'", "a list is never closed", "Add ] or a comma"),
    ("expected ',' or '}'", "a mapping is never closed", "Add } or a comma"),
    ("cannot start any token", "a value cannot start with this character", "Put it in quotes"),
]
