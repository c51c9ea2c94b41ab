"""Read the standing votes of files of rankings and events: without undone or replaced ones.

Votes on the same prompt and completions are votes on one item (`data.voting`), whatever name the
files give it. Only digests of the texts stay in memory; agreement needs no more.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from sys import intern
from typing import Any

from alignkit.data.pairs import ranking_of
from alignkit.data.records import Preference
from alignkit.data.voting import (
    Asked,
    Items,
    Place,
    annotator_in,
    last_votes,
    line_of,
    replaced_problem,
    standing,
)
from alignkit.errors import DataError
from alignkit.evaluation import judged_rows as fields
from alignkit.evaluation.judged_rows import Row, RowFile
from alignkit.files.problems import Problem
from alignkit.files.rows import compression_of, container_of

Ranks = dict[str, int]


@dataclass(frozen=True)
class Vote:
    """One annotator's ranks of one item: 1 is best, equal is a tie, missing is unranked.

    `models`: the model of each candidate, where the vote's own row names it. `asked`: the item's
    digests, None if only another file holds the texts. `place`: (file, line).
    """

    id: str
    annotator: str
    item: str
    ranks: Ranks
    shown: tuple[str, ...] = ()
    active_ms: int | None = None
    gold: bool = False
    repeat_of: str | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    asked: Asked | None = None
    place: tuple[str, int | None] = ("", None)

    def categories(self) -> dict[tuple[str, str], int]:
        """Return 1, 0 or -1 for each pair of ranked candidates, in the order of their names."""
        cids = sorted(self.ranks)
        return {
            (x, y): (self.ranks[x] < self.ranks[y]) - (self.ranks[x] > self.ranks[y])
            for i, x in enumerate(cids)
            for y in cids[i + 1 :]
        }


@dataclass
class Ballots:
    """The contents of a set of files: standing votes, their repeats, skips and flags."""

    votes: list[Vote] = field(default_factory=list)
    repeats: list[tuple[Vote, Vote]] = field(default_factory=list)  # the first vote, its repeat
    replaced: list[Problem] = field(default_factory=list)  # votes replaced by a later one
    skipped: Counter[str] = field(default_factory=Counter)
    flagged: Counter[str] = field(default_factory=Counter)
    expected: dict[str, Ranks] = field(default_factory=dict)  # gold ranks by item
    inputs: list[dict[str, Any]] = field(default_factory=list)
    items: Items = field(default_factory=Items)
    asked: dict[str, Asked] = field(default_factory=dict)  # by the name that a file gives an item

    def place(self, name: str, asked: Asked | None) -> Place:
        """Return the item that files call `name`; by name alone if no file holds its texts."""
        asked = asked or self.asked.get(name)
        return Place(name, {}) if asked is None else self.items.place(name, asked)

    def placed(self, vote: Vote) -> Vote:
        """Return the vote under the names that all votes on its item share."""
        place = self.place(vote.item, vote.asked)
        return replace(
            vote,
            item=place.item,
            ranks=place.ranks(vote.ranks),
            shown=tuple(place.cids.get(cid, cid) for cid in vote.shown),
            models={place.cids.get(cid, cid): model for cid, model in vote.models.items()},
            asked=None,
        )


def read_ballots(paths: Sequence[str | Path]) -> Ballots:
    """Read rankings, events and (for the expected order of gold items) candidates, in any mix.

    Rankings and preferences in other formats are read as `alignkit data` reads them.
    """
    if not paths:
        raise DataError("no file of rankings or events given")
    ballots, cast = Ballots(), list[tuple[str, str | None, Vote | None]]()
    for path in paths:
        file = VoteFile(path)
        for line, row in file:
            try:
                taken = _READERS[_kind(row)](row, ballots)
                before = fields.text(row, "supersedes")
            except DataError as error:
                raise error.at(f"{path}:{line}") from None
            vote = taken and replace(taken, place=(str(path), line))
            cast.append((vote.id if vote else "", before, vote))
        ballots.inputs.append(file.as_dict())
    _settle(ballots, [vote for vote in standing(cast) if vote is not None])
    return ballots


class VoteFile:
    """One input file: iterate it once for (line, row), each row one of our records as JSON."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._own = RowFile(path)
        self._read: int | None = None

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        plain = container_of(self.path) in ("jsonl", "json") and not compression_of(self.path)
        rows = iter(self._own) if plain else iter(())
        first = next(rows, None)
        if plain and (first is None or first[1].get("kind", "preference") != "preference"):
            yield from chain([] if first is None else [first], rows)
            return
        # Imported here because it loads every data format, which most reports do not need.
        from alignkit.data.read import read_records

        self._read = 0
        for record in read_records(self.path, kinds=frozenset(_READERS) | {"preference"}):
            ranking = ranking_of(record) if isinstance(record, Preference) else record
            self._read += 1
            yield line_of(record) or self._read, ranking.model_dump()

    def as_dict(self) -> dict[str, Any]:
        """Return path, digest and rows, for a report's list of inputs."""
        if self._read is None:
            return self._own.as_dict()
        with open(self.path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"path": self.path, "sha256": digest, "rows": self._read}


def _settle(ballots: Ballots, standing: Sequence[Vote]) -> None:
    """Keep the last vote per annotator and item, and pair repeats with their first vote."""
    placed = [ballots.placed(vote) for vote in standing]
    by_id = {vote.id: vote for vote in placed if vote.id}
    first = [vote for vote in placed if vote.repeat_of is None]
    counted = last_votes(first, lambda vote: (vote.annotator, vote.item))
    ballots.votes = counted.votes
    # Voting again on the page is intended; in a file of rankings it may be a mistake.
    ballots.replaced = [
        replaced_problem(one.annotator, (*one.place, one.ranks), (*other.place, other.ranks))
        for one, other in counted.replaced
        if not other.id
    ]
    ballots.repeats = [(by_id[vote.repeat_of], vote) for vote in placed if vote.repeat_of in by_id]
    places = {name: ballots.place(name, None) for name in ballots.expected}
    ballots.expected = {
        places[name].item: places[name].ranks(ranks) for name, ranks in ballots.expected.items()
    }


def _kind(row: Row) -> str:
    return fields.one_of(row, "kind", _READERS, f"Agreement reads {', '.join(sorted(_READERS))}")


def _read_ranking(row: Row, ballots: Ballots) -> Vote:
    item = fields.text(row, "item") or fields.text(row, "id")
    if not item:
        raise DataError("a ranking needs an 'item' or an 'id' to identify what was ranked")
    annotator = fields.text(row, "annotator") or annotator_in(fields.extra_of(row)) or ""
    return Vote(
        "", annotator, item, fields.ranks(row.get("ranks")), **_note_texts(item, row, ballots)
    )


def _read_event(row: Row, ballots: Ballots) -> Vote | None:
    action = fields.one_of(row, "action", _ACTIONS, f"Use one of {', '.join(_ACTIONS)}")
    annotator = fields.word(row, "annotator")
    if action in ("skip", "flag"):
        (ballots.skipped if action == "skip" else ballots.flagged)[annotator] += 1
    if action not in ("rank", "pair"):
        return None
    item = fields.word(row, "item")
    return Vote(
        id=fields.word(row, "id"),
        annotator=annotator,
        item=item,
        ranks=fields.ranks(row.get("ranks")),
        shown=fields.texts(row, "shown"),
        active_ms=fields.count(row, "active_ms"),
        gold=fields.flag(row, "gold") or False,
        repeat_of=fields.text(row, "repeat_of"),
        **_note_texts(item, fields.extra_of(row), ballots),
    )


def _read_candidates(row: Row, ballots: Ballots) -> None:
    _note_texts(str(row.get("id")), row, ballots)
    if row.get("gold") is not None:
        ballots.expected[fields.word(row, "id")] = fields.ranks(row["gold"], "gold")


def _note_texts(name: str, row: Row, ballots: Ballots) -> dict[str, Any]:
    """Note the texts of a row under its item; return the vote's `asked` and `models`."""
    if row.get("prompt") is None or row.get("candidates") is None:
        return {}
    shown = fields.shown_of(row)
    asked = Asked.of(shown.prompt, shown.candidates)
    named = {c.cid: c.model for c in shown.candidates}
    if row.get("kind") == "candidates":
        ballots.asked[name] = asked
    else:
        ballots.asked.setdefault(name, asked)
    return {"asked": asked, "models": {cid: intern(m) for cid, m in named.items() if m}}


_ACTIONS = ("rank", "pair", "skip", "flag", "undo")
_READERS = {"ranking": _read_ranking, "event": _read_event, "candidates": _read_candidates}
