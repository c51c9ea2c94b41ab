"""The votes that stand in files of rankings and events: taken back, repeated and replaced ones out.

Texts are not looked at: who said what about which candidates is all that agreement needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.errors import DataError
from alignkit.evaluation import judged_rows as fields
from alignkit.evaluation.judged_rows import Row, RowFile

Ranks = dict[str, int]


@dataclass(frozen=True)
class Vote:
    """One annotator's ranks of one item: 1 is best, equal is a tie, missing is unranked."""

    id: str
    annotator: str
    item: str
    ranks: Ranks
    shown: tuple[str, ...] = ()
    active_ms: int | None = None
    gold: bool = False
    repeat_of: str | None = None

    def categories(self) -> dict[tuple[str, str], int]:
        """1, 0 or -1 for each pair of ranked candidates in the order of their names."""
        cids = sorted(self.ranks)
        return {
            (x, y): (self.ranks[x] < self.ranks[y]) - (self.ranks[x] > self.ranks[y])
            for i, x in enumerate(cids)
            for y in cids[i + 1 :]
        }


@dataclass
class Ballots:
    """What a set of files holds: votes that stand, repeats of them, and what was not voted."""

    votes: list[Vote] = field(default_factory=list)
    repeats: list[tuple[Vote, Vote]] = field(default_factory=list)  # the first vote, its repeat
    skipped: Counter[str] = field(default_factory=Counter)
    flagged: Counter[str] = field(default_factory=Counter)
    expected: dict[str, Ranks] = field(default_factory=dict)  # gold ranks by item
    inputs: list[dict[str, Any]] = field(default_factory=list)


def read_ballots(paths: Sequence[str | Path]) -> Ballots:
    """Read rankings, events and (for the expected order of gold items) candidates, mixed."""
    if not paths:
        raise DataError("no file of rankings or events given")
    ballots, cast, void = Ballots(), [], set()
    for path in paths:
        file = RowFile(path)
        for line, row in file:
            try:
                taken = _READERS[_kind(row)](row, ballots)
                replaced = fields.text(row, "supersedes")
            except DataError as error:
                raise error.at(f"{path}:{line}") from None
            if replaced:
                void.add(replaced)
            if taken is not None:
                cast.append(taken)
        ballots.inputs.append(file.as_dict())
    _settle(ballots, [vote for vote in cast if vote.id not in void or not vote.id])
    return ballots


def _settle(ballots: Ballots, standing: Iterable[Vote]) -> None:
    """The last vote of an annotator on an item counts; repeats go beside what they repeat."""
    standing = list(standing)
    by_id = {vote.id: vote for vote in standing if vote.id}
    last: dict[tuple[str, str], Vote] = {}
    for vote in standing:
        if vote.repeat_of is None:
            last[vote.annotator, vote.item] = vote
        elif vote.repeat_of in by_id:
            ballots.repeats.append((by_id[vote.repeat_of], vote))
    ballots.votes = list(last.values())


def _kind(row: Row) -> str:
    return fields.one_of(row, "kind", _READERS, f"Agreement reads {', '.join(sorted(_READERS))}")


def _read_ranking(row: Row, _ballots: Ballots) -> Vote:
    item = fields.text(row, "item") or fields.text(row, "id")
    if not item:
        raise DataError("a ranking needs an 'item' or an 'id' that says what was ranked")
    annotator = fields.text(row, "annotator") or ""
    return Vote("", annotator, item, fields.ranks(row.get("ranks")))


def _read_event(row: Row, ballots: Ballots) -> Vote | None:
    action = fields.one_of(row, "action", _ACTIONS, f"Known: {', '.join(_ACTIONS)}")
    annotator = fields.word(row, "annotator")
    if action in ("skip", "flag"):
        (ballots.skipped if action == "skip" else ballots.flagged)[annotator] += 1
    if action not in ("rank", "pair"):
        return None
    return Vote(
        id=fields.word(row, "id"),
        annotator=annotator,
        item=fields.word(row, "item"),
        ranks=fields.ranks(row.get("ranks")),
        shown=fields.texts(row, "shown"),
        active_ms=fields.count(row, "active_ms"),
        gold=fields.flag(row, "gold") or False,
        repeat_of=fields.text(row, "repeat_of"),
    )


def _read_candidates(row: Row, ballots: Ballots) -> None:
    if row.get("gold") is not None:
        ballots.expected[fields.word(row, "id")] = fields.ranks(row["gold"], "gold")


_ACTIONS = ("rank", "pair", "skip", "flag", "undo")
_READERS = {"ranking": _read_ranking, "event": _read_event, "candidates": _read_candidates}
