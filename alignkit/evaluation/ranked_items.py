"""Votes with what they were cast on: texts and models behind the candidates of each item."""

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
class Item:
    """What was ranked: the prompt, and each candidate's text and model, None when unknown."""

    prompt: str  # names the conversation: roles and contents
    shown: str  # the conversation's contents, for people
    texts: Mapping[str, str]
    models: Mapping[str, str | None]
    extra: Mapping[str, Any] = field(default_factory=dict)


class Decision(NamedTuple):
    """One vote on two candidates of different models; `first` is the cid shown first, if known."""

    vote: Vote
    item: Item
    x: str
    y: str
    score: float  # P(x wins)
    first: str | None


def conversation(messages: Sequence[Mapping[str, Any]]) -> str:
    """The turns as one text that names a prompt."""
    return "\x1e".join(f"{m['role']}\x1f{m['content']}" for m in messages)


def read_items(paths: Sequence[str | Path], ballots: Ballots) -> dict[str, Item]:
    """The items of candidates, rankings and events, by the name that their votes share."""
    items: dict[str, Item] = {}
    for path in paths:
        for line, row in VoteFile(path):
            told = _told(row)
            if told is None:
                continue
            try:
                shown = shown_of(told)
                place = ballots.place(_name(row), Asked.of(shown.prompt, shown.candidates))
                name, found = place.item, _item(shown, place.cids, fields.extra_of(told))
            except DataError as error:
                raise error.at(f"{path}:{line}") from None
            # Only the candidates' own record knows a category; events repeat the texts alone.
            if row.get("kind") == "candidates" or name not in items:
                items[name] = found
    return items


def _told(row: Row) -> Row | None:
    """What holds the texts: the record, or the `extra` of an event that carries them."""
    if row.get("kind") in ("candidates", "ranking"):
        return row
    if row.get("kind") != "event":
        return None
    extra = row.get("extra")
    return extra if isinstance(extra, dict) and "candidates" in extra else None


def _name(row: Row) -> str:
    found = fields.text(row, "item") or fields.text(row, "id")
    if not found:
        raise DataError("neither 'item' nor 'id' says what was ranked")
    return found


def _item(shown: Shown, cids: Mapping[str, str], extra: Mapping[str, Any]) -> Item:
    prompt = [message.model_dump() for message in shown.prompt]
    texts = {cids[c.cid]: contents([m.model_dump() for m in c.messages]) for c in shown.candidates}
    models = {cids[c.cid]: c.model for c in shown.candidates}
    return Item(conversation(prompt), contents(prompt), texts, models, extra)


def item_of(items: Mapping[str, Item], vote: Vote) -> Item:
    """The item a vote was cast on; DataError when no file holds it."""
    if vote.item not in items:
        raise DataError(
            f"the candidates of item {vote.item!r} are in none of the files",
            hint="Give the candidates file too",
        )
    item = items[vote.item]
    strangers = sorted(vote.ranks.keys() - item.texts.keys())
    if strangers:
        raise DataError(
            f"a vote on item {vote.item!r} ranks {strangers[0]!r}, which is none of its candidates",
            hint="Give the candidates file that was ranked",
        )
    return item


def decisions(paths: Sequence[str | Path], ballots: Ballots) -> Iterator[Decision]:
    """Every standing vote pair by pair; two answers of one model say nothing about models.

    Items whose order is known beforehand test the annotator and are left out.
    """
    items = read_items(paths, ballots)
    for vote in ballots.votes:
        if vote.gold or vote.item in ballots.expected:
            continue
        item = item_of(items, vote)
        # Two models may give the same answers: each vote speaks of those its own row names.
        item = replace(item, models={**item.models, **vote.models}) if vote.models else item
        place = {cid: number for number, cid in enumerate(vote.shown)}
        for (x, y), category in vote.categories().items():
            _check_models(item, vote.item, (x, y))
            if item.models[x] == item.models[y]:
                continue
            known = x in place and y in place
            first = min(x, y, key=place.__getitem__) if known else None
            yield Decision(vote, item, x, y, SCORES[category], first)


def _check_models(item: Item, name: str, cids: Sequence[str]) -> None:
    for cid in cids:
        if not item.models[cid]:
            raise DataError(
                f"candidate {cid!r} of item {name!r} names no model",
                hint="A win rate needs to know whose answer it is: give each candidate a 'model'",
            )


def read_decisions(paths: Sequence[str | Path]) -> tuple[list[Decision], list[dict[str, Any]]]:
    """Decisions of all files together, as an undo in one reaches a vote in another; the inputs."""
    ballots = read_ballots(paths)
    found = list(decisions(paths, ballots))
    if not found:
        raise DataError("holds no vote between two models", where=", ".join(map(str, paths)))
    return found, ballots.inputs
