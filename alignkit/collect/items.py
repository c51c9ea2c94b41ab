"""Turn candidates records into items: identical completions merged, shuffled and anonymous.

An `Item` knows models and scores. A `Presentation` holds only what an annotator may see: text and
places. Code that draws a screen takes nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson

from alignkit.collect.order import LARGEST
from alignkit.collect.secret import Marks
from alignkit.data.records import Candidate, Candidates, Message
from alignkit.errors import DataError
from alignkit.store.visible import visible, visible_line


@dataclass(frozen=True)
class Item:
    """A candidates record with identical completions merged into slots."""

    record: Candidates
    sha256: str

    @property
    def id(self) -> str:
        return self.record.id

    @cached_property
    def slots(self) -> tuple[tuple[str, ...], ...]:
        """Return the cids of each distinct completion, ignoring white space at both ends."""
        merged: dict[bytes, list[str]] = {}
        for candidate in self.record.candidates:
            merged.setdefault(_text_key(candidate.messages), []).append(candidate.cid)
        return tuple(tuple(cids) for cids in merged.values())

    @cached_property
    def by_cid(self) -> dict[str, Candidate]:
        return {candidate.cid: candidate for candidate in self.record.candidates}


@dataclass(frozen=True)
class Pool:
    """The items of a collection by id, in file order, and a reason for each item left out."""

    items: Mapping[str, Item]
    left_out: list[str] = field(default_factory=list)


def pool_of(records: Iterable[Candidates], *, file: str = "candidates") -> Pool:
    """Build the pool of items; leave out, with a reason, those that cannot be ranked.

    Raises DataError for two items with the same id, or an item with too many completions.
    """
    items: dict[str, Item] = {}
    left_out: list[str] = []
    for record in records:
        where = _where(record, file)
        if not record.id:
            record = record.model_copy(update={"id": item_sha256(record)[:16]})
        item = Item(record, item_sha256(record))
        if record.id in items and items[record.id].sha256 == item.sha256:
            left_out.append(f"{where}: item {record.id!r} is a duplicate")
            continue
        if record.id in items:
            raise DataError(
                f"two different items have the id {record.id!r}",
                where=where,
                hint="Give each item its own id",
            )
        if len(item.slots) > LARGEST:
            raise DataError(
                f"{len(item.slots)} different completions; people rank 2 to {LARGEST} at a time",
                where=where,
                hint="Generate fewer, or split the record",
            )
        if len(item.slots) < 2:
            left_out.append(f"{where}: item {record.id!r} has only one distinct completion")
            continue
        items[record.id] = item
    return Pool(items, left_out)


def item_sha256(record: Candidates) -> str:
    """Return the digest of an item's texts and cids, without models, scores and gold."""
    text = {
        "prompt": [message.model_dump() for message in record.prompt],
        "candidates": [
            [candidate.cid, [message.model_dump() for message in candidate.messages]]
            for candidate in record.candidates
        ],
    }
    return hashlib.sha256(orjson.dumps(text, option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(frozen=True)
class Presentation:
    """One showing of an item to one annotator; `showing` is 0 for the first, 1 for a repeat."""

    item: Item
    slots: tuple[tuple[str, ...], ...]
    showing: int
    ticket: str

    @property
    def shown(self) -> list[str]:
        """Return the cids by place; a merged completion goes by its first cid."""
        return [cids[0] for cids in self.slots]

    @cached_property
    def prompt(self) -> list[dict[str, str]]:
        """Return the conversation as role and visible text."""
        return [_turn(message) for message in self.item.record.prompt]

    @cached_property
    def completions(self) -> list[list[dict[str, str]]]:
        """Return one list of turns per place."""
        return [
            [_turn(message) for message in self.item.by_cid[cid].messages] for cid in self.shown
        ]

    def characters(self) -> list[int]:
        """Return the length of each completion in characters; shown only after the vote."""
        return [
            sum(len(message.content) for message in self.item.by_cid[cid].messages)
            for cid in self.shown
        ]

    def ranks_by_cid(self, ranks: Mapping[int, int]) -> dict[str, int]:
        """Convert ranks by place to ranks by cid, for every member of a merged completion."""
        return {cid: rank for place, rank in ranks.items() for cid in self.slots[place - 1]}

    def ranks_by_place(self, ranks: Mapping[str, int]) -> dict[int, int]:
        """Convert ranks by cid to ranks by place."""
        return {
            place: ranks[cids[0]]
            for place, cids in enumerate(self.slots, start=1)
            if cids[0] in ranks
        }

    def public(self) -> dict[str, Any]:
        """Return all that a page or terminal may know."""
        return {"ticket": self.ticket, "prompt": self.prompt, "answers": self.completions}


def present(item: Item, marks: Marks, *, annotator: str, showing: int = 0) -> Presentation:
    """Order the completions of an item for this annotator and showing, by the given marks.

    A repeat never has the order of the first showing; a repeated pair is swapped.
    """
    slots = _shuffled(item, marks, annotator, showing)
    if showing and slots == _shuffled(item, marks, annotator, 0):
        slots = slots[::-1]
    return Presentation(item, slots, showing, ticket_of(marks, item.id, annotator, showing))


def ticket_of(marks: Marks, item_id: str, annotator: str, showing: int) -> str:
    """Return the opaque name of a showing; an item id could reveal secrets to annotators."""
    return marks.of("ticket", marks.seed, item_id, annotator, showing)[:24]


def text_mark(marks: Marks, item: Item) -> str:
    """Return a mark of the item's texts for a mailed page.

    A plain hash would not do: it covers cids and file order, so trying the few possible orders of
    the completions would reveal which is which.
    """
    return marks.of("text", item.sha256)[:32] if marks.secret else item.sha256


def _shuffled(
    item: Item, marks: Marks, annotator: str, showing: int
) -> tuple[tuple[str, ...], ...]:
    return tuple(
        sorted(
            item.slots,
            key=lambda cids: marks.of(marks.seed, item.id, annotator, showing, cids[0]),
        )
    )


def _text_key(messages: list[Message]) -> bytes:
    turns = [[m.role, m.content.strip(), m.tool_calls, m.tool_call_id] for m in messages]
    return orjson.dumps(turns)


def _turn(message: Message) -> dict[str, str]:
    text = message.content
    if message.tool_calls:
        calls = orjson.dumps(message.tool_calls, option=orjson.OPT_INDENT_2).decode()
        text = f"{text}\n{calls}" if text else calls
    role = f"{message.role} {message.name}" if message.name else message.role
    return {"role": visible_line(role), "text": visible(text)}


def _where(record: Candidates, file: str) -> str:
    return f"{record.source.file}:{record.source.row + 1}" if record.source else file
