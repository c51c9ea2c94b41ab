"""Decide what was voted on and which votes count, where the votes of several people meet.

An item is its prompt and its set of completions, whatever their order and its name in the files. A
shared name joins votes on parts of the completions, as long as it stands for one prompt and each of
its candidates has one text.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import orjson

from alignkit.data.records import Candidate, Message, Preference, Ranking, Record
from alignkit.files.problems import Problem

V = TypeVar("V")
Ranks = dict[str, int]


@dataclass(frozen=True, slots=True)
class Asked:
    """What one vote was about: digests of the prompt and, by cid, of each completion."""

    prompt: bytes
    answers: Mapping[str, bytes]

    @classmethod
    def of(
        cls,
        prompt: Sequence[Message | Mapping[str, Any]],
        candidates: Iterable[Candidate | Mapping[str, Any]],
    ) -> Asked:
        """Digest records or their JSON; KeyError and TypeError if it is not such JSON."""
        answers = {}
        for candidate in candidates:
            if isinstance(candidate, Candidate):
                answers[candidate.cid] = _digest(candidate.messages)
            else:
                answers[candidate["cid"]] = _digest(candidate["messages"])
        return cls(_digest(prompt), answers)

    @property
    def key(self) -> bytes:
        """Return a key of the prompt and the multiset of completions."""
        return hashlib.blake2b(
            b"".join([self.prompt, *sorted(self.answers.values())]), digest_size=16
        ).digest()


def _digest(messages: Sequence[Message | Mapping[str, Any]]) -> bytes:
    """Digest roles and texts; white space at the ends of a turn is ignored."""
    turns = [
        [m.role, m.content.strip(), m.tool_calls, m.tool_call_id]
        if isinstance(m, Message)
        else [
            m["role"],
            str(m.get("content") or "").strip(),
            m.get("tool_calls"),
            m.get("tool_call_id"),
        ]
        for m in messages
    ]
    return hashlib.blake2b(orjson.dumps(turns), digest_size=16).digest()


@dataclass(slots=True)
class _Item:
    name: str
    answers: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Place:
    """The item that a vote belongs to, and its candidates' names there."""

    item: str
    cids: Mapping[str, str]

    def ranks(self, ranks: Mapping[str, int]) -> Ranks:
        """Return ranks under the item's names of the candidates."""
        return {self.cids.get(cid, cid): rank for cid, rank in ranks.items()}


@dataclass
class Items:
    """The items seen so far; the same vote is always assigned to the same item."""

    _by_key: dict[bytes, _Item] = field(default_factory=dict)
    _named: dict[tuple[str, bytes], _Item] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)

    def place(self, name: str, asked: Asked) -> Place:
        """Return the item of a vote that its file calls `name`."""
        key = asked.key
        item = self._by_key.get(key)
        if item is None:
            item = self._named.get((name, asked.prompt))
            if item is None or not _consistent(item, asked):
                item = self._new(name)
                self._named.setdefault((name, asked.prompt), item)
            item.answers.update(asked.answers)
            self._by_key[key] = item
        return Place(item.name, _matched(asked.answers, item.answers))

    def _new(self, name: str) -> _Item:
        free, number = name, 1
        while free in self._names:
            number += 1
            free = f"{name} ({number})"
        self._names.add(free)
        return _Item(free, {})

    def of(self, ranking: Ranking) -> Place:
        """Return the item of a ranking."""
        return self.place(ranking.item or ranking.id, Asked.of(ranking.prompt, ranking.candidates))


def _consistent(item: _Item, asked: Asked) -> bool:
    """Return whether the name stands for one thing: no candidate has two texts."""
    return all(item.answers.get(cid, text) == text for cid, text in asked.answers.items())


def _matched(given: Mapping[str, bytes], item: Mapping[str, bytes]) -> dict[str, str]:
    """Map each cid to the item's cid of the same text; to itself where possible."""
    cids = {cid: cid for cid, text in given.items() if item.get(cid) == text}
    taken = set(cids)
    free: dict[bytes, list[str]] = defaultdict(list)
    for cid, text in item.items():
        if cid not in taken:
            free[text].append(cid)
    for cid, text in given.items():
        if cid not in cids:
            cids[cid] = free[text].pop(0)
    return cids


# --- one vote per person ------------------------------------------------------------------------

# Columns in which annotation tools and published data sets name a row's annotator.
ANNOTATOR_KEYS = (
    "annotator",
    "annotator_id",
    "completed_by",
    "worker",
    "worker_id",
    "rater",
    "rater_id",
    "labeler",
    "labeler_id",
    "judge",
    "user_id",
)


def annotator_in(row: Mapping[str, Any]) -> str | None:
    """Return the annotator that a row names: a text or whole number under one of these keys."""
    for key in ANNOTATOR_KEYS:
        value = row.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value)
    return None


@dataclass
class Counted(Generic[V]):
    """Votes that count, in order, and votes that a later vote of the same person replaced."""

    votes: list[V]
    replaced: list[tuple[V, V]]  # (earlier, later)


def standing(acts: Iterable[tuple[str, str | None, V]]) -> list[V]:
    """The acts that no other one supersedes; each comes as (its id, the id it supersedes, itself).

    An act without an id, such as a ranking of another tool, cannot be superseded.
    """
    listed = list(acts)
    void = {before for _, before, _ in listed if before}
    return [act for name, _, act in listed if not name or name not in void]


def last_votes(votes: Iterable[V], voter: Callable[[V], tuple[str | None, str]]) -> Counted[V]:
    """Return the last vote of each person on each item; `voter` returns (annotator, item).

    Anonymous votes may come from as many people, so all of them count.
    """
    last: dict[tuple[str, str] | int, V] = {}
    replaced = []
    for number, vote in enumerate(votes):
        annotator, item = voter(vote)
        key = (annotator, item) if annotator else number
        if key in last:
            replaced.append((last.pop(key), vote))
        last[key] = vote
    return Counted(list(last.values()), replaced)


def ballot_of(record: Record) -> bytes | None:
    """Return a key of who voted on what, None if anonymous; equal keys are one ballot."""
    if isinstance(record, Ranking):
        asked = Asked.of(record.prompt, record.candidates)
        annotator = record.annotator or annotator_in(record.extra)
    elif isinstance(record, Preference):
        sides = {"chosen": record.chosen, "rejected": record.rejected}
        asked = Asked(_digest(record.prompt), {cid: _digest(side) for cid, side in sides.items()})
        annotator = annotator_in(record.extra)
    else:
        return None
    return None if annotator is None else asked.key + annotator.encode()


def voter(ranking: Ranking) -> tuple[str | None, str]:
    """Return who ranked what: (annotator, item)."""
    return ranking.annotator, ranking.item


def line_of(record: Record) -> int | None:
    """Return the line of a record in its file of lines; None if it came from no file."""
    return record.source.row + 1 if record.source else None


def aligned(rankings: Iterable[Ranking]) -> list[Ranking]:
    """Return the rankings under shared names: one `item` per item, one cid per completion.

    The annotator that the row names is set too.
    """
    items = Items()
    return [_renamed(ranking, items.of(ranking)) for ranking in rankings]


def _renamed(ranking: Ranking, place: Place) -> Ranking:
    candidates = [c.model_copy(update={"cid": place.cids[c.cid]}) for c in ranking.candidates]
    return ranking.model_copy(
        update={
            "item": place.item,
            "candidates": candidates,
            "ranks": place.ranks(ranking.ranks),
            "annotator": ranking.annotator or annotator_in(ranking.extra),
        }
    )


def replaced_problem(
    annotator: str,
    earlier: tuple[str, int | None, Mapping[str, int]],
    later: tuple[str, int | None, Mapping[str, int]],
) -> Problem:
    """Report that somebody voted on an item again; each vote is (file, line, ranks)."""
    (first_file, line, before), (file, own, after) = earlier, later
    if first_file == file and line:
        place = f"line {line}"
    else:
        place = f"{first_file}:{line}" if line else first_file
    if _order(before) == _order(after):
        message = f"{annotator} voted the same on {place}: counted once"
        return Problem(file, own, None, "duplicate", message, "", "warning")
    message = f"{annotator} voted differently on {place}: the last vote counts"
    return Problem(
        file, own, None, "contradiction", message, "remove the vote that is wrong", "warning"
    )


def _order(ranks: Mapping[str, int]) -> Ranks:
    """Reduce ranks to their order: 1 and 3 mean the same as 1 and 2."""
    places = {rank: place for place, rank in enumerate(sorted(set(ranks.values())))}
    return {cid: places[rank] for cid, rank in ranks.items()}
