"""People as judges: the votes of `alignkit rank`, looked up by the texts they were cast on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from alignkit.data.records import Judgement
from alignkit.errors import DataError
from alignkit.evaluation.json_rows import Row, RowFile
from alignkit.evaluation.votes import Vote, read_ballots
from alignkit.judges import Comparison, Verdict

Key = tuple[str, str, str]
SCORES = {1: 1.0, 0: 0.5, -1: 0.0}


@dataclass(frozen=True)
class Item:
    """What was ranked: the prompt's text, and each candidate's text and model."""

    prompt: str
    texts: Mapping[str, str]
    models: Mapping[str, str]


@dataclass(frozen=True)
class HumanJudge:
    """Mean verdict of all who compared these two texts; a pair nobody compared is a failure."""

    name: str
    scores: Mapping[Key, float]
    has_order: bool = False

    def compare_many(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        return [self._one(comparison) for comparison in comparisons]

    def _one(self, comparison: Comparison) -> Verdict:
        prompt = _conversation(comparison.prompt)
        score = self.scores.get((prompt, comparison.left, comparison.right))
        return Verdict(score, None if score is not None else "nobody compared these two")


def _conversation(messages: Sequence[Any]) -> str:
    """The turns as one text that names a prompt."""
    return "\x1e".join(f"{m.role}\x1f{m.content}" for m in messages)


def _text(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(str(m.get("content") or "") for m in messages)


def read_items(paths: Sequence[str | Path]) -> dict[str, Item]:
    """The items of candidates, rankings and events, by the name that votes give them."""
    items = {}
    for path in paths:
        for line, row in RowFile(path):
            told = _told(row)
            if told is not None:
                try:
                    items[str(row.get("item") or row.get("id"))] = _item(told)
                except (KeyError, TypeError, AttributeError):
                    raise DataError(
                        "needs 'prompt' and 'candidates' with 'cid' and 'messages'",
                        where=f"{path}:{line}",
                    ) from None
    return items


def _told(row: Row) -> Row | None:
    """What holds the texts: the record, or the `extra` of an event that carries them."""
    if row.get("kind") in ("candidates", "ranking"):
        return row
    extra = row.get("extra")
    carries = row.get("kind") == "event" and isinstance(extra, dict) and "candidates" in extra
    return extra if carries else None


def _item(row: Row) -> Item:
    return Item(
        "\x1e".join(f"{m['role']}\x1f{m['content']}" for m in row["prompt"]),
        {c["cid"]: _text(c["messages"]) for c in row["candidates"]},
        {c["cid"]: c.get("model") or c["cid"] for c in row["candidates"]},
    )


def human_judge(rest: str, **_options: Any) -> HumanJudge:
    """`human:votes.jsonl,candidates.jsonl`: events with the candidates they name, or rankings."""
    paths = [path for path in rest.split(",") if path]
    items = read_items(paths)
    heard: dict[Key, list[float]] = defaultdict(list)
    for vote in read_ballots(paths).votes:
        item = _known(items, vote)
        for (x, y), category in vote.categories().items():
            left, right, score = item.texts[x], item.texts[y], SCORES[category]
            heard[item.prompt, left, right].append(score)
            heard[item.prompt, right, left].append(1.0 - score)
    return HumanJudge("human", {key: fmean(scores) for key, scores in heard.items()})


def _known(items: Mapping[str, Item], vote: Vote) -> Item:
    if vote.item not in items or not vote.ranks.keys() <= items[vote.item].texts.keys():
        raise DataError(
            f"the candidates of item {vote.item!r} are in none of the files",
            hint="Give the candidates file too: human:votes.jsonl,candidates.jsonl",
        )
    return items[vote.item]


def judgements_of(paths: Sequence[str | Path]) -> Iterator[Judgement]:
    """Each vote as judgements of the models behind the candidates, one a pair of models."""
    items = read_items(paths)
    for vote in read_ballots(paths).votes:
        item = _known(items, vote)
        for (x, y), category in vote.categories().items():
            if item.models[x] == item.models[y]:
                continue
            place = {cid: number for number, cid in enumerate(vote.shown)}
            first: Any = None
            if x in place and y in place:
                first = "a" if place[x] < place[y] else "b"
            yield Judgement(
                id=f"{vote.item}/{vote.annotator}/{x}-{y}",
                prompt_id=vote.item,
                a=item.models[x],
                b=item.models[y],
                first=first,
                score=SCORES[category],
                judge=f"human:{vote.annotator}" if vote.annotator else "human",
                output_a=item.texts[x],
                output_b=item.texts[y],
            )
