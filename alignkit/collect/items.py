"""What is ranked: candidates records as items, their answers merged, shuffled and made anonymous.

An `Item` knows models and scores. A `Presentation` is what may be looked at: text and places.
Nothing on the way to a screen takes anything else.
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
    """A candidates record with its identical answers merged into slots."""

    record: Candidates
    sha256: str

    @property
    def id(self) -> str:
        return self.record.id

    @cached_property
    def slots(self) -> tuple[tuple[str, ...], ...]:
        """The cids of each distinct answer; answers that differ in outer white space are one."""
        merged: dict[bytes, list[str]] = {}
        for candidate in self.record.candidates:
            merged.setdefault(_text_key(candidate.messages), []).append(candidate.cid)
        return tuple(tuple(cids) for cids in merged.values())

    @cached_property
    def by_cid(self) -> dict[str, Candidate]:
        return {candidate.cid: candidate for candidate in self.record.candidates}


@dataclass(frozen=True)
class Pool:
    """The items of a collection by id, in file order, and what was left out, with the reason."""

    items: Mapping[str, Item]
    left_out: list[str] = field(default_factory=list)


def pool_of(records: Iterable[Candidates], *, file: str = "candidates") -> Pool:
    """The items worth asking about; an item nobody could rank is left out and named."""
    items: dict[str, Item] = {}
    left_out: list[str] = []
    for record in records:
        where = _where(record, file)
        if not record.id:
            record = record.model_copy(update={"id": item_sha256(record)[:16]})
        item = Item(record, item_sha256(record))
        if record.id in items and items[record.id].sha256 == item.sha256:
            left_out.append(f"{where}: item {record.id!r} stands there twice")
            continue
        if record.id in items:
            raise DataError(
                f"the id {record.id!r} names two different items",
                where=where,
                hint="give each item its own id",
            )
        if len(item.slots) > LARGEST:
            raise DataError(
                f"{len(item.slots)} different answers; people rank 2 to {LARGEST} at a time",
                where=where,
                hint="generate fewer, or split the record",
            )
        if len(item.slots) < 2:
            left_out.append(f"{where}: item {record.id!r} has only one distinct answer")
            continue
        items[record.id] = item
    return Pool(items, left_out)


def item_sha256(record: Candidates) -> str:
    """Names the text of an item: prompt, cids and answers; not its models, scores or gold."""
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
    """One showing of an item to one annotator; `showing` counts from 0, later ones are repeats."""

    item: Item
    slots: tuple[tuple[str, ...], ...]
    showing: int
    ticket: str

    @property
    def shown(self) -> list[str]:
        """The cids from the first place to the last; a merged answer goes by its first cid."""
        return [cids[0] for cids in self.slots]

    @cached_property
    def prompt(self) -> list[dict[str, str]]:
        """The conversation as role and visible text."""
        return [_turn(message) for message in self.item.record.prompt]

    @cached_property
    def answers(self) -> list[list[dict[str, str]]]:
        """One list of turns a place."""
        return [
            [_turn(message) for message in self.item.by_cid[cid].messages] for cid in self.shown
        ]

    def characters(self) -> list[int]:
        """Length of the answers as they stand in the file; said only after the vote."""
        return [
            sum(len(message.content) for message in self.item.by_cid[cid].messages)
            for cid in self.shown
        ]

    def ranks_by_cid(self, ranks: Mapping[int, int]) -> dict[str, int]:
        """Ranks of places as ranks of cids, every member of a merged answer included."""
        return {cid: rank for place, rank in ranks.items() for cid in self.slots[place - 1]}

    def ranks_by_place(self, ranks: Mapping[str, int]) -> dict[int, int]:
        """The way back from `ranks_by_cid`."""
        return {
            place: ranks[cids[0]]
            for place, cids in enumerate(self.slots, start=1)
            if cids[0] in ranks
        }

    def public(self) -> dict[str, Any]:
        """All that a surface may know."""
        return {"ticket": self.ticket, "prompt": self.prompt, "answers": self.answers}


def present(item: Item, marks: Marks, *, annotator: str, showing: int = 0) -> Presentation:
    """The item in the order that this annotator sees this time: its marks decide, not a clock.

    A repeat never comes in the order of the first showing, and a repeated pair comes swapped.
    """
    slots = _shuffled(item, marks, annotator, showing)
    if showing and slots == _shuffled(item, marks, annotator, 0):
        slots = slots[::-1]
    return Presentation(item, slots, showing, ticket_of(marks, item.id, annotator, showing))


def ticket_of(marks: Marks, item_id: str, annotator: str, showing: int) -> str:
    """The opaque name of a showing: item ids may tell what a surface must not."""
    return marks.of("ticket", marks.seed, item_id, annotator, showing)[:24]


def text_mark(marks: Marks, item: Item) -> str:
    """Names the item's texts on a page that leaves the house.

    Not by their plain hash: it covers cids and the order of the file, so that trying the few
    orders of the answers would tell which is which.
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
