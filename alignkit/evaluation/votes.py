"""The votes that stand in files of rankings and events: taken back, repeated and replaced ones out.

Texts are not looked at: who said what about which candidates is all that agreement needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.errors import DataError
from alignkit.evaluation.json_rows import Row, RowFile

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
            except DataError as error:
                raise error.at(f"{path}:{line}") from None
            if isinstance(row.get("supersedes"), str):
                void.add(row["supersedes"])
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
    kind = row.get("kind")
    if not isinstance(kind, str) or kind not in _READERS:
        raise DataError(
            f"'kind' is {kind!r}", hint=f"Agreement reads {', '.join(sorted(_READERS))}"
        )
    return kind


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{key!r} must be a non-empty text, not {value!r}")
    return value


def _ranks(value: Any, key: str = "ranks") -> Ranks:
    if not isinstance(value, Mapping):
        raise DataError(f"{key!r} must be an object of candidates and ranks, not {value!r}")
    for cid, rank in value.items():
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise DataError(f"the rank of {cid!r} must be a whole number from 1, not {rank!r}")
    return dict(value)


def _read_ranking(row: Row, _ballots: Ballots) -> Vote:
    item = row.get("item") or row.get("id")
    if not isinstance(item, str):
        raise DataError("a ranking needs an 'item' or an 'id' that says what was ranked")
    return Vote("", row.get("annotator") or "", item, _ranks(row.get("ranks")))


def _read_event(row: Row, ballots: Ballots) -> Vote | None:
    action, annotator = _text(row, "action"), _text(row, "annotator")
    if action not in _ACTIONS:
        raise DataError(f"'action' is {action!r}", hint=f"Known: {', '.join(_ACTIONS)}")
    if action in ("skip", "flag"):
        (ballots.skipped if action == "skip" else ballots.flagged)[annotator] += 1
    if action not in ("rank", "pair"):
        return None
    active = row.get("active_ms")
    return Vote(
        id=_text(row, "id"),
        annotator=annotator,
        item=_text(row, "item"),
        ranks=_ranks(row.get("ranks")),
        shown=tuple(row.get("shown") or ()),
        active_ms=active if isinstance(active, int) else None,
        gold=bool(row.get("gold")),
        repeat_of=row.get("repeat_of"),
    )


def _read_candidates(row: Row, ballots: Ballots) -> None:
    if row.get("gold") is not None:
        ballots.expected[_text(row, "id")] = _ranks(row["gold"], "gold")


_ACTIONS = ("rank", "pair", "skip", "flag", "undo")
_READERS = {"ranking": _read_ranking, "event": _read_event, "candidates": _read_candidates}
