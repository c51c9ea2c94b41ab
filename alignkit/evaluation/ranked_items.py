"""Join votes with the texts and models of the candidates they were cast on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.data.voting import Asked
from alignkit.errors import DataError
from alignkit.evaluation import judged_rows as fields
from alignkit.evaluation.judged_rows import Row, Shown, contents, shown_of
from alignkit.evaluation.votes import Ballots, Vote, VoteFile, read_ballots

KINDS = frozenset({"candidates", "event", "ranking"})
# P(the first of two wins) by the category of a vote.
SCORES = {1: 1.0, 0: 0.5, -1: 0.0}


@dataclass(frozen=True)
class RankedItem:
    """A ranked prompt with the text and model of each candidate; None for an unknown model."""

    prompt: str  # identifies the conversation: roles and contents
    shown: str  # the contents of the conversation, for people
    texts: Mapping[str, str]
    models: Mapping[str, str | None]
    extra: Mapping[str, Any] = field(default_factory=dict)


class Decision(NamedTuple):
    """One vote on two candidates of different models; `first` is the cid shown first, if known."""

    vote: Vote
    item: RankedItem
    x: str
    y: str
    score: float  # P(x wins)
    first: str | None


def conversation(messages: Sequence[Mapping[str, Any]]) -> str:
    """Join the turns into one text that identifies a prompt."""
    return "\x1e".join(f"{m['role']}\x1f{m['content']}" for m in messages)


def read_items(paths: Sequence[str | Path], ballots: Ballots) -> dict[str, RankedItem]:
    """Read the items of candidates, rankings and events, by the name that their votes share."""
    items: dict[str, RankedItem] = {}
    for path in paths:
        for line, row in VoteFile(path):
            record = _record_with_texts(row)
            if record is None:
                continue
            try:
                shown = shown_of(record)
                place = ballots.place(_name(row), Asked.of(shown.prompt, shown.candidates))
                item = _item(shown, place.cids, fields.extra_of(record))
            except DataError as error:
                raise error.at(f"{path}:{line}") from None
            # Only a candidates record has a category; events repeat nothing but the texts.
            if row.get("kind") == "candidates" or place.item not in items:
                items[place.item] = item
    return items


def _record_with_texts(row: Row) -> Row | None:
    """Return the part of the row that holds the texts: the record, or the `extra` of an event."""
    if row.get("kind") in ("candidates", "ranking"):
        return row
    if row.get("kind") != "event":
        return None
    extra = row.get("extra")
    return extra if isinstance(extra, dict) and "candidates" in extra else None


def _name(row: Row) -> str:
    name = fields.text(row, "item") or fields.text(row, "id")
    if not name:
        raise DataError("needs an 'item' or an 'id' to identify what was ranked")
    return name


def _item(shown: Shown, cids: Mapping[str, str], extra: Mapping[str, Any]) -> RankedItem:
    prompt = [message.model_dump() for message in shown.prompt]
    texts = {cids[c.cid]: contents([m.model_dump() for m in c.messages]) for c in shown.candidates}
    models = {cids[c.cid]: c.model for c in shown.candidates}
    return RankedItem(conversation(prompt), contents(prompt), texts, models, extra)


def item_of(items: Mapping[str, RankedItem], vote: Vote) -> RankedItem:
    """Return the item a vote was cast on; DataError if no file contains it."""
    if vote.item not in items:
        raise DataError(
            f"none of the files contains the candidates of item {vote.item!r}",
            hint="Give the candidates file too",
        )
    item = items[vote.item]
    unknown = sorted(vote.ranks.keys() - item.texts.keys())
    if unknown:
        raise DataError(
            f"a vote on item {vote.item!r} ranks {unknown[0]!r}, which is not a candidate of it",
            hint="Give the candidates file that was ranked",
        )
    return item


def decisions(paths: Sequence[str | Path], ballots: Ballots) -> Iterator[Decision]:
    """Yield every standing vote pair by pair, skipping pairs of one and the same model.

    Gold items test the annotator, not the models, and are skipped too.
    """
    items = read_items(paths, ballots)
    for vote in ballots.votes:
        if vote.gold or vote.item in ballots.expected:
            continue
        item = item_of(items, vote)
        # Two models may give the same completion: a vote counts for the models its own row names.
        item = replace(item, models={**item.models, **vote.models}) if vote.models else item
        place = {cid: number for number, cid in enumerate(vote.shown)}
        for (x, y), category in vote.categories().items():
            _check_models(item, vote.item, (x, y))
            if item.models[x] == item.models[y]:
                continue
            both_shown = x in place and y in place
            first = min(x, y, key=place.__getitem__) if both_shown else None
            yield Decision(vote, item, x, y, SCORES[category], first)


def _check_models(item: RankedItem, name: str, cids: Sequence[str]) -> None:
    for cid in cids:
        if not item.models[cid]:
            raise DataError(
                f"candidate {cid!r} of item {name!r} has no model",
                hint="A win rate compares models: give each candidate a 'model'",
            )


def read_decisions(paths: Sequence[str | Path]) -> tuple[list[Decision], list[dict[str, Any]]]:
    """Read the decisions of all files together with the inputs of the report.

    The files are read as one because an undo in one may concern a vote in another.
    """
    ballots = read_ballots(paths)
    cast = list(decisions(paths, ballots))
    if not cast:
        raise DataError("contains no vote between two models", where=", ".join(map(str, paths)))
    return cast, ballots.inputs
